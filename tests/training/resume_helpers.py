"""Shared by the tests of resumed runs: runs of six epochs of 8 steps, stopped by a signal and compared."""

import os
import signal

import pytest
from helpers import stop_after
from small_runs import command_line, only

from benchmarks.processes import differences, outcome
from main import main

STEPS = 8  # of an epoch
MODELS = {
    "lgn": {"model": "lgn"},
    "freedom": {"model": "freedom"},
    "bm3": {"model": "bm3"},
    "lattice": {"model": "lattice"},
    "smore": {"model": "smore"},
    "lgn_mm": {
        "model": "lgn_mm",
        "user_text_feat": "mean",
        "feat_dropout": 0.1,
        "branch_dropout": 0.1,
        "plan_every": 3,
    },
}


def command(folder, runs, **changes):
    """Command line of a run on a dataset folder."""
    return command_line(folder, runs, **{"epochs": 6, "eval_every": 2, "bpr_batch": 32, **changes})


@pytest.fixture
def whole(small_dataset, tmp_path):
    """Function: settings -> run folder of a run that was never interrupted."""

    def run(**changes):
        runs = tmp_path / "whole"
        assert main(command(small_dataset, runs, **changes)) == 0
        return only(runs)

    return run


@pytest.fixture
def stopped(small_dataset, tmp_path, monkeypatch):
    """Folder of a run of RecGOAT that was stopped in its third epoch."""
    return interrupt(small_dataset, tmp_path / "runs", monkeypatch, 20, **MODELS["lgn_mm"])[0]


def interrupt(folder, runs, monkeypatch, step, number=signal.SIGTERM, **changes):
    """(run folder, exit code) of a run that gets a signal during a step."""
    with monkeypatch.context() as patch:
        stop_after(patch, step, lambda: os.kill(os.getpid(), number))
        code = main(command(folder, runs, **changes))
    return only(runs), code


def assert_same(folder, other):
    """Assert that two runs ended with the same metrics, result, weights, optimiser and random states."""
    a, b = outcome(folder), outcome(other)
    assert differences(a, b) == []
    epochs = [line["epoch"] for line in b["metrics"]]
    assert epochs == sorted(set(epochs))


def assert_refused(capsys, argv, *words):
    """Assert that main() ends with exit code 2 and one line on stderr that contains these words."""
    capsys.readouterr()
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1, err
    assert all(word in err for word in words), err
