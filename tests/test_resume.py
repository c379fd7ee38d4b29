"""A run that was stopped, killed or out of luck and then resumed ends in the very same bits as one left alone."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import stop_after

from benchmarks.faults import (
    differences,
    errors,
    finish,
    launch,
    outcome,
    run_folders,
    stop_and_resume,
    wait_for,
)
from main import main
from models.mf import MF
from training.checkpoint import newest_checkpoint
from training.run import Run
from training.stop import Stop
from utils import lock_file

MAIN = Path(__file__).resolve().parents[1] / "main.py"
MODELS = {
    "lgn": {"model": "lgn"},
    "freedom": {"model": "freedom"},
    "lgn_mm": {
        "model": "lgn_mm",
        "user_text_feat": "mean",
        "feat_dropout": 0.1,
        "branch_dropout": 0.1,
        "plan_every": 3,
    },
}


def command(folder, runs, **changes):
    """Command line of a run on small_dataset: 6 epochs of 8 steps."""
    settings = {
        "dataset": folder.name,
        "data_root": folder.parent,
        "path": runs,
        "recdim": 8,
        "attn_heads": 2,
        "item_knn_k": 4,
        "user_knn_k": 4,
        "topks": "3,5",
        "epochs": 6,
        "eval_every": 2,
        "bpr_batch": 32,
        "lr": 0.02,
        "tensorboard": 0,
        "cuda": 0,
        "threads": 1,
        **changes,
    }
    return [str(word) for name, value in settings.items() for word in (f"--{name}", value)]


def only(runs):
    (folder,) = runs.iterdir()
    return folder


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


@pytest.fixture
def whole(small_dataset, tmp_path):
    """Function: settings -> run folder of an uninterrupted run by them."""

    def run(**changes):
        runs = tmp_path / "whole"
        assert main(command(small_dataset, runs, **changes)) == 0
        return only(runs)

    return run


def assert_same(folder, other):
    a, b = outcome(folder), outcome(other)
    assert differences(a, b) == []
    assert [line["epoch"] for line in b["metrics"]] == sorted({line["epoch"] for line in b["metrics"]})


def interrupted(small_dataset, runs, monkeypatch, steps, number=signal.SIGTERM, **changes):
    """Run folder of a run that got a signal in its n-th step, and the exit code."""
    with monkeypatch.context() as patch:
        stop_after(patch, steps, lambda: os.kill(os.getpid(), number))
        code = main(command(small_dataset, runs, **changes))
    return only(runs), code


# ---------------------------------------------------------------- stopped, and resumed


def test_the_oracle_sees_a_changed_bit(whole, tmp_path):
    folder = whole(model="mf", epochs=2)
    other = shutil.copytree(folder, tmp_path / "other")
    state = torch.load(other / "last.pt", weights_only=True)
    state["optimizer"]["state"][0]["exp_avg"][0, 0] += 1e-7
    torch.save(state, other / "last.pt")
    assert len(differences(outcome(folder), outcome(other))) == 1


@pytest.mark.parametrize(
    "number, expected, steps",
    [  # in the first step; within an epoch; in its last; in the very last of all
        (signal.SIGTERM, 143, 1),
        (signal.SIGINT, 130, 13),
        (signal.SIGTERM, 143, 16),
        (signal.SIGINT, 130, 48),
    ],
)
def test_signals(small_dataset, tmp_path, monkeypatch, whole, model, number, expected, steps):
    folder, code = interrupted(small_dataset, tmp_path / "runs", monkeypatch, steps, number, **model)
    result = json.loads((folder / "result.json").read_text())
    if steps == 48:
        assert (code, result["status"]) == (0, "finished")  # nothing was left to do
    else:
        assert (code, result["status"], result["reason"]) == (expected, "interrupted", number.name)
        assert (result["epoch"], result["step"]) == divmod(steps, 8)
        assert main(["--resume", str(folder)]) == 0
    assert json.loads((folder / "result.json").read_text())["status"] == "finished"
    assert_same(whole(**model), folder)


def test_signals_reach_a_real_process_and_the_second_leaves_at_once(small_dataset, tmp_path):
    words = [
        sys.executable,
        MAIN,
        *command(
            small_dataset, tmp_path / "runs", model="mf", epochs=10**6, eval_every=10**6, save_every=10**6
        ),
    ]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")), process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "once more to leave at once" in err and "Traceback" not in err
    folder = only(tmp_path / "runs")
    assert (
        json.loads((folder / "result.json").read_text())["status"] == "interrupted"
        and (folder / "last.pt").exists()
    )


def test_a_second_signal_leaves_at_once(small_dataset, tmp_path):
    process = os.fork()
    if not process:
        signal.alarm(60)
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop() and stop.exit_code == 143
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == 143


def test_max_minutes(small_dataset, tmp_path, whole, model):
    runs = tmp_path / "runs"
    assert main(command(small_dataset, runs, max_minutes=1e-9, **model)) == 0
    folder, times = only(runs), 1
    while (result := json.loads((folder / "result.json").read_text()))["status"] == "interrupted":
        assert (
            result["reason"] == "max_minutes" and 8 * result["epoch"] + result["step"] == times
        )  # one step a process
        minutes = 1e-9 if times < 20 else 10
        assert main(["--resume", str(folder), "--max_minutes", str(minutes)]) == 0
        times += 1
    assert times == 21
    assert_same(whole(**model), folder)


@pytest.mark.slow
@pytest.mark.parametrize("name, seeds", [("lgn", (0, 1)), ("lgn_mm", (2, 3, 4))])
def test_sigkill_at_random_moments(small_dataset, tmp_path, whole, name, seeds):
    settings = {**MODELS[name], "epochs": 8, "eval_every": 1, "patience": 0, "tensorboard": 1}
    reference, started = whole(**settings), time.perf_counter()
    assert finish(launch(command(small_dataset, tmp_path / "timed", **settings), tmp_path / "log")) == 0
    duration = time.perf_counter() - started
    for seed in seeds:
        work = tmp_path / f"killed{seed}"
        work.mkdir()
        argv = command(small_dataset, work / "runs", **settings, save_every=1 + seed % 3)
        folder, _ = stop_and_resume(argv, work, signal.SIGKILL, random.Random(seed), duration, 2)
        assert_same(reference, folder)
        assert len(outcome(folder)["metrics"]) == 8 and not list(folder.glob(".*.tmp"))
        assert_events_fit(folder)


class Killed(BaseException):
    """Stands for SIGKILL at an exact place."""


@pytest.mark.parametrize("before", ["best.pt", "last.pt"])
@pytest.mark.parametrize("time_of_it", [1, 2])
def test_killed_between_the_log_and_a_checkpoint(
    small_dataset, tmp_path, monkeypatch, whole, before, time_of_it
):
    settings = {**MODELS["lgn"], "eval_every": 1, "lr": 0.1}
    original, seen = Run.save, []

    def save(self, name):
        seen.append(name)
        if seen.count(before) == time_of_it and name == before:
            raise Killed
        original(self, name)

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(Run, "save", save)
        main(command(small_dataset, tmp_path / "runs", **settings))
    folder = only(tmp_path / "runs")
    (folder / ".last.pt.abc.tmp").write_bytes(b"half")
    assert main(["--resume", str(folder)]) == 0
    assert_same(whole(**settings), folder)
    assert not list(folder.glob(".*.tmp"))


def test_more_epochs(small_dataset, tmp_path, whole, model):
    runs = tmp_path / "runs"
    assert main(command(small_dataset, runs, epochs=2, **model)) == 0
    folder = only(runs)
    assert main(["--resume", str(folder), "--epochs", "6"]) == 0
    assert json.loads((folder / "config.json").read_text())["epochs"] == 6
    assert_same(whole(**model), folder)


def test_a_finished_run_stays_as_it_is(whole, model):
    folder = whole(**model)
    before = outcome(folder)
    assert main(["--resume", str(folder)]) == 0
    assert differences(before, outcome(folder)) == []


def test_early_stopping_is_remembered(small_dataset, tmp_path, monkeypatch, whole):
    settings = {**MODELS["lgn"], "epochs": 400, "eval_every": 1, "patience": 3, "lr": 0.3}
    folder, code = interrupted(small_dataset, tmp_path / "runs", monkeypatch, 20, **settings)
    assert code == 143 and main(["--resume", str(folder)]) == 0
    assert json.loads((folder / "result.json").read_text())["epochs"] < 400
    assert_same(whole(**settings), folder)


def test_a_folder_without_checkpoints_starts_afresh(small_dataset, tmp_path, whole, model, capsys):
    folder = shutil.copytree(whole(**model), tmp_path / "copy")
    for name in ("best.pt", "last.pt", "result.json"):
        (folder / name).unlink()
    assert main(["--resume", str(folder)]) == 0
    assert "resumed after epoch 0" in capsys.readouterr().out
    assert_same(only(tmp_path / "whole"), folder)


# ---------------------------------------------------------------- events


def assert_events_fit(folder):
    """TensorBoard shows each epoch that metrics.jsonl has at most once, in order, and with its values."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    expected = {
        line["epoch"]: line["train"]["loss"]
        for line in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    }
    points = events.Scalars("train/loss")
    assert [point.step for point in points] == sorted({point.step for point in points})
    assert all(
        point.value == pytest.approx(expected[point.step], rel=1e-5)
        for point in points
        if point.step in expected
    )
    return [point.step for point in points]


