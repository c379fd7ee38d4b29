"""scripts/table.py: rows, groups, and mean and deviation over seeds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TABLE = Path(__file__).resolve().parents[1] / "scripts" / "table.py"


def write_run(root, name, seed, recall):
    folder = root / f"seed_{seed}" / name / "run"
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"model": "lgn", "seed": seed, "dataset": "toy"}))
    (folder / "result.json").write_text(
        json.dumps({"best_epoch": 3, "seconds": 1.0, "test": {"recall@20": recall, "ndcg@20": recall / 2}})
    )
    return str(folder)


def table(*words):
    return subprocess.run([sys.executable, str(TABLE), *words], capture_output=True, text=True)


def test_mean_and_deviation_over_seeds(tmp_path):
    recalls = {"with": [0.31, 0.35, 0.36], "without": [0.1, 0.2, 0.4]}
    folders = [
        write_run(tmp_path, name, seed, x)
        for name, values in recalls.items()
        for seed, x in enumerate(values)
    ]
    done = table("--mean", *folders)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["without", "with"]
    for line in lines[2:]:
        name, seeds, mean, _, deviation, half = line.split()[:6]
        assert (
            seeds == "3"
            and float(mean) == round(np.mean(recalls[name]), 4)
            and float(half) == round(np.mean(recalls[name]) / 2, 4)
        )
        assert float(deviation) == round(np.std(recalls[name], ddof=1), 4)


def test_one_row_a_run_without_the_flag(tmp_path):
    done = table(*(write_run(tmp_path, name, 0, x) for name, x in (("a", 0.2), ("b", 0.1))))
    assert [line.split()[:2] for line in done.stdout.splitlines()[2:]] == [["b", "0"], ["a", "0"]]


@pytest.mark.parametrize(
    "words, told",
    [(["--mean", "/nowhere"], "not a finished run"), (["--mean"], "python scripts/table.py"), ([], "--mean")],
)
def test_bad_input(words, told):
    done = table(*words)
    assert done.returncode == 2 and told in done.stderr


def test_same_seed_twice(tmp_path):
    done = table("--mean", write_run(tmp_path / "x", "a", 0, 0.2), write_run(tmp_path / "y", "a", 0, 0.2))
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and "two runs of seed 0" in done.stderr
