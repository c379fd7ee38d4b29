"""Start, disturb, resume and compare training runs in processes of their own: for faults.py and the tests.

    process = launch(["--dataset", "demo", "--path", "runs"], "log")   # output in log.out and log.err
    code = finish(process)
    differences(outcome(folder), outcome(other_folder))                # [] if both have the same result

Processes are forked from a server that has imported the program, which saves each of them the seconds that
loading torch takes.
"""

import json
import multiprocessing
import os
import random
import resource
import shutil
import subprocess
import sys
import time
import typing
from collections.abc import Callable, Collection, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The fork server takes its import path from the environment, not from sys.path.
os.environ["PYTHONPATH"] = str(ROOT)
# With one thread, runs side by side do not compete for cores, and sums have a fixed order.
os.environ.setdefault("OMP_NUM_THREADS", "1")
# multiprocessing's tracker warns about semaphores of killed processes.
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")

import torch

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["main"])
LIMIT = 300.0  # seconds after which a process counts as hung
# Entries of metrics.jsonl, result.json and checkpoints that two equal runs do not share.
TIMES = {
    "seconds",
    "epoch_seconds",
    "evaluation_seconds",
    "seconds_to_best",
    "test_seconds",
    "peak_memory_mb",
    "versions",
}
# Settings that have no part in the result.
FREE = {"path", "resume", "data_root", "cache_dir", "epochs", "max_minutes", "save_every", "tensorboard"}

# ---------------------------------------------------------------- processes


def launch(argv: Sequence[str], log: str | Path, file_limit: int = 0) -> BaseProcess:
    """Start main(argv) in a process of its own.

    log: path of its output, without the suffixes .out and .err; file_limit: maximum size of a file that it
    may write, in bytes (0: no limit).
    """
    process = SERVER.Process(target=run_main, args=(argv, str(log), file_limit))
    process.start()
    return process


def run_main(argv: Sequence[str], log: str, file_limit: int) -> None:
    """Main function of a process from `launch`."""
    for stream, suffix in ((1, "out"), (2, "err")):
        handle = os.open(f"{log}.{suffix}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, stream)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    from main import main

    sys.exit(main(argv))


def launch_script(argv: Sequence[str], log: str | Path) -> subprocess.Popen:
    """Start main.py like a user does, with a new interpreter; output as in `launch`."""
    with open(f"{log}.out", "w") as out, open(f"{log}.err", "w") as err:
        return subprocess.Popen([sys.executable, ROOT / "main.py", *argv], stdout=out, stderr=err)


def finish(process: BaseProcess, limit: float = LIMIT) -> int | None:
    """Wait for a process from `launch`; returns its exit code. Raises TimeoutError after `limit` seconds."""
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"process {process.pid} hung for {limit} s")
    return process.exitcode


def wait_for(condition: Callable[[], typing.Any], process: BaseProcess | subprocess.Popen) -> None:
    """Sleep until a condition is true. Raises TimeoutError after LIMIT seconds or if the process ends."""
    deadline = time.monotonic() + LIMIT
    while not condition():
        alive = process.poll() is None if isinstance(process, subprocess.Popen) else process.is_alive()
        if time.monotonic() > deadline or not alive:
            raise TimeoutError("the run did not reach the point at which it was to be disturbed")
        time.sleep(0.01)


def errors(log: str | Path) -> list[str]:
    """Lines of <log>.err that report an error or belong to a traceback, not progress bars and notes."""
    text = Path(f"{log}.err").read_text(errors="replace")
    lines = [line.rsplit("\r", 1)[-1].strip() for line in text.split("\n")]
    return [line for line in lines if line.startswith("error:") or "Traceback" in line or "Exception" in line]


def run_folders(runs: str | Path) -> list[Path]:
    """The run folders in a folder that can be resumed: those that have a config.json."""
    return sorted(path.parent for path in Path(runs).glob("*/config.json"))


def resume_command(command: Sequence[str], runs: str | Path) -> list[str]:
    """Command line that resumes the first run folder in `runs`, or `command` if there is none yet."""
    folders = run_folders(runs)
    return ["--resume", str(folders[0])] if folders else list(command)


def stop_and_resume(
    command: Sequence[str],
    work: Path,
    signal_number: int,
    rng: random.Random,
    duration: float,
    stops: int,
) -> tuple[Path, int]:
    """Start a run, send it a signal at random moments, and resume it until it is complete.

    command: command line of a new run, without --path; work: empty folder for runs and output; duration: of
    an undisturbed run, in seconds; stops: how often the run is stopped, at least 1. Returns the run folder
    and how often the run was stopped, at least once. Raises AssertionError for an exit code that is not that
    of the signal.
    """
    runs = work / "runs"
    hits = attempts = 0
    while True:
        attempts += 1
        log = work / f"log{attempts}"
        process = launch(resume_command([*command, "--path", str(runs)], runs), log)
        if hits < stops:
            process.join(rng.uniform(0, duration))
            if process.is_alive() and process.pid:
                os.kill(process.pid, signal_number)
        code = finish(process)
        if code == 0 and hits:
            return run_folders(runs)[0], hits
        if code == 0:
            # It was complete before the signal: start again, and send the signal sooner.
            shutil.rmtree(runs)
            duration /= 2
            continue
        assert code in (-signal_number, 128 + signal_number), (code, errors(log))
        hits += 1
        # The rest of the run is shorter.
        duration *= 0.8


# ---------------------------------------------------------------- comparison


def outcome(folder: Path) -> dict[str, typing.Any]:
    """Everything in a complete run folder that must not depend on how often the run was stopped.

    The evaluations in metrics.jsonl, result.json, best.pt and last.pt, without times and paths.
    """
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    result: dict[str, typing.Any] = {
        "metrics": [without(json.loads(line), TIMES) for line in lines],
        "result": without(json.loads((folder / "result.json").read_text()), TIMES),
    }
    for name in ("best.pt", "last.pt"):
        state = torch.load(folder / name, weights_only=True)
        result[name] = {**without(state, TIMES), "config": without(state["config"], FREE)}
    return result


def without(value: typing.Any, names: Collection[str]) -> typing.Any:
    """A nested value without the dict entries of these names."""
    if isinstance(value, dict):
        return {key: without(entry, names) for key, entry in value.items() if key not in names}
    return [without(entry, names) for entry in value] if isinstance(value, list) else value


def differences(a: typing.Any, b: typing.Any, path: str = "") -> list[str]:
    """Paths at which two nested values differ, as ".last.pt.model.user"; tensors are compared bit by bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        found = []
        for key in sorted(a.keys() | b.keys(), key=str):
            entry = f"{path}.{key}"
            found += differences(a[key], b[key], entry) if key in a and key in b else [entry]
        return found
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        if len(a) != len(b):
            return [path]
        pairs = enumerate(zip(a, b, strict=True))
        return [entry for index, (x, y) in pairs for entry in differences(x, y, f"{path}[{index}]")]
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    return [] if type(a) is type(b) and a == b else [path]


def leftovers(folder: Path) -> list[str]:
    """Names of the temporary files in a run folder; a complete run has none."""
    return sorted(path.name for path in folder.glob(".*.tmp"))