@pytest.mark.parametrize("steps", [3, 29])
def test_events_go_on_where_they_stopped(small_dataset, tmp_path, monkeypatch, steps):
    folder, _ = interrupted(
        small_dataset, tmp_path / "runs", monkeypatch, steps, tensorboard=1, **MODELS["lgn_mm"]
    )
    (folder / "last.pt").unlink()  # so that epochs are done, and logged, once more
    assert main(["--resume", str(folder)]) == 0
    assert assert_events_fit(folder) == [1, 2, 3, 4, 5, 6]


# ---------------------------------------------------------------- what a resumed run refuses


@pytest.fixture
def stopped(small_dataset, tmp_path, monkeypatch):
    """Folder of a run of lgn_mm stopped in its third epoch."""
    return interrupted(small_dataset, tmp_path / "runs", monkeypatch, 20, **MODELS["lgn_mm"])[0]


def refused(capsys, argv, *words):
    capsys.readouterr()
    assert main(argv) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1 and all(word in err for word in words), err


def test_changed_settings(stopped, capsys):
    refused(
        capsys,
        ["--resume", str(stopped), "--lr", "0.5", "--recdim", "16", "--seed", "1", "--eval_chunk", "7"],
        "--lr 0.02 -> 0.5",
        "--recdim 8 -> 16",
        "--seed 2025 -> 1",
    )
    refused(
        capsys,
        ["--resume", str(stopped), "--recipe", "released"],
        "--recipe paper -> released",
        "--feat_proj 0 -> 1",
    )
    refused(capsys, ["--resume", str(stopped), "--epochs", "5"], "--epochs 5", "started with 6")


