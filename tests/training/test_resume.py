"""A run that was stopped or killed and then resumed ends bit for bit like one that was never interrupted."""

import json
import os
import platform
import random
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from resume_helpers import MODELS, STEPS, assert_same, command, interrupt
from small_runs import only, read_json, read_metrics, read_state
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import procedure
from benchmarks.processes import differences, finish, launch, outcome, stop_and_resume, wait_for
from main import main
from models.mf import MF
from training.run import Run
from training.stop import Stop

MAIN = Path(__file__).resolve().parents[2] / "main.py"


@pytest.fixture(params=MODELS)
def model(request):
    return MODELS[request.param]


# ---------------------------------------------------------------- stopped


def test_the_comparison_sees_a_single_changed_number(whole, tmp_path):
    folder = whole(model="mf", epochs=2)
    other = shutil.copytree(folder, tmp_path / "other")
    state = read_state(other / "last.pt")
    state["optimizer"]["state"][0]["exp_avg"][0, 0] += 1e-7
    torch.save(state, other / "last.pt")
    assert len(differences(outcome(folder), outcome(other))) == 1


@pytest.mark.parametrize(
    "number, exit_code, step",
    [
        pytest.param(signal.SIGTERM, 143, 1, id="first step"),
        pytest.param(signal.SIGINT, 130, 13, id="within an epoch"),
        pytest.param(signal.SIGTERM, 143, 16, id="last step of an epoch"),
        # Nothing is left to do, so the run is finished.
        pytest.param(signal.SIGINT, 0, 48, id="last step"),
    ],
)
def test_a_signal_stops_a_run_which_can_be_resumed(
    small_dataset, tmp_path, monkeypatch, whole, model, number, exit_code, step
):
    folder, code = interrupt(small_dataset, tmp_path / "runs", monkeypatch, step, number, **model)
    result = read_json(folder)
    assert code == exit_code
    if code:
        assert (result["status"], result["reason"]) == ("interrupted", number.name)
        assert (result["epoch"], result["step"]) == divmod(step, STEPS)
        assert main(["--resume", str(folder)]) == 0
    assert read_json(folder)["status"] == "finished"
    assert_same(whole(**model), folder)


def test_a_process_that_gets_a_signal_saves_and_ends(small_dataset, tmp_path):
    endless = dict(model="mf", epochs=10**6, eval_every=10**6, save_every=10**6)
    words = [sys.executable, MAIN, *command(small_dataset, tmp_path / "runs", **endless)]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    wait_for(lambda: list(tmp_path.glob("runs/*/metrics.jsonl")), process)
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130 and "send it again to quit at once" in err and "Traceback" not in err
    folder = only(tmp_path / "runs")
    assert read_json(folder)["status"] == "interrupted" and (folder / "last.pt").exists()


@pytest.mark.parametrize("seconds, code", [(0, 0), (1.1, 143)])
def test_a_second_signal_ends_a_process_at_once_unless_it_is_the_first_one_passed_on(seconds, code):
    process = os.fork()
    if not process:
        signal.alarm(60)
        with Stop() as stop:
            os.kill(os.getpid(), signal.SIGINT)
            assert stop() and stop.exit_code == 130
            time.sleep(seconds)
            os.kill(os.getpid(), signal.SIGTERM)
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]) == code


def test_max_minutes_stops_a_run_which_can_be_resumed(small_dataset, tmp_path, whole, model):
    """Ten processes with no time make one step each; the last one makes the rest."""
    runs = tmp_path / "runs"
    assert main(command(small_dataset, runs, max_minutes=1e-9, **model)) == 0
    folder, processes = only(runs), 1
    while (result := read_json(folder))["status"] == "interrupted":
        assert result["reason"] == "max_minutes"
        assert STEPS * result["epoch"] + result["step"] == processes
        minutes = 1e-9 if processes < 10 else 10
        assert main(["--resume", str(folder), "--max_minutes", str(minutes)]) == 0
        processes += 1
    assert processes == 11
    assert_same(whole(**model), folder)


def test_a_run_can_be_resumed_with_more_epochs(small_dataset, tmp_path, whole, model):
    runs = tmp_path / "runs"
    assert main(command(small_dataset, runs, epochs=2, **model)) == 0
    folder = only(runs)
    assert main(["--resume", str(folder), "--epochs", "6"]) == 0
    assert read_json(folder, "config.json")["epochs"] == 6
    assert_same(whole(**model), folder)


