"""Runs of main.py by several processes: the run folder of one, resuming with another number, and failures."""

import dataclasses
import json
import os
import resource
import signal
import time

import numpy as np
import pytest
import torch
from helpers import write_small_dataset
from parallel_helpers import ends, errors, run, start_main
from small_runs import command_line, only, read_json, read_metrics, read_state

import training.stop
from main import main
from training.parallel import first_to_fail, remember_folder, restarted
from world import Config

TIMES = {"seconds", "epoch_seconds", "evaluation_seconds", "peak_memory_mb"}
RUN = {"model": "lgn_mm", "attn_heads": 4, "neighbour_weight": 0.5, "bpr_batch": 128, "epochs": 3}
LONG = {**RUN, "model": "lgn", "epochs": 5000, "eval_every": 1000}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_dataset(tmp_path_factory.mktemp("parallel"))


def in_float64(rank):
    """Train in float64, so that the order of sums has no effect on what is compared."""
    import session
    import training.checkpoint
    import training.run

    make_model = session.make_model
    session.make_model = lambda *arguments: make_model(*arguments).double()
    training.checkpoint.is_plain = training.run.is_storable = lambda tensor: True


def complete(p, argv, log):
    """Run main.py in float64 to its end. Returns what it printed."""
    assert run(p, argv, log, in_float64) == ([0] * p, [])
    return log.with_name(f"{log.name}.out").read_text()


def content(folder):
    """What does not depend on the number of processes of a finished run."""
    result, lines = read_json(folder), read_metrics(folder)
    return {
        "result": {name: result[name] for name in ("status", "best_epoch", "epochs", "valid", "test")},
        "metrics": [{name: value for name, value in line.items() if name not in TIMES} for line in lines],
        "lists": dict(np.load(folder / "test_ranking.npz")),
    }


def test_a_run_that_moves_between_one_two_and_four_processes_equals_one_that_never_moves(folder, tmp_path):
    text = complete(1, command_line(folder, tmp_path / "one", **RUN), tmp_path / "log_one")
    command = command_line(folder, tmp_path / "moving", **{**RUN, "epochs": 1})
    first = complete(2, command, tmp_path / "log2")
    one, moving = only(tmp_path / "one"), only(tmp_path / "moving")
    assert first.count("run folder") == 1 and f"run folder {moving}" in first
    for p, epochs in ((1, 2), (4, 3)):
        log = tmp_path / f"log{p}"
        last = complete(p, ["--resume", str(moving), "--epochs", str(epochs)], log)
        assert f"resumed after epoch {epochs - 1}" in last
    assert last.split("best epoch")[1] == text.split("best epoch")[1]
    np.testing.assert_equal(content(moving)["lists"], content(one)["lists"])
    assert sorted(os.listdir(moving)) == sorted(os.listdir(one))
    assert os.listdir(tmp_path / "moving") == [moving.name]
    close = {"rtol": 1e-10, "atol": 1e-10}
    for name in ("result", "metrics"):
        for found, expected in zip(flat(content(moving)[name]), flat(content(one)[name]), strict=True):
            assert found == (pytest.approx(expected, rel=1e-9) if isinstance(expected, float) else expected)
    for name in ("best.pt", "last.pt"):
        found, expected = read_state(moving / name), read_state(one / name)
        assert torch.equal(found["random"]["torch"], expected["random"]["torch"])
        for part in ("model", "optimizer", "sampler"):
            torch.testing.assert_close(found[part], expected[part], **close)


def flat(value):
    """The leaves of nested dicts and lists, in order."""
    if isinstance(value, dict):
        return [leaf for key, entry in value.items() for leaf in (key, *flat(entry))]
    return [leaf for entry in value for leaf in flat(entry)] if isinstance(value, list) else [value]


@pytest.mark.parametrize(
    "changes, message",
    [
        ({"recdim": 9, "model": "lgn"}, "--recdim 9: 2 processes cannot share it equally"),
        ({"attn_heads": 1}, "--attn_heads 1: 2 processes cannot share them equally"),
        ({"model": "itemknn"}, "--model itemknn: is trained by one process"),
        ({"eval_dropout": 1, "eval_dropout_users": 5}, "--eval_dropout_users 5: is for one process"),
        ({"lr": -1.0}, "--lr -1.0: must be at least"),
        ({"path": "/dev/null/runs"}, "cannot be created"),
    ],
)
def test_a_mistake_is_one_line_from_all_processes_together(folder, tmp_path, changes, message):
    codes, lines = run(2, command_line(folder, tmp_path, **{**RUN, **changes}), tmp_path / "log")
    assert codes == [2, 2] and len(lines) == 1
    assert lines[0].startswith("error: ") and message in lines[0]


def own_class(folder):
    """A file with a model of the user's own."""
    path = folder.parent / "own.py"
    path.write_text("from models.mf import MF\n\n\nclass Own(MF):\n    pass\n")
    return path


def test_a_class_of_the_users_own_is_refused(folder, tmp_path):
    argv = command_line(folder, tmp_path, **{**RUN, "model": f"{own_class(tmp_path)}:Own"})
    codes, lines = run(2, argv, tmp_path / "log")
    assert codes == [2, 2] and len(lines) == 1 and "is trained by one process" in lines[0]


def disturbed(folder, tmp_path, disturb, change=None):
    """Start a long run of two processes, disturb(processes) after its first checkpoint: (codes, errors)."""
    runs, log = tmp_path / "runs", tmp_path / "log"
    processes, _store = start_main(2, command_line(folder, runs, **LONG), log, change)
    wait_for(lambda: list(runs.glob("*/last.pt")))
    disturb(processes)
    return ends(processes), errors(log)


