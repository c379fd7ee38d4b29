"""Kill every tool that writes files before and after its renames, fsyncs and commits, and run it again.

    python benchmarks/kills.py                            # all tools, up to 12 kills of each, some minutes
    python benchmarks/kills.py --only recommend report --kills 100
    python benchmarks/kills.py --races 5                  # also two processes at once, one killed at random

The second run must succeed, and the folder must then hold the same bytes as after an undisturbed run, without
times and lock files: nothing is lost, and no temporary file stays. Exits with 1 if anything differs.
"""

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import typing
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np

from benchmarks.kill_cases import CASES, TEXT, Case, contents, has, run_case, server, start, write_inputs
from benchmarks.processes import SERVER, differences, finish

# Tools whose files change during a run, and files that say by their names that they are not complete.
RUNS = ("main", "tune")
UNFINISHED = (".part", ".part.json", ".partial")


class Kills:
    """The inputs of all cases, a server, and the number of kills and of those that made a difference."""

    def __init__(self, work: Path, url: str, with_model: bool = True):
        self.work, self.url, self.kills, self.failures = work, url, 0, 0
        (work / "inputs").mkdir()
        write_inputs(work / "inputs", url, with_model)
        shutil.copytree(work / "inputs" / "pictures", work / "pictures")

    def fresh(self) -> Path:
        """A new folder with the inputs of a case."""
        shutil.rmtree(self.work / "folder", ignore_errors=True)
        return shutil.copytree(self.work / "inputs", self.work / "folder", symlinks=True)

    def undisturbed(self, case: Case) -> tuple[dict[str, typing.Any], int, float]:
        """What an undisturbed run leaves, its number of points, and its seconds."""
        folder, began = self.fresh(), time.perf_counter()
        code = run_case(case, folder, self.url)
        assert code == 0, (code, (folder / "log.err").read_text())
        seconds = time.perf_counter() - began
        return contents(folder), int((folder / "points").read_text()), seconds

    def parts(self, folder: Path, expected: dict[str, typing.Any]) -> list[str]:
        """The files that a killed process has left and that are neither the old ones nor the new ones."""
        old = contents(self.work / "inputs")
        return [
            f"half of {name}"
            for name, content in contents(folder).items()
            if "/." not in name and not name.endswith(UNFINISHED)
            if all(differences(content, files.get(name)) for files in (old, expected))
        ]

    def problems(self, case: Case, folder: Path, expected: dict[str, typing.Any]) -> list[str]:
        """Run a case once more; what is wrong with its exit code and with the files that are there now."""
        code = run_case(case, folder, self.url, again=True)
        said = (folder / "log.err").read_text()
        refused = code == 2 and case.ends and case.ends in said
        wrong = [] if code == 0 or refused else [f"exit {code}: {said.strip()[-300:]}"]
        return wrong + differences(expected, contents(folder))

    def kill(self, name: str, case: Case, limit: int) -> list[str]:
        """Kill a case at up to `limit` points and print a line. Returns one line for each failure."""
        expected, count, _ = self.undisturbed(case)
        points = np.unique(np.linspace(1, count, min(count, limit)).round().astype(int)).tolist()
        bad = []
        for point in points:
            folder = self.fresh()
            code = run_case(case, folder, self.url, point)
            assert code == -signal.SIGKILL, (name, point, code, (folder / "log.err").read_text())
            wrong = self.parts(folder, expected) if case.tool not in RUNS else []
            if wrong := wrong + self.problems(case, folder, expected):
                bad.append(f"    point {point}: {', '.join(wrong)[:400]}")
        self.tell(f"{name:<18} {len(points):3d} kills at {count:3d} points", len(points), bad)
        return bad

    def race(self, name: str, case: Case, races: int, rng: random.Random) -> None:
        """Run a case twice at once and kill one of the two at a random moment; print a line."""
        expected, _, seconds = self.undisturbed(case)
        bad = []
        for number in range(races):
            folder = self.fresh()
            pair = [start(case, folder, self.url) for _ in range(2)]
            time.sleep(rng.uniform(0, seconds))
            if pair[0].pid and pair[0].is_alive():
                os.kill(pair[0].pid, signal.SIGKILL)
            codes = [finish(process) for process in pair]
            wrong = [] if codes[1] in (0, 2) else [f"the other one ends with {codes[1]}"]
            if wrong := wrong + self.problems(case, folder, expected):
                bad.append(f"    race {number}: {', '.join(wrong)[:400]}")
        self.tell(f"{name:<18} {races:3d} races", races, bad)

    def tell(self, title: str, count: int, bad: list[str]) -> None:
        """Count kills and failures, and print a line for the tool and one for each failure."""
        self.kills += count
        self.failures += len(bad)
        print(f"{title}  {f'{len(bad)} DIFFER' if bad else 'all equal'}", *bad, sep="\n", flush=True)


def main() -> int:
    """Run the chosen cases. Returns 1 if anything differs, else 0."""
    parser = argparse.ArgumentParser(
        description="Kill every tool at its renames and fsyncs, and run it again.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--kills", type=int, default=12, help="at most so many kills of each tool")
    parser.add_argument("--races", type=int, default=0, help="pairs of processes of each tool, one killed")
    parser.add_argument("--seed", type=int, default=1, help="seed of the random moments")
    parser.add_argument("--only", nargs="+", choices=CASES, default=list(CASES), help="tools")
    args = parser.parse_args()
    SERVER.set_forkserver_preload(["main", "tune", "recommend", "report", "data.features", *TEXT])
    rng, began = random.Random(args.seed), time.perf_counter()
    with tempfile.TemporaryDirectory() as work, server(Path(work) / "pictures") as url:
        kills = Kills(Path(work), url)
        for name in args.only:
            if not has(CASES[name].needs):
                print(f"{name:<18} needs {', '.join(CASES[name].needs)}")
                continue
            kills.kill(name, CASES[name], args.kills)
            if args.races and CASES[name].tool not in RUNS:
                kills.race(name, CASES[name], args.races, rng)
    verdict = f"{kills.failures} DIFFER" if kills.failures else "all equal"
    print(f"\n{kills.kills} kills: {verdict}; {time.perf_counter() - began:.0f} s")
    return int(kills.failures > 0)


if __name__ == "__main__":
    sys.exit(main())
