"""Faults on purpose: runs that are killed, stopped, out of disk or in each other's way must end in the undisturbed result.

    python benchmarks/faults.py                    # everything, 20 runs of each kind, some minutes
    python benchmarks/faults.py --runs 5 --only kill term

A run is a real process with a real command line. To save the seconds in which Python loads torch, the processes are
forked from a server that has the program imported; the disk cases start from nothing, so that leaving is tested too.
What is compared, bit for bit: the metrics of every evaluated epoch, the content of result.json but times, and all of
best.pt and last.pt (weights, optimiser, sampler, random states) but times and paths. Exits 1 if anything differs.
"""

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]
os.environ["PYTHONPATH"] = str(ROOT)  # the fork server starts from the environment, not from sys.path
os.environ.setdefault(
    "OMP_NUM_THREADS", "1"
)  # two processes share two cores; and the sums' order stays fixed
os.environ.setdefault("PYTHONWARNINGS", "ignore:resource_tracker")  # it misses the locks of what was killed

import torch

from data.graphs import read_cached
from data.synthetic import make_dataset, write_dataset

SERVER = multiprocessing.get_context("forkserver")
SERVER.set_forkserver_preload(["main"])
LIMIT = 300  # seconds after which a process counts as hung
DATASET = dict(users=200, items=120, interactions_per_user=9, seed=3)
SETTINGS = {
    "dataset": "faults",
    "model": "lgn_mm",
    "user_text_feat": "mean",
    "recdim": 16,
    "attn_heads": 2,
    "item_knn_k": 5,
    "user_knn_k": 5,
    "bpr_batch": 64,
    "epochs": 8,
    "eval_every": 2,
    "topks": "5,10",
    "lr": 0.01,
    "feat_dropout": 0.1,
    "plan_every": 3,
    "plan_image_every": 2,
    "cuda": 0,
}
TIMES = {
    "seconds",
    "epoch_seconds",
    "evaluation_seconds",
    "seconds_to_best",
    "test_seconds",
    "peak_memory_mb",
    "versions",
}
FREE = {"path", "resume", "data_root", "cache_dir", "epochs", "max_minutes", "save_every", "tensorboard"}


# ---------------------------------------------------------------- processes


def flags(settings):
    """{'epochs': 3} -> ['--epochs', '3']."""
    return [word for name, value in settings.items() for word in (f"--{name}", str(value))]


