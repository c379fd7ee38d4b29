"""The command line of report.py, and a report on trained models."""

import itertools
import json
import sys

import numpy as np
import pytest
from report_helpers import (
    METRICS,
    Page,
    check_figure,
    read_page,
    read_table,
    run_report,
    write_run,
    write_two_models,
)

from main import main as train


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--ours", "Nobody"], "the rows are LightGCN, RecGOAT"),
        (["--curve", "lerning"], "no run has such a setting"),
        (["--curve", "chosen"], "no run has such a setting"),
        (["--curve", "lr"], "two values of it"),
        (["--triangle"], "two values of alpha or beta"),
        (["--triangle", "--figures", "0"], "contradicts"),
        (["--what"], "--help"),
    ],
)
def test_options_that_do_not_fit(root, capsys, flags, message):
    write_two_models(root)
    assert run_report(root, *flags) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert message in error


def test_output_that_is_a_file(root, capsys):
    write_run(root, 1, 0.1)
    (root.parent / "out").write_text("")
    assert run_report(root, "--figures", "0") == 2
    assert "--output" in capsys.readouterr().err


def test_without_matplotlib(root, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_two_models(root)
    assert run_report(root) == 2
    assert "pip install" in capsys.readouterr().err
    assert run_report(root, "--figures", "0") == 0


def test_report_on_trained_models(small_dataset, root, capsys):
    flags = "--dataset small --recdim 8 --attn_heads 2 --item_knn_k 4 --topks 5,10 --epochs 3 --eval_every 1"
    flags += f" --tensorboard 0 --cuda 0 --data_root {small_dataset.parent} --path {root}"
    for seed, model in itertools.product((1, 2), ("lgn", "lgn_mm")):
        assert train([*flags.split(), "--model", model, "--seed", str(seed)]) == 0
    capsys.readouterr()
    assert run_report(root) == 0
    # A progress bar is drawn only on a terminal.
    assert capsys.readouterr().err.count("\n") == 1
    (row,) = (row for row in read_table(root, "small_results") if row["method"] == "RecGOAT")
    paths = sorted(root.glob("*_lgn_mm_*/result.json"))
    results = [json.loads(path.read_text())["test"] for path in paths]
    assert len(results) == 2
    for metric in METRICS:
        assert float(row[metric]) == pytest.approx(np.mean([result[metric] for result in results]))
    assert {row["method"] for row in read_table(root, "small_users")} == {"LightGCN", "RecGOAT"}
    assert all(float(row["epoch_seconds"]) > 0 for row in read_table(root, "small_seconds"))
    check_figure(root, "small_learning")
    Page(read_page(root))