def test_a_finished_run_that_trains_on_has_no_result_until_its_end(small_dataset, tmp_path, monkeypatch):
    runs = tmp_path / "runs"
    assert main(command(small_dataset, runs, epochs=2, **MODELS["lgn"])) == 0
    folder = only(runs)
    assert {"result.json", "test_ranking.npz"} <= {path.name for path in folder.iterdir()}

    def die(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(procedure, "train_epoch", die)
    main(["--resume", str(folder), "--epochs", "6"])
    assert not {"result.json", "test_ranking.npz"} & {path.name for path in folder.iterdir()}


def test_a_resumed_run_remembers_its_patience(small_dataset, tmp_path, monkeypatch, whole):
    settings = {**MODELS["lgn"], "epochs": 400, "eval_every": 1, "patience": 3, "lr": 0.3}
    folder, code = interrupt(small_dataset, tmp_path / "runs", monkeypatch, 20, **settings)
    assert code == 143 and main(["--resume", str(folder)]) == 0
    assert read_json(folder)["epochs"] < 400
    assert_same(whole(**settings), folder)


def test_the_seconds_of_a_resumed_epoch_include_those_before(small_dataset, tmp_path, monkeypatch):
    settings, original = {"model": "mf", "eval_every": 1}, MF.loss
    with monkeypatch.context() as patch:
        patch.setattr(MF, "loss", lambda self, batch: time.sleep(0.1) or original(self, batch))
        folder, _ = interrupt(small_dataset, tmp_path / "runs", monkeypatch, 13, **settings)
    shutil.copytree(folder, tmp_path / "older")
    assert main(["--resume", str(folder)]) == 0
    seconds = [line["epoch_seconds"] for line in read_metrics(folder)]
    assert seconds[1] >= 0.5 > seconds[2]  # five steps of the second epoch were slow
    older = tmp_path / "older" / "last.pt"
    state = read_state(older)
    del state["progress"]["epoch_seconds"]  # as earlier versions wrote it
    torch.save(state, older)
    assert main(["--resume", str(older.parent)]) == 0
    assert_same(folder, older.parent)


def test_resuming_a_finished_run_changes_nothing(whole, model):
    folder = whole(**model)
    before = outcome(folder)
    assert main(["--resume", str(folder)]) == 0
    assert differences(before, outcome(folder)) == []


def test_a_folder_without_checkpoints_starts_again(tmp_path, whole, model, capsys):
    folder = shutil.copytree(whole(**model), tmp_path / "copy")
    for name in ("best.pt", "last.pt", "result.json"):
        (folder / name).unlink()
    assert main(["--resume", str(folder)]) == 0
    assert "resumed after epoch 0" in capsys.readouterr().out
    assert_same(only(tmp_path / "whole"), folder)


# ---------------------------------------------------------------- killed


@pytest.mark.slow
@pytest.mark.parametrize("name, seeds", [("lgn", (0,)), ("lgn_mm", (1, 2))])
def test_kill_9_at_random_moments(small_dataset, tmp_path, whole, name, seeds):
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
        assert len(read_metrics(folder)) == 8 and not list(folder.glob(".*.tmp"))
        assert_events_fit(folder)


class Killed(BaseException):
    """Raised in place of a SIGKILL at an exact place of the program."""


@pytest.mark.parametrize("checkpoint", ["best.pt", "last.pt"])
@pytest.mark.parametrize("time_of_it", [1, 2])
def test_killed_between_the_log_and_a_checkpoint(
    small_dataset, tmp_path, monkeypatch, whole, checkpoint, time_of_it
):
    settings = {**MODELS["lgn"], "eval_every": 1, "lr": 0.1}
    original, saved = Run.save, []

    def save(self, name):
        saved.append(name)
        if name == checkpoint and saved.count(name) == time_of_it:
            raise Killed
        original(self, name)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "save", save)
        with pytest.raises(Killed):
            main(command(small_dataset, tmp_path / "runs", **settings))
    folder = only(tmp_path / "runs")
    (folder / ".last.pt.abc.recgoat.tmp").write_bytes(b"half")
    assert main(["--resume", str(folder)]) == 0
    assert_same(whole(**settings), folder)
    assert not list(folder.glob(".*.tmp"))


# ---------------------------------------------------------------- TensorBoard