def test_settings_repeated_or_without_effect_on_the_result_are_fine(stopped, small_dataset, whole):
    assert main(["--resume", str(stopped), "--lr", "0.02", "--save_every", "2", "--tensorboard", "1"]) == 0
    assert_same(whole(**MODELS["lgn_mm"]), stopped)


def one_interaction(folder):
    lines = (folder / "train.txt").read_text().splitlines()
    (folder / "train.txt").write_text("\n".join([lines[0].rsplit(" ", 1)[0], *lines[1:]]) + "\n")


def one_feature(folder):
    features = np.load(folder / "text_feat.npy")
    features[3, 3] = np.nextafter(features[3, 3], np.float32(9))
    np.save(folder / "text_feat.npy", features)


def one_test_item(folder):
    pairs = (folder / "test.txt").read_text().splitlines()
    (folder / "test.txt").write_text("\n".join(pairs[:-1]) + "\n")


@pytest.mark.parametrize("change", [one_interaction, one_feature, one_test_item])
def test_changed_data(stopped, small_dataset, capsys, change):
    change(small_dataset)
    refused(capsys, ["--resume", str(stopped)], "the data have changed", "start a new run")


def test_data_may_move(stopped, small_dataset, tmp_path, whole):
    reference = whole(**MODELS["lgn_mm"])
    shutil.move(small_dataset.parent, tmp_path / "moved")
    assert main(["--resume", str(stopped), "--data_root", str(tmp_path / "moved")]) == 0
    assert_same(reference, stopped)


