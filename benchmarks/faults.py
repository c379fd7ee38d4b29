"""Fault injection: runs that are killed, stopped, out of disk space or racing must end in the same result.

    python benchmarks/faults.py                    # all cases, 20 runs of most kinds, some minutes
    python benchmarks/faults.py --runs 5 --only kill term

Each run is a real process with a real command line. Its result is compared bit by bit with that of an
undisturbed run: the metrics of every evaluated epoch, result.json, and all of best.pt and last.pt (weights,
optimiser, sampler, random states), without times and paths. Exits with 1 if anything differs.
"""

import argparse
import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from benchmarks.processes import (
    LIMIT,
    differences,
    errors,
    finish,
    launch,
    launch_script,
    leftovers,
    outcome,
    resume_command,
    run_folders,
    stop_and_resume,
    wait_for,
)
from data.graphs import read_cached
from data.synthetic import make_dataset, write_dataset

CASES = ("kill", "term", "disk", "pair", "folder")
DATASET = {"users": 200, "items": 120, "interactions_per_user": 9, "seed": 3}
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

# ---------------------------------------------------------------- cases


class FaultTests:
    """A dataset, an undisturbed run on it, and the number of runs that failed to reach its result."""

    def __init__(self, work: Path, seed: int):
        self.work, self.rng, self.failures = work, random.Random(seed), 0
        write_dataset(work / "data" / "faults", make_dataset(**DATASET), DATASET)
        settings = {**SETTINGS, "data_root": work / "data"}
        self.command = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
        self.run_undisturbed("reference")
        self.reference_folder = run_folders(work / "reference")[0]
        self.reference = outcome(self.reference_folder)
        # The first run also started the server and filled the kNN cache: the second has the usual duration.
        started = time.perf_counter()
        self.run_undisturbed("again")
        self.duration = time.perf_counter() - started
        self.report("undisturbed run, twice", self.compare(run_folders(work / "again")[0]))

    def run_undisturbed(self, name: str) -> None:
        """Make a whole run in the folder `name`."""
        log = self.work / f"{name}_log"
        code = finish(launch([*self.command, "--path", str(self.work / name)], log))
        assert code == 0, (code, errors(log))

    def compare(self, folder: Path) -> list[str]:
        """Differences between a complete run and the reference, and its leftover temporary files."""
        return differences(self.reference, outcome(folder)) + leftovers(folder)

    def report(self, title: str, problems: Sequence[str]) -> bool:
        """Print a line of the table and count a failure. Returns whether there are no problems."""
        self.failures += bool(problems)
        verdict = "DIFFERS: " + ", ".join(problems)[:200] if problems else "equal"
        print(f"{title:<58} {verdict}", flush=True)
        return not problems

    def new_folder(self, name: str) -> Path:
        """A new empty folder in the work folder."""
        path = self.work / name
        path.mkdir()
        return path

    def test_signal(self, signal_number: signal.Signals, runs: int) -> None:
        """Stop each run with a signal at one to four random moments."""
        name, equal, total = signal_number.name, 0, 0
        for number in range(1, runs + 1):
            work, stops = self.new_folder(f"{name}{number}"), self.rng.randint(1, 4)
            folder, hits = stop_and_resume(self.command, work, signal_number, self.rng, self.duration, stops)
            total += hits
            equal += self.report(f"{name} run {number:2d}, stopped {hits} times", self.compare(folder))
            shutil.rmtree(work)
        print(f"{name}: {equal}/{runs} equal, {total} stops\n", flush=True)

    def test_full_disk(self, runs: int) -> None:
        """Run on a disk that is full from the start or fills up during the run, and resume with free space.

        Raises MountError if no disk can be mounted.
        """
        size = sum((self.reference_folder / name).stat().st_size for name in ("best.pt", "last.pt"))
        equal = 0
        for number in range(1, runs + 1):
            with small_disk(self.new_folder(f"disk{number}"), 3 * size + 2**20) as disk:
                run_short_of_space = self.fill_before_run if number % 2 else self.fill_during_run
                log = self.work / f"disk_log{number}"
                description, code = run_short_of_space(disk, size, log)
                problems = self.check_and_resume(code, log, disk / "runs")
            equal += self.report(f"disk run {number:2d}, {description}: exit {code}", problems)
        print(f"disk: {equal}/{runs} equal after space was freed\n", flush=True)

    def fill_before_run(self, disk: Path, size: int, log: Path) -> tuple[str, int]:
        """A run on a disk with little space, freed afterwards. Returns a description and the exit code."""
        free = int(self.rng.uniform(0.01, 1.4) * size)
        fill(disk / "ballast", free)
        # A new interpreter rather than a fork, so that its exit is tested too.
        code = launch_script([*self.command, "--path", str(disk / "runs")], log).wait(LIMIT)
        (disk / "ballast").unlink()
        return f"{free / 1e3:.0f} kB free at its start", code

    def fill_during_run(self, disk: Path, size: int, log: Path) -> tuple[str, int]:
        """A run whose disk fills up after some evaluations, freed afterwards. Returns as fill_before_run."""
        # The run has four evaluations.
        evaluations = self.rng.randrange(3)
        process = launch_script([*self.command, "--path", str(disk / "runs")], log)

        def reached() -> bool:
            logs = disk.glob("runs/*/metrics.jsonl")
            return any(path.read_bytes().count(b"\n") >= evaluations for path in logs)

        wait_for(reached, process)
        fill(disk / "ballast", 0)
        code = process.wait(LIMIT)
        (disk / "ballast").unlink()
        return f"filled after {evaluations} evaluations", code

    def check_and_resume(self, code: int | None, log: Path, runs: Path) -> list[str]:
        """Resume a run that may have failed with one line, and compare its result. Returns the problems."""
        messages = errors(log)
        one_line = len(messages) == bool(code) and all("error:" in line for line in messages)
        if code not in (0, 1, 2) or not one_line:
            return [f"exit {code}", *messages]
        if code:
            log = Path(f"{log}_resumed")
            command = resume_command([*self.command, "--path", str(runs)], runs)
            if code := finish(launch(command, log)):
                return [f"exit {code} when resumed", *errors(log)]
        return self.compare(run_folders(runs)[0])

    def test_file_limit(self, runs: int) -> None:
        """Run with a limit on the size of files, and resume without it; needs no right to mount."""
        size = (self.reference_folder / "last.pt").stat().st_size
        equal = 0
        for number in range(1, runs + 1):
            work, limit = self.new_folder(f"limit{number}"), int(self.rng.uniform(100, size))
            log = work / "log"
            code = finish(launch([*self.command, "--path", str(work / "runs")], log, limit))
            # The limit is below the size of a checkpoint, so the run cannot succeed.
            problems = self.check_and_resume(code, log, work / "runs") if code else ["exit 0"]
            equal += self.report(
                f"limit run {number:2d}, files up to {limit / 1e3:.0f} kB: exit {code}", problems
            )
        print(f"disk: {equal}/{runs} equal after the limit was lifted\n", flush=True)

    def test_pairs(self, runs: int) -> None:
        """Start two runs at once that share an empty kNN cache."""
        equal = 0
        for number in range(1, runs + 1):
            work = self.new_folder(f"pair{number}")
            command = [*self.command, "--path", str(work / "runs"), "--cache_dir", str(work / "cache")]
            processes = [launch(command, work / f"log{index}") for index in range(2)]
            codes = [finish(process) for process in processes]
            folders, cached = run_folders(work / "runs"), list((work / "cache").iterdir())
            problems = [f"exit {code}" for code in codes if code]
            if len(folders) != 2:
                problems.append(f"{len(folders)} run folders")
            problems += [path.name for path in cached if path.suffix != ".npz" or read_cached(path) is None]
            problems += [entry for folder in folders for entry in self.compare(folder)]
            equal += self.report(f"pair {number:2d}, {len(cached)} graphs in the cache", problems)
        print(f"pair: {equal}/{runs} equal\n", flush=True)

    def test_folders(self) -> None:
        """Remove folders, or make them read-only: runs must end with one error line and exit code 1 or 2."""
        work = self.new_folder("folders")
        log = work / "removed"
        process = launch([*self.command, "--path", str(work / "runs"), "--epochs", "500"], log)
        wait_for(lambda: list(work.glob("runs/*/last.pt")), process)
        [folder] = run_folders(work / "runs")
        shutil.rmtree(folder)
        self.report_refusal("run folder removed during the run", finish(process), log, (1,))
        self.expect_refusal("resume of a removed run folder", ["--resume", str(folder)], work / "gone", (2,))
        shutil.copytree(self.reference_folder, work / "copy")
        command = ["--resume", str(work / "copy"), "--data_root", str(work / "missing")]
        self.expect_refusal("resume without its dataset folder", command, work / "no_data", (2,))
        with read_only_copy(self.reference_folder, self.new_folder("locked")) as (locked, method):
            if locked is None:
                print(f"read-only folder: not tested ({method})")
                return
            title, command = f"resume in a read-only folder ({method})", ["--resume", str(locked)]
            self.expect_refusal(title, command, work / "locked_resume", (1, 2))
            title, command = (
                f"new run in a read-only folder ({method})",
                [*self.command, "--path", str(locked)],
            )
            self.expect_refusal(title, command, work / "locked_run", (1, 2))

    def expect_refusal(self, title: str, command: Sequence[str], log: Path, codes: Sequence[int]) -> None:
        """Run a command line, and report whether it ended with one error line and one of these exit codes."""
        self.report_refusal(title, finish(launch(command, log)), log, codes)

    def report_refusal(self, title: str, code: int | None, log: Path, codes: Sequence[int]) -> None:
        """Report whether a process ended with one error line and one of these exit codes."""
        messages = errors(log)
        correct = code in codes and len(messages) == 1 and messages[0].startswith("error:")
        self.failures += not correct
        verdict = f"one line, exit {code}" if correct else f"WRONG: exit {code}, {messages}"
        print(f"{title:<58} {verdict}", flush=True)