def assert_events_fit(folder):
    """Assert that TensorBoard shows every epoch at most once, in order, with the loss of metrics.jsonl.

    Returns the epochs shown.
    """
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    expected = {line["epoch"]: line["train"]["loss"] for line in read_metrics(folder)}
    points = events.Scalars("2_training/loss")
    epochs = [point.step for point in points]
    assert epochs == sorted(set(epochs))
    for point in points:
        if point.step in expected:
            assert point.value == pytest.approx(expected[point.step], rel=1e-5)
    return epochs


@pytest.mark.parametrize("step", [3, 29])
def test_events_continue_where_they_stopped(small_dataset, tmp_path, monkeypatch, step):
    settings = {**MODELS["lgn_mm"], "tensorboard": 1}
    folder, _ = interrupt(small_dataset, tmp_path / "runs", monkeypatch, step, **settings)
    # Without last.pt, epochs after the best one are trained and logged once more.
    (folder / "last.pt").unlink()
    assert main(["--resume", str(folder)]) == 0
    assert assert_events_fit(folder) == [1, 2, 3, 4, 5, 6]


def model_curves(folder):
    """{tag: [(epoch, value), ...]} of the figures of the model, and the text of those that never varied."""
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0})
    events.Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith("4_model")]
    *_, constants = events.Tensors("0_run/constants/text_summary")
    text = constants.tensor_proto.string_val[0].decode()
    return {tag: [(point.step, point.value) for point in events.Scalars(tag)] for tag in tags}, text


def test_figures_of_the_model_that_vary_late_have_all_points_after_a_resume(small_dataset, tmp_path, whole):
    """The plans are those of the first step until the fourth epoch."""
    settings = {**MODELS["lgn_mm"], "bpr_batch": 128, "plan_every": 6, "eval_every": 1, "tensorboard": 1}
    expected = model_curves(whole(**settings))
    assert [epoch for epoch, _ in expected[0]["4_model/plan/text/w1"]] == [1, 2, 3, 4, 5, 6]
    assert main(command(small_dataset, tmp_path / "runs", **settings, epochs=2)) == 0
    folder = only(tmp_path / "runs")
    early = {name: (folder / name).read_bytes() for name in ("best.pt", "last.pt")}
    assert main(["--resume", str(folder), "--epochs", "6"]) == 0
    assert model_curves(folder) == expected
    for name, content in early.items():  # as if it had been killed before its next checkpoint
        (folder / name).write_bytes(content)
    assert main(["--resume", str(folder)]) == 0
    assert model_curves(folder) == expected


# ---------------------------------------------------------------- what a run says of itself


def test_a_run_keeps_the_record_of_what_it_was_made_with(stopped, monkeypatch, capsys):
    first = read_json(stopped, "config.json")["provenance"]

    def resume(version):
        """Whether a process with a version of Python notes it, and the record that it leaves."""
        with monkeypatch.context() as patch:
            patch.setattr(platform, "python_version", lambda: version)
            assert main(["--resume", str(stopped), "--max_minutes", "1e-9"]) == 0
        noted = (
            "note: continued with other versions than before (python); config.json has both\n"
            in capsys.readouterr().out
        )
        return noted, read_json(stopped, "config.json")["provenance"]

    other = {**first, "python": "9.9.9"}
    assert resume(first["python"]) == (False, first)
    assert resume("9.9.9") == (True, {**first, "resumed": [other]})
    assert resume("9.9.9") == (False, {**first, "resumed": [other]})
    assert resume(first["python"]) == (True, {**first, "resumed": [other, first]})
    settings = read_json(stopped, "config.json")
    del settings["provenance"]  # a record that is lost
    (stopped / "config.json").write_text(json.dumps(settings))
    assert resume(first["python"]) == (False, first)


def test_the_command_that_continues_a_run_is_quoted(small_dataset, tmp_path, monkeypatch):
    folder, _ = interrupt(small_dataset, tmp_path / "my runs", monkeypatch, 1, **MODELS["lgn"])
    command = (folder / "train.log").read_text().rpartition("continue with: ")[2]
    assert shlex.split(command) == ["python", "main.py", "--resume", str(folder)]


def test_interrupted_result_has_the_best_metrics_so_far(stopped):
    result, [line] = read_json(stopped), read_metrics(stopped)
    assert (result["status"], result["epoch"], result["step"]) == ("interrupted", 2, 4)
    assert result["best_epoch"] == 2 and result["valid"] == line["valid"]
    assert json.dumps(result["versions"]) and "test" not in result