def test_a_folder_in_use(stopped, capsys):
    with lock_file(stopped / ".lock"):
        refused(capsys, ["--resume", str(stopped)], "another process is at work in this folder")
    assert main(["--resume", str(stopped)]) == 0


def test_a_folder_that_is_not_there(tmp_path, capsys):
    refused(
        capsys,
        ["--resume", str(tmp_path / "nowhere")],
        "nowhere/config.json: cannot be read",
        "--resume takes a run folder",
    )


# ---------------------------------------------------------------- damaged checkpoints


def cut(path):
    path.write_bytes(path.read_bytes()[:-1000])


def flip(path):
    """Change one bit of the weights, which torch.load itself would not notice."""
    content = bytearray(path.read_bytes())
    weights = max(torch.load(path, weights_only=True)["model"].values(), key=torch.numel).numpy().tobytes()
    content[content.index(weights) + 10] ^= 1
    path.write_bytes(content)


def nothing(path):
    path.write_bytes(b"")


@pytest.mark.parametrize("damage", [cut, flip, nothing])
def test_a_damaged_last_checkpoint_is_named_and_best_is_used(stopped, capsys, whole, damage):
    damage(stopped / "last.pt")
    assert main(["--resume", str(stopped)]) == 0
    out = capsys.readouterr().out
    assert f"note: {stopped / 'last.pt'}: is damaged" in out and "resumed after epoch 2\n" in out
    assert_same(whole(**MODELS["lgn_mm"]), stopped)


def test_without_a_good_checkpoint_the_run_starts_again(stopped, capsys, whole):
    cut(stopped / "last.pt")
    flip(stopped / "best.pt")
    assert main(["--resume", str(stopped)]) == 0
    out = capsys.readouterr().out
    assert out.count("is damaged") == 2 and "resumed after epoch 0\n" in out
    assert_same(whole(**MODELS["lgn_mm"]), stopped)


# ---------------------------------------------------------------- scoring a checkpoint


def test_evaluate_only_reproduces_the_result(small_dataset, whole, model, capsys):
    folder = whole(**model)
    table = (folder / "train.log").read_text().split("best epoch")[1]
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    capsys.readouterr()
    assert main(["--evaluate_only", "1", "--checkpoint", str(folder / "best.pt")]) == 0
    out = capsys.readouterr().out
    assert out.split("best epoch")[1] == table
    result = json.loads((folder / "result.json").read_text())
    for k in (3, 5):
        assert f"{result['test'][f'ndcg@{k}']:.4f}" in out and f"{result['valid'][f'recall@{k}']:.4f}" in out
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before


def test_evaluate_only_takes_other_fusion_weights(whole, capsys):
    def table(folder, *flags):
        capsys.readouterr()
        assert main(["--evaluate_only", "1", "--checkpoint", str(folder / "best.pt"), *flags]) == 0
        return capsys.readouterr().out

    fixed = whole(**MODELS["lgn_mm"])
    assert table(fixed) != table(fixed, "--beta", "0", "--alpha", "1")


def test_evaluate_only_on_another_dataset(small_dataset, whole, capsys):
    folder = whole(**MODELS["lgn"])
    (small_dataset / "valid.txt").write_text((small_dataset / "valid.txt").read_text() + "40 3\n")
    refused(
        capsys,
        ["--evaluate_only", "1", "--checkpoint", str(folder / "best.pt")],
        "best.pt: does not fit this dataset",
        "trained with",
    )


# ---------------------------------------------------------------- failures


def failed(folder):
    """The error in result.json; every checkpoint of the folder is finite."""
    for name in ("last.pt", "best.pt"):
        if (folder / name).exists():
            assert all(
                weight.isfinite().all()
                for weight in torch.load(folder / name, weights_only=True)["model"].values()
            )
    result = json.loads((folder / "result.json").read_text())
    assert result["status"] == "failed"
    return result["error"]