# ---------------------------------------------------------------- disks


class MountError(Exception):
    """This process is not allowed to mount a file system."""


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[Path]:
    """Mount a tmpfs of `size` bytes on a folder. Raises MountError if that is not allowed."""
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise MountError(f"no tmpfs: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", folder], check=False)


def fill(path: Path, free: int) -> None:
    """Write a file that leaves `free` bytes of its disk free."""
    disk = os.statvfs(path.parent)
    remaining = disk.f_bavail * disk.f_frsize - free
    with open(path, "wb", buffering=0) as file, contextlib.suppress(OSError):
        while remaining > 0:
            remaining -= file.write(bytes(min(remaining, 2**16)))


@contextlib.contextmanager
def read_only_copy(source: Path, folder: Path) -> Iterator[tuple[Path | None, str]]:
    """Yield (a copy of a folder that cannot be written, how), or (None, why this is not possible)."""
    copy = folder / "run"
    # Permissions do not bind root, who may mount a read-only disk instead.
    if os.geteuid():
        shutil.copytree(source, copy)
        copy.chmod(0o555)
        yield copy, "permissions"
        copy.chmod(0o755)
        return
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(small_disk(folder, 2**24))
            shutil.copytree(source, copy)
            subprocess.run(["mount", "-o", "remount,ro", folder], check=True)
        except (MountError, subprocess.CalledProcessError) as error:
            yield None, str(error)
        else:
            yield copy, "read-only disk"