def enter(argv, log, file_limit):
    """In the forked process: main(argv), with stdout and stderr in files."""
    for stream, name in ((1, "out"), (2, "err")):
        handle = os.open(f"{log}.{name}", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(handle, stream)
    if file_limit:
        resource.setrlimit(resource.RLIMIT_FSIZE, (file_limit, file_limit))
    from main import main

    sys.exit(main(argv))


def launch(argv, log, file_limit=0):
    """Start main(argv) in a process of its own. log: path of its output, <log>.out and <log>.err; file_limit: bytes a file may have."""
    process = SERVER.Process(target=enter, args=(argv, str(log), file_limit))
    process.start()
    return process


def finish(process, limit=LIMIT):
    """Wait for a process from launch. Returns the exit code; raises TimeoutError if it hangs."""
    process.join(limit)
    if process.is_alive():
        process.kill()
        process.join()
        raise TimeoutError(f"process {process.pid} hung for {limit} s")
    return process.exitcode


def errors(log):
    """The lines that a process left on stderr, without progress bars and notes of a signal."""
    text = Path(f"{log}.err").read_text(errors="replace")
    lines = [line.rsplit("\r", 1)[-1].strip() for line in text.split("\n")]
    return [line for line in lines if line.startswith("error:") or "Traceback" in line or "Exception" in line]


def run_folders(runs):
    """Run folders with a config.json; a process killed before it wrote one has left nothing to go on from."""
    return sorted(path.parent for path in Path(runs).glob("*/config.json"))


def stop_and_resume(command, work, number, rng, duration, stops):
    """Start a run, send it signal `number` at `stops` random moments of its life, resume until it is done.

    command: argv of a fresh run; work: empty folder for runs and output; duration: seconds to draw the moments from;
    stops: at least 1. Returns (run folder, times it was hit, at least 1). Raises AssertionError on an exit code that does not fit.
    """
    hits = attempts = 0
    while True:
        attempts += 1
        there = run_folders(work / "runs")
        argv = ["--resume", str(there[0])] if there else [*command, "--path", str(work / "runs")]
        process = launch(argv, work / f"log{attempts}")
        if hits < stops:
            process.join(rng.uniform(0, duration))
            if process.is_alive():
                os.kill(process.pid, number)
        code = finish(process)
        if code == 0 and hits:
            return run_folders(work / "runs")[0], hits
        if code == 0:  # done before it could be hit: once more, and sooner
            shutil.rmtree(work / "runs")
            duration /= 2
            continue
        assert code in (-number, 128 + number), (code, errors(work / f"log{attempts}"))
        hits += 1
        duration *= 0.8  # what is left to do shrinks


# ---------------------------------------------------------------- comparing


def differences(a, b, path=""):
    """Where two nested values differ: ['model.user.weight', ...]; tensors bit for bit."""
    if isinstance(a, dict) and isinstance(b, dict):
        return [
            found
            for key in sorted(a.keys() | b.keys(), key=str)
            for found in (
                [f"{path}.{key}"]
                if (key in a) != (key in b)
                else differences(a[key], b[key], f"{path}.{key}")
            )
        ]
    if isinstance(a, (list, tuple)) and isinstance(b, (list, tuple)):
        return (
            [path]
            if len(a) != len(b)
            else [
                found for at, (x, y) in enumerate(zip(a, b)) for found in differences(x, y, f"{path}[{at}]")
            ]
        )
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return [] if a.dtype == b.dtype and torch.equal(a, b) else [path]
    return [] if type(a) is type(b) and a == b else [path]


def without(value, names):
    """A nested value without the dict entries of these names."""
    if isinstance(value, dict):
        return {key: without(entry, names) for key, entry in value.items() if key not in names}
    return [without(entry, names) for entry in value] if isinstance(value, list) else value


def outcome(folder):
    """All that a run has come to and that must not depend on how often it was stopped."""
    checkpoints = {}
    for name in ("best.pt", "last.pt"):
        state = torch.load(folder / name, weights_only=True)
        checkpoints[name] = {**without(state, TIMES), "config": without(state["config"], FREE)}
    lines = [without(json.loads(line), TIMES) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return {
        "metrics": lines,
        "result": without(json.loads((folder / "result.json").read_text()), TIMES),
        **checkpoints,
    }


def leftovers(folder):
    """Half-written files of a run folder that is done."""
    return sorted(path.name for path in folder.glob(".*.tmp"))


# ---------------------------------------------------------------- the cases


class Bench:
    """A dataset, the undisturbed run on it, and the tally of what was compared with it."""

    def __init__(self, work, seed):
        self.work, self.rng, self.failed = work, random.Random(seed), 0
        write_dataset(work / "data" / SETTINGS["dataset"], make_dataset(**DATASET), DATASET)
        self.command = flags({**SETTINGS, "data_root": work / "data"})
        started = time.perf_counter()
        assert finish(launch([*self.command, "--path", str(work / "whole")], work / "whole_log")) == 0, (
            errors(work / "whole_log")
        )
        started = time.perf_counter()  # again, now with a warm server and cache, for its length
        assert finish(launch([*self.command, "--path", str(work / "again")], work / "again_log")) == 0
        self.duration = time.perf_counter() - started
        self.whole = outcome(run_folders(work / "whole")[0])
        self.report(
            "undisturbed run, twice", differences(self.whole, outcome(run_folders(work / "again")[0]))
        )

    def report(self, title, wrong):
        """Print a line of the table; wrong: what differs, empty if all is well."""
        self.failed += bool(wrong)
        print(
            f"{title:<58} {'equal' if not wrong else 'DIFFERS: ' + ', '.join(map(str, wrong))[:200]}",
            flush=True,
        )
        return not wrong

    def folder(self, name):
        """A new empty folder under the work folder."""
        path = self.work / name
        path.mkdir()
        return path

    def signals(self, name, number, runs):
        """`runs` runs, each stopped by a signal at one to four random moments."""
        equal = total = 0
        for at in range(1, runs + 1):
            work = self.folder(f"{name}{at}")
            folder, hits = stop_and_resume(
                self.command, work, number, self.rng, self.duration, self.rng.randint(1, 4)
            )
            total += hits
            equal += self.report(
                f"{name} run {at:2d}, stopped {hits} times",
                differences(self.whole, outcome(folder)) + leftovers(folder),
            )
            shutil.rmtree(work)
        print(f"{name}: {equal}/{runs} equal, {total} stops\n", flush=True)

    def full_disk(self, runs):
        """A small disk that is full from the start, or fills up at a random moment of the run."""
        size = sum(
            (run_folders(self.work / "whole")[0] / name).stat().st_size for name in ("best.pt", "last.pt")
        )
        equal = 0
        for at in range(1, runs + 1):
            with small_disk(self.folder(f"disk{at}"), 3 * size + 2**20) as disk:
                kind, wrong = self.one_full_disk(disk, at, size)
                equal += self.report(f"disk run {at:2d}, {kind}", wrong)
        print(f"disk: {equal}/{runs} equal after space was freed\n", flush=True)

    def one_full_disk(self, disk, at, size):
        """One run on a disk with too little space, and its resumption with enough. Returns (what was done, what is wrong)."""
        log, ballast = self.work / f"disk_log{at}", disk / "ballast"
        command = [*self.command, "--path", str(disk / "runs")]
        if at % 2:
            free = int(self.rng.uniform(0.01, 1.4) * size)
            fill(ballast, leave=free)
            kind, process = f"{free / 1e3:.0f} kB free at its start", command_line(command, log)
        else:
            process, lines = command_line(command, log), self.rng.randrange(3)  # of four
            wait_for(
                lambda: any(
                    path.read_bytes().count(b"\n") >= lines for path in disk.glob("runs/*/metrics.jsonl")
                ),
                process,
            )
            fill(ballast, leave=0)
            kind = f"filled after {lines} evaluations"
        code = process.wait(LIMIT)
        ballast.unlink()
        told = errors(log)
        kind += f": exit {code}"
        if code not in (0, 1, 2) or len(told) != bool(code) or any("error:" not in line for line in told):
            return kind, [code, *told]
        there = run_folders(disk / "runs")
        if code and (
            code_again := finish(launch(["--resume", str(there[0])] if there else command, f"{log}b"))
        ):
            return kind, ["resumed", code_again, *errors(f"{log}b")]
        folder = run_folders(disk / "runs")[0]
        return kind, differences(self.whole, outcome(folder)) + leftovers(folder)

    def pairs(self, runs):
        """Two runs that start at once on the same data with a cold kNN cache."""
        equal = 0
        for at in range(1, runs + 1):
            work = self.folder(f"pair{at}")
            command = [*self.command, "--path", str(work / "runs"), "--cache_dir", str(work / "cache")]
            processes = [launch(command, work / f"log{k}") for k in range(2)]
            codes = [finish(process) for process in processes]
            folders, cache = run_folders(work / "runs"), list((work / "cache").iterdir())
            wrong = [f"exit {code}" for code in codes if code] + (
                [] if len(folders) == 2 else ["run folders"]
            )
            wrong += [path.name for path in cache if path.suffix != ".npz" or read_cached(path) is None]
            wrong += [found for folder in folders for found in differences(self.whole, outcome(folder))]
            equal += self.report(f"pair {at:2d}, {len(cache)} graphs in the cache", wrong)
        print(f"pair: {equal}/{runs} equal\n", flush=True)

    def folders(self, runs):
        """A run folder or dataset that vanishes, or cannot be written: one line and exit code 1 or 2."""
        work = self.folder("folders")
        process = launch([*self.command, "--path", str(work / "runs"), "--epochs", "500"], work / "log1")
        wait_for(lambda: list(work.glob("runs/*/last.pt")), process)
        (gone,) = run_folders(work / "runs")
        shutil.rmtree(gone)
        self.refused("run folder removed in mid-run", finish(process), work / "log1", (1,))
        self.refused(
            "resume of a folder that is gone",
            finish(launch(["--resume", str(gone)], work / "log2")),
            work / "log2",
            (2,),
        )
        shutil.copytree(run_folders(self.work / "whole")[0], work / "copy")
        moved = ["--resume", str(work / "copy"), "--data_root", str(work / "nowhere")]
        self.refused(
            "resume without its data folder", finish(launch(moved, work / "log3")), work / "log3", (2,)
        )
        with read_only(self.folder("locked"), run_folders(self.work / "whole")[0]) as (folder, told):
            if folder:
                self.refused(
                    f"resume in a read-only folder ({told})",
                    finish(launch(["--resume", str(folder)], work / "log4")),
                    work / "log4",
                    (1, 2),
                )
                self.refused(
                    f"new run in a read-only folder ({told})",
                    finish(launch([*self.command, "--path", str(folder)], work / "log5")),
                    work / "log5",
                    (1, 2),
                )

    def refused(self, title, code, log, codes):
        """Report whether a process left with one of these codes and one line."""
        told = errors(log)
        fine = code in codes and len(told) == 1 and told[0].startswith("error:")
        self.failed += not fine
        print(
            f"{title:<58} {'one line, exit ' + str(code) if fine else f'WRONG: exit {code}, {told}'}",
            flush=True,
        )


def command_line(argv, log):
    """main.py as a user starts it; output as in launch."""
    with open(f"{log}.out", "w") as out, open(f"{log}.err", "w") as err:
        return subprocess.Popen([sys.executable, ROOT / "main.py", *argv], stdout=out, stderr=err)


def wait_for(happened, process):
    """Sleep until happened() is true; raises TimeoutError when that takes too long or the process is gone."""
    until = time.monotonic() + LIMIT
    alive = process.is_alive if hasattr(process, "is_alive") else lambda: process.poll() is None
    while not happened():
        if time.monotonic() > until or not alive():
            raise TimeoutError("the run never came to where it was to be disturbed")
        time.sleep(0.01)


def fill(path, leave):
    """Write a file that leaves so many bytes of its disk free."""
    disk = os.statvfs(path.parent)
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        left = disk.f_bavail * disk.f_frsize - leave
        while left > 0:
            left -= file.write(bytes(min(left, 2**16)))


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a tmpfs of `size` bytes on a folder. Raises OSError where that is not allowed."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True, text=True
    )
    if done.returncode:
        raise OSError(f"no tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder])


@contextlib.contextmanager
def read_only(folder, content):
    """Yield (a copy of `content` that cannot be written, how), or (None, why not)."""
    if os.geteuid():  # root may write whatever the permissions say
        shutil.copytree(content, folder / "run")
        (folder / "run").chmod(0o555)
        yield folder / "run", "permissions"
        (folder / "run").chmod(0o755)
        return
    try:
        with small_disk(folder, 2**24):
            shutil.copytree(content, folder / "run")
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
            yield folder / "run", "read-only disk"
    except (OSError, subprocess.CalledProcessError) as error:
        print(f"read-only folder: not tested ({error})")
        yield None, ""


def small_files(bench, runs):
    """In place of a full disk, where nothing can be mounted: a limit on the size of a file."""
    size = (run_folders(bench.work / "whole")[0] / "last.pt").stat().st_size
    equal = 0
    for at in range(1, runs + 1):
        work, limit = bench.folder(f"limit{at}"), int(bench.rng.uniform(100, size))
        code = finish(launch([*bench.command, "--path", str(work / "runs")], work / "log", limit))
        told, there = errors(work / "log"), run_folders(work / "runs")
        wrong = [] if code in (1, 2) and len(told) == 1 and told[0].startswith("error:") else [code, *told]
        again = ["--resume", str(there[0])] if there else [*bench.command, "--path", str(work / "runs")]
        wrong += [] if finish(launch(again, work / "log2")) == 0 else errors(work / "log2")
        equal += bench.report(
            f"limit run {at:2d}, files up to {limit / 1e3:.0f} kB: exit {code}",
            wrong or differences(bench.whole, outcome(run_folders(work / "runs")[0])),
        )
    print(f"disk: {equal}/{runs} equal after the limit was lifted\n", flush=True)


CASES = ("kill", "term", "disk", "pair", "folder")


def main():
    """Run the chosen cases. Returns 1 if anything differed, else 0."""
    parser = argparse.ArgumentParser(
        description="Disturb runs on purpose and compare them with an undisturbed one, bit for bit."
    )
    parser.add_argument(
        "--runs",
        type=int,
        default=20,
        help="runs that are killed, and that are stopped; half as many full disks, a quarter of pairs",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the random moments")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, help="which cases")
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        bench = Bench(Path(work), args.seed)
        print(f"an undisturbed run takes {bench.duration:.1f} s\n", flush=True)
        if "kill" in args.only:
            bench.signals("SIGKILL", signal.SIGKILL, args.runs)
        if "term" in args.only:
            bench.signals("SIGTERM", signal.SIGTERM, args.runs)
        if "disk" in args.only:
            try:
                bench.full_disk(max(args.runs // 2, 2))
            except OSError as error:
                print(f"{error}; limiting the size of files instead")
                small_files(bench, max(args.runs // 2, 2))
        if "pair" in args.only:
            bench.pairs(max(args.runs // 4, 1))
        if "folder" in args.only:
            bench.folders(args.runs)
    print(
        f"\n{'all equal' if not bench.failed else f'{bench.failed} DIFFER'}; {time.perf_counter() - started:.0f} s"
    )
    return int(bench.failed > 0)


if __name__ == "__main__":
    sys.exit(main())