def test_a_learning_rate_that_explodes(small_dataset, tmp_path, capsys):
    assert main(command(small_dataset, tmp_path / "runs", model="lgn", lr=1e30)) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert (
        err.startswith("error: epoch 1, step ")
        and "not finite" in err
        and "there is no checkpoint yet" in err
        and "--lr" in err
    )
    assert failed(only(tmp_path / "runs")) in err


def spoil(monkeypatch, step, term):
    """Let a term of the loss be NaN in the n-th step."""
    original, calls = MF.loss, []

    def loss(self, *batch):
        terms = original(self, *batch)
        calls.append(1)
        if len(calls) == step:
            terms[term] = terms[term] * torch.nan
            terms["loss"] = terms["loss"] + terms[term]
        return terms

    monkeypatch.setattr(MF, "loss", loss)


@pytest.mark.parametrize("term", ["bpr", "norm"])
def test_a_loss_that_is_not_finite(small_dataset, tmp_path, monkeypatch, capsys, whole, term):
    reference = whole(**MODELS["lgn"])
    with monkeypatch.context() as patch:
        spoil(patch, 21, term)  # epoch 3, step 5
        assert main(command(small_dataset, tmp_path / "runs", **MODELS["lgn"])) == 1
    folder, err = only(tmp_path / "runs"), capsys.readouterr().err.splitlines()[-1]
    assert (
        f"epoch 3, step 5: the loss is not finite ({term})" in err
        and f"the last good checkpoint is {folder / 'last.pt'}" in err
    )
    assert failed(folder) in err and newest_checkpoint(folder)[0]["progress"]["epoch"] == 2
    assert main(["--resume", str(folder)]) == 0
    assert_same(reference, folder)


def test_weights_that_are_not_finite_though_every_loss_is(small_dataset, tmp_path, monkeypatch, capsys):
    original, calls = MF.loss, []

    def loss(self, *batch):
        calls.append(1)
        if len(calls) == 16:  # the last step of epoch 2: no later loss of the epoch shows it
            with torch.no_grad():
                self.user[39] = torch.inf  # the user without train items, so no loss ever shows it
        return original(self, *batch)

    monkeypatch.setattr(MF, "loss", loss)
    assert main(command(small_dataset, tmp_path / "runs", model="mf")) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert "epoch 2, step 8: weights are not finite (user)" in err and "last.pt" in err
    assert failed(only(tmp_path / "runs"))


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9 GiB"),
        MemoryError(),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    ],
)
@pytest.mark.parametrize("place", ["loss", "embeddings"])
def test_out_of_memory(small_dataset, tmp_path, monkeypatch, capsys, error, place):
    def fail(self, *_):
        raise error

    monkeypatch.setattr(MF, place, fail)
    assert main(command(small_dataset, tmp_path / "runs", model="mf")) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: out of memory") and "--bpr_batch" in err and "--eval_chunk" in err


def test_another_runtime_error_is_not_hidden(small_dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(MF, "loss", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(command(small_dataset, tmp_path / "runs", model="mf"))


@pytest.mark.parametrize("limit", [1_000, 6_000, 20_000])
def test_a_disk_without_room(small_dataset, tmp_path, whole, limit):
    reference = whole(**MODELS["lgn"], tensorboard=1)
    argv = command(small_dataset, tmp_path / "runs", **MODELS["lgn"], tensorboard=1)
    code = finish(launch(argv, tmp_path / "log", file_limit=limit), 60)
    told = errors(tmp_path / "log")
    assert code in (1, 2) and len(told) == 1 and told[0].startswith("error:"), (code, told)
    there = run_folders(tmp_path / "runs")
    if there:
        assert main(["--resume", str(there[0])]) == 0
        assert_same(reference, there[0])


def test_a_run_folder_that_vanishes(small_dataset, tmp_path, monkeypatch, capsys):
    with monkeypatch.context() as patch:
        stop_after(patch, 12, lambda: shutil.rmtree(only(tmp_path / "runs")))
        assert main(command(small_dataset, tmp_path / "runs", model="lgn")) == 1
    err = capsys.readouterr().err.splitlines()[-1]
    assert err.startswith("error: ") and "cannot be written" in err
