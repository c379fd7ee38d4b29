"""scripts/table.py: one row per run, and mean and deviation over seeds."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

TABLE = Path(__file__).resolve().parents[1] / "scripts" / "table.py"


def write_run(root, folder, seed, recall, model="lgn"):
    run = root / f"seed_{seed}" / folder / f"run_{model.replace('/', '_')}"
    run.mkdir(parents=True)
    (run / "config.json").write_text(json.dumps({"model": model, "seed": seed, "dataset": "toy"}))
    (run / "result.json").write_text(
        json.dumps({"best_epoch": 3, "seconds": 1.0, "test": {"recall@20": recall, "ndcg@20": recall / 2}})
    )
    return str(run)


def table(*arguments):
    command = [sys.executable, str(TABLE), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def test_mean_and_deviation_over_seeds(tmp_path):
    recalls = {"with": [0.31, 0.35, 0.36], "without": [0.1, 0.2, 0.4]}
    folders = [
        write_run(tmp_path, name, seed, recall)
        for name, values in recalls.items()
        for seed, recall in enumerate(values)
    ]
    done = table("--mean", *folders)
    assert done.returncode == 0
    lines = done.stdout.splitlines()
    assert [line.split()[0] for line in lines[2:]] == ["without", "with"]
    for line in lines[2:]:
        name, seeds, recall, _, deviation, ndcg = line.split()[:6]
        assert seeds == "3"
        assert float(recall) == round(np.mean(recalls[name]), 4)
        assert float(ndcg) == round(np.mean(recalls[name]) / 2, 4)
        assert float(deviation) == round(np.std(recalls[name], ddof=1), 4)


def test_one_row_per_run(tmp_path):
    done = table(*(write_run(tmp_path, name, 0, recall) for name, recall in (("a", 0.2), ("b", 0.1))))
    assert done.returncode == 0
    assert [line.split()[:2] for line in done.stdout.splitlines()[2:]] == [["b", "0"], ["a", "0"]]


def test_runs_of_one_folder_are_named_after_their_models(tmp_path):
    models = ("mf", "lgn", "lgn_mm", "own/wide.py:Wide")
    done = table(*(write_run(tmp_path, "a", 0, index / 10, model) for index, model in enumerate(models)))
    assert done.returncode == 0
    names = [line.split()[0] for line in done.stdout.splitlines()[2:]]
    assert names == ["MF", "LightGCN", "RecGOAT", "Wide"]


@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--mean", "/nowhere"], "/nowhere/config.json: cannot be read"),
        (["--mean"], "required: RUN"),
        ([], "--help"),
    ],
)
def test_bad_input(arguments, message):
    done = table(*arguments)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert message in done.stderr


def test_run_without_test_metrics(tmp_path):
    folder = write_run(tmp_path, "a", 0, 0.2)
    (Path(folder) / "result.json").write_text('{"status": "interrupted", "best_epoch": 3, "seconds": 1.0}')
    done = table(folder)
    assert done.returncode == 2
    assert f"{folder}: not a finished run (its JSON files lack 'test')" in done.stderr


def test_two_runs_of_one_seed(tmp_path):
    folders = [write_run(tmp_path / parent, "a", 0, recall) for parent, recall in (("x", 0.2), ("y", 0.1))]
    done = table("--mean", *folders)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "two runs of seed 0" in done.stderr


def test_help():
    done = table("--help")
    assert done.returncode == 0
    assert "python scripts/table.py --mean" in done.stdout


def test_metrics_that_are_asked_for(tmp_path):
    folders = [write_run(tmp_path, name, 0, recall) for name, recall in (("a", 0.1), ("b", 0.2))]
    for folder, novelty in zip(folders, (9.5, 8.25)):
        path = Path(folder) / "result.json"
        result = json.loads(path.read_text()) | {"beyond_accuracy": {"test": {"novelty@20": novelty}}}
        path.write_text(json.dumps(result))
    done = table("--metrics", "novelty@20,recall@20", *folders)
    assert done.returncode == 0
    header, *lines = (line.split() for line in done.stdout.splitlines()[1:])
    assert header[-3:] == ["novelty@20", "recall@20", "seconds"]
    assert [line[-3:-1] for line in lines] == [["8.2500", "0.2000"], ["9.5000", "0.1000"]]
    done = table("--metrics", "gini@20", *folders)
    assert done.returncode == 2 and "--metrics gini@20: a run of a has no such metric" in done.stderr


def test_validation_results_under_the_names_of_the_runs(tmp_path):
    folders = [write_run(tmp_path, "a", seed, 0.5) for seed in (0, 1)]
    for folder, recall in zip(folders, (0.2, 0.3)):
        config, result = Path(folder) / "config.json", Path(folder) / "result.json"
        config.write_text(json.dumps(json.loads(config.read_text()) | {"name": "MGCN trial"}))
        result.write_text(json.dumps(json.loads(result.read_text()) | {"valid": {"recall@20": recall}}))
    done = table("--mean", "--split", "valid", *folders)
    assert done.returncode == 0
    title, _, row = done.stdout.splitlines()
    assert title == "Validation results on toy at the epoch selected on validation"
    assert row.split() == ["MGCN", "trial", "2", "0.2500", "±", "0.0707"]


def test_the_title_names_the_split_that_the_epochs_were_selected_on(tmp_path):
    folders = [write_run(tmp_path, name, 0, 0.1) for name in ("a", "b")]
    path = Path(folders[0]) / "result.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"protocol": {"selected_on": "test"}}))
    for runs, split in ((folders[:1], "test"), (folders[1:], "validation"), (folders, "test or validation")):
        title = table(*runs).stdout.splitlines()[0]
        assert title == f"Test results on toy at the epoch selected on {split}"


def test_metrics_of_cold_items_are_columns(tmp_path):
    folder = write_run(tmp_path, "a", 0, 0.1)
    path = Path(folder) / "result.json"
    cold = {"items": 9, "vectors": "model", "test": {"cold": {"recall@20": 0.03}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"cold_items": cold}))
    done = table("--metrics", "cold recall@20,recall@20", folder)
    assert done.returncode == 0 and done.stdout.splitlines()[2].split()[-3:-1] == ["0.0300", "0.1000"]
