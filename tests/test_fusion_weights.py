"""scripts/fusion_weights.py: the first row is the run's own result, the others those of --evaluate_only."""

import csv
import json

import pytest
from small_runs import command_line

from main import main
from scripts.fusion_weights import OTHERS, command, make_parser
from utils import UserError


@pytest.fixture
def make_run(small_dataset, tmp_path):
    """Function of settings: the folder of a run of two epochs with them."""

    def run(**changes):
        runs = tmp_path / f"runs{len(list(tmp_path.glob('runs*')))}"
        assert main(command_line(small_dataset, runs, epochs=2, model="lgn_mm", **changes)) == 0
        [folder] = runs.iterdir()
        return folder

    return run


def fill(folder, *runs):
    """Write the report of some runs: the rows of its table."""
    command(make_parser().parse_args([*map(str, runs), "--output", str(folder)]))
    with open(folder / "fusion_weights.csv", newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_rows_are_the_result_of_the_run_and_those_of_other_weights(make_run, tmp_path, capsys):
    run = make_run(beta=0.2, alpha=0.1, fuse_norm="none")
    own, *others = fill(tmp_path / "report", run)
    result = json.loads((run / "result.json").read_text())["test"]
    assert [float(own[name]) for name in ("text", "image", "ID")] == pytest.approx([0.2, 0.1, 0.7])
    assert float(own["recall@5"]) == pytest.approx(result["recall@5"], abs=1e-9)
    assert float(own["ndcg@3"]) == pytest.approx(result["ndcg@3"], abs=1e-9)
    capsys.readouterr()
    for row, weights in zip(others, OTHERS, strict=True):
        flags = ["--beta", str(weights.text), "--alpha", str(weights.image)]
        assert main(["--evaluate_only", "1", "--checkpoint", str(run / "best.pt"), *flags]) == 0
        printed = [line.split() for line in capsys.readouterr().out.splitlines() if line.startswith("test")]
        assert f"{float(row['recall@5']):.4f}" == next(line[2] for line in printed if line[1] == "5")
    assert len({row["ndcg@5"] for row in (own, *others)}) > 2


def test_seeds_are_averaged(make_run, tmp_path):
    runs = make_run(seed=1), make_run(seed=2)
    own, *_ = fill(tmp_path / "report", *runs)
    results = [json.loads((run / "result.json").read_text())["test"]["recall@5"] for run in runs]
    assert float(own["recall@5"]) == pytest.approx(sum(results) / 2, abs=1e-9)
    assert float(own["recall@5 sd"]) == pytest.approx(abs(results[0] - results[1]) / 2**0.5, abs=1e-9)


@pytest.mark.parametrize("changes", [{"fusion": "sum"}, {"learn_fusion_weights": 1}])
def test_runs_without_fixed_weights_are_refused(make_run, tmp_path, changes):
    with pytest.raises(UserError, match="has no fixed weights"):
        fill(tmp_path / "report", make_run(**changes))


def test_runs_of_two_settings_are_refused(make_run, tmp_path):
    with pytest.raises(UserError, match="other fusion weights"):
        fill(tmp_path / "report", make_run(), make_run(beta=0.3))