# ---------------------------------------------------------------- command line


def run_cases(tests: FaultTests, cases: Sequence[str], runs: int) -> None:
    """Run the chosen cases."""
    if "kill" in cases:
        tests.test_signal(signal.SIGKILL, runs)
    if "term" in cases:
        tests.test_signal(signal.SIGTERM, runs)
    if "disk" in cases:
        try:
            tests.test_full_disk(max(runs // 2, 2))
        except MountError as error:
            print(f"{error}; limiting the size of files instead")
            tests.test_file_limit(max(runs // 2, 2))
    if "pair" in cases:
        tests.test_pairs(max(runs // 4, 1))
    if "folder" in cases:
        tests.test_folders()


def main() -> int:
    """Run the chosen cases. Returns 1 if anything differs, else 0."""
    parser = argparse.ArgumentParser(
        description="Disturb training runs and compare them with an undisturbed one, bit by bit.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument(
        "--runs",
        type=int,
        default=20,
        help="runs to kill, and to stop; half as many get a full disk, a quarter as many pairs start at once",
    )
    parser.add_argument("--seed", type=int, default=1, help="seed of the random moments")
    parser.add_argument("--only", nargs="+", choices=CASES, default=CASES, help="cases to run")
    args = parser.parse_args()
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as work:
        tests = FaultTests(Path(work), args.seed)
        print(f"an undisturbed run takes {tests.duration:.1f} s\n", flush=True)
        run_cases(tests, args.only, args.runs)
    verdict = f"{tests.failures} DIFFER" if tests.failures else "all equal"
    print(f"\n{verdict}; {time.perf_counter() - started:.0f} s")
    return int(tests.failures > 0)


if __name__ == "__main__":
    sys.exit(main())