def wait_for(condition, limit=60):
    deadline = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def resumes(folder, tmp_path):
    """Whether the run in tmp_path/runs can be continued, by one process, from the epoch that it reached."""
    run_folder = only(tmp_path / "runs")
    reached = read_state(run_folder / "last.pt")["progress"]["epoch"]
    argv = ["--resume", str(run_folder), "--max_minutes", "1e-9"]
    codes, lines = run(1, argv, tmp_path / "log_resumed")
    return codes == [0] and not lines and reached >= 1


@pytest.mark.parametrize("victim", [0, 1])
def test_when_a_process_is_killed_the_other_ends_with_one_line(folder, tmp_path, victim):
    started = time.monotonic()
    codes, lines = disturbed(folder, tmp_path, lambda processes: processes[victim].kill())
    assert codes[victim] == -signal.SIGKILL and codes[1 - victim] == 1 and time.monotonic() - started < 60
    assert len(lines) == 1 and lines[0].startswith("error: another process of the run has ended")
    assert resumes(folder, tmp_path)


def test_a_signal_to_one_process_stops_all_of_them_after_the_same_step(folder, tmp_path):
    def terminate(processes):
        processes[1].terminate()
        time.sleep(0.02)
        processes[1].terminate()  # from torchrun, after a batch queue

    codes, lines = disturbed(folder, tmp_path, terminate)
    # The second signal may come when the process has saved and no longer handles it.
    assert codes[0] == 143 and codes[1] in (143, -signal.SIGTERM) and not lines
    result = read_json(only(tmp_path / "runs"))
    assert result["status"] == "interrupted" and result["reason"] == "SIGTERM"
    assert resumes(folder, tmp_path)


def short_timeout(rank):
    import datetime

    import training.parallel

    training.parallel.TIMEOUT = datetime.timedelta(seconds=6)


def test_a_signal_after_that_of_another_process_is_not_a_second_one(monkeypatch):
    ended = []
    monkeypatch.setattr(os, "_exit", ended.append)
    monkeypatch.setattr(training.stop, "largest", lambda number: signal.SIGTERM)
    with training.stop.Stop() as stop:
        assert stop()
        os.kill(os.getpid(), signal.SIGTERM)
    assert not ended and stop.exit_code == 143


@pytest.mark.parametrize("p", [1, 2])
def test_processes_that_torchrun_starts_again_continue_the_run(folder, tmp_path, p):
    runs, log = tmp_path / "runs", tmp_path / "log"
    processes, store = start_main(p, command_line(folder, runs, **LONG), log)
    wait_for(lambda: list(runs.glob("*/last.pt")))
    processes[-1].kill()
    ends(processes)
    reached = read_state(only(runs) / "last.pt")["progress"]["epoch"]
    short = command_line(folder, runs, **{**LONG, "max_minutes": 1e-9})
    again, _ = start_main(p, short, tmp_path / "again", store=store)
    assert ends(again) == [0] * p and not errors(tmp_path / "again")
    assert f"resumed after epoch {reached}" in (tmp_path / "again.out").read_text()
    assert read_state(only(runs) / "last.pt")["progress"]["step"] == 1


def test_a_port_that_torchrun_does_not_tell_is_an_error_at_once(monkeypatch, capsys):
    names = {"RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "localhost", "MASTER_PORT": "0"}
    for name, value in {
        **names,
        "TORCHELASTIC_RUN_ID": "none",
        "TORCHELASTIC_USE_AGENT_STORE": "True",
    }.items():
        monkeypatch.setenv(name, value)
    assert main(["--dataset", "none"]) == 2
    assert "--rdzv_endpoint HOST:0" in capsys.readouterr().err


def test_a_run_that_is_started_again_keeps_its_precision(tmp_path):
    (tmp_path / "config.json").write_text('{"model": "lgn", "dataset": "a", "seed": 1, "precision": "fp32"}')
    store = torch.distributed.HashStore()
    config = Config(dataset="a", precision="bf16")
    assert restarted(config, store) == config
    remember_folder(tmp_path, store)
    again = dataclasses.replace(config, resume=str(tmp_path), precision="fp32")
    assert restarted(config, store) == again


class SilentStore:
    """A store on a node that is cut off: an answer comes after minutes."""

    def add(self, key, amount):
        time.sleep(5)
        return 1


class EndedStore:
    """A store whose torchrun has ended."""

    def add(self, key, amount):
        raise RuntimeError("Connection reset by peer")


def test_the_first_process_to_fail_reports_and_so_does_one_without_a_store():
    store = torch.distributed.HashStore()
    assert [first_to_fail(store), first_to_fail(store)] == [True, False]
    assert first_to_fail(EndedStore())
    began = time.monotonic()
    assert first_to_fail(SilentStore(), patience=0.1) and time.monotonic() - began < 4


@pytest.mark.slow
def test_a_process_that_does_not_answer_is_given_up_after_the_timeout(folder, tmp_path):
    def stop(processes):
        os.kill(processes[1].pid, signal.SIGSTOP)
        processes[0].join(60)
        processes[1].kill()

    codes, lines = disturbed(folder, tmp_path, stop, short_timeout)
    assert codes == [1, -signal.SIGKILL]
    assert len(lines) == 1 and "does not answer" in lines[0]
    assert resumes(folder, tmp_path)


def small_files(rank):
    """Let process 0 write no file beyond 4 kB from now on, as on a full disk."""
    if rank == 0:
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))


def test_when_process_0_cannot_write_all_end_with_its_line(folder, tmp_path):
    argv = command_line(folder, tmp_path / "runs", **RUN)
    codes, lines = run(2, argv, tmp_path / "log", small_files)
    assert codes == [1, 1] and len(lines) == 1 and "cannot be written" in lines[0]
    assert json.loads((only(tmp_path / "runs") / "result.json").read_text())["status"] == "failed"
