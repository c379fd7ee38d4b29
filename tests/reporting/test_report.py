"""The command line of report.py, and reports on trained models."""

import itertools
import json
import sys

import numpy as np
import pytest
from report_helpers import METRICS, Page, check_figure, read_table, run_report, two_names, write_run

from main import main as train


@pytest.mark.parametrize(
    "flags, told",
    [
        (["--ours", "Nobody"], "there are LightGCN, RecGOAT"),
        (["--curve", "lerning"], "no such setting"),
        (["--curve", "lr"], "two values of it"),
        (["--triangle"], "two values of alpha or beta"),
        (["--triangle", "--figures", "0"], "contradicts"),
        (["--what"], "--help"),
    ],
)
def test_wishes_that_cannot_be_fulfilled(tmp_path, capsys, flags, told):
    two_names(tmp_path / "runs")
    assert run_report(tmp_path / "runs", *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1 and told in error


def test_output_that_is_a_file(tmp_path, capsys):
    write_run(tmp_path / "runs", 1, 0.1)
    (tmp_path / "out").write_text("")
    assert run_report(tmp_path / "runs", "--figures", "0") == 2 and "--output" in capsys.readouterr().err


def test_without_matplotlib(tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    two_names(tmp_path / "runs")
    assert run_report(tmp_path / "runs") == 2
    assert "pip install" in capsys.readouterr().err
    assert run_report(tmp_path / "runs", "--figures", "0") == 0


def test_two_trained_runs(small_dataset, capsys):
    runs = small_dataset.parent.parent / "runs"
    for seed, model in itertools.product((1, 2), ("lgn", "lgn_mm")):
        assert (
            train(
                [
                    "--dataset",
                    "small",
                    "--data_root",
                    str(small_dataset.parent),
                    "--path",
                    str(runs),
                    "--recdim",
                    "8",
                    "--attn_heads",
                    "2",
                    "--item_knn_k",
                    "4",
                    "--topks",
                    "5,10",
                    "--epochs",
                    "3",
                    "--eval_every",
                    "1",
                    "--tensorboard",
                    "0",
                    "--cuda",
                    "0",
                    "--model",
                    model,
                    "--seed",
                    str(seed),
                ]
            )
            == 0
        )
    capsys.readouterr()
    assert run_report(runs) == 0
    results = [
        json.loads((folder / "result.json").read_text())
        for folder in sorted(runs.iterdir())
        if "_lgn_mm_" in folder.name
    ]
    (row,) = (row for row in read_table(runs, "small_results") if row["method"] == "RecGOAT")
    for metric in METRICS:
        assert float(row[metric]) == pytest.approx(np.mean([result["test"][metric] for result in results]))
    users = read_table(runs, "small_users")
    assert {row["method"] for row in users} == {"LightGCN", "RecGOAT"} and all(
        float(row["epoch_seconds"]) > 0 for row in read_table(runs, "small_seconds")
    )
    check_figure(runs.parent / "out" / "small_learning")
    Page((runs.parent / "out" / "report.html").read_text())
