"""Whether everything works on this machine's GPU, and how fast: one JSON and one page of Markdown.

    bash scripts/gpu_check.sh                 # ten minutes at most, without a network
    bash scripts/gpu_check.sh --rehearse      # the same parts with tiny sizes on a CPU: a test of this script

Runs the tests marked gpu and benchmarks of this folder, each in a process of its own, so that a part that
fails, hangs or runs out of memory costs nothing but itself. The JSON and the page are written anew after
every part. Data are synthetic, of the true sizes. Exit codes: 0 all parts succeeded, 1 not all, 2 no GPU.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
import typing
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch

from benchmarks import bench
from cli import Parser, run_tool
from utils import UserError, write_json, write_text

LIMIT = 240.0  # seconds of a part
# Seconds that a data-centre GPU should need: {part: {row: seconds}}.
GOALS = {
    "baby": {"training epoch": 0.3, "evaluation, valid": 0.1},
    "electronics": {"training epoch": 4.0},
    "neighbours": {"kNN graph": 5.0},
}
Row = dict[str, typing.Any]  # a line of the page: name, seconds, floor, peak_memory_mb

# ---------------------------------------------------------------- the parts


class Part(typing.NamedTuple):
    """A command, and what it shows."""

    name: str
    title: str
    words: Sequence[str]  # after "python"


def parts(rehearse: bool, memory: float) -> list[Part]:
    """What is run, in order. memory: bytes of the GPU, which decide what of the textbook variant fits."""
    shapes = {"baby": ("baby", "800"), "electronics": ("electronics", "200")}
    users, dim, batch = "192403", "4096", "4096"
    # The textbook's cost takes 18 GB at recdim 800, a few times.
    textbook_sizes, device = ["64", "256", *(["800"] if memory > 6e10 else [])], []
    if rehearse:
        shapes = dict.fromkeys(shapes, ("tiny", "16"))
        users, dim, batch = "300", "16", "512"
        textbook_sizes, device = ["8"], ["--cuda", "0", "--threads", "1", "--repeats", "1"]

    def command(benchmark: str, *words: str) -> list[str]:
        return [f"benchmarks/{benchmark}.py", *device, *words]

    def sized(name: str) -> list[str]:
        shape, recdim = shapes[name]
        return ["--shape", shape, "--recdim", recdim, "--batch", batch]

    tests = ["-m", "pytest", "-m", "gpu", "-rs", "tests/gpu", "tests/training/test_resume_refusals.py"]
    textbook = ["--shape", shapes["baby"][0], "--batch", batch, "--recdim", *textbook_sizes]
    neighbours = ["--rows", users, "--dims", dim, "--textbook", "0", "--repeats", "1"]
    return [
        Part("tests", "Tests that need a GPU", tests),
        Part("baby", "Baby, recdim 800: the published command", command("epoch", *sized("baby"))),
        Part("electronics", "Electronics, recdim 200", command("epoch", *sized("electronics"))),
        Part("neighbours", "All users of Electronics", command("graphs", *neighbours)),
        Part("textbook", "A step of Baby beside the textbook's", command("step", *textbook)),
        Part("profile", "Operations of a step, Baby", command("profile_step", *sized("baby"))),
        *(
            Part(f"baby_{p}", f"Baby, recdim 800, {p}", command("epoch", *sized("baby"), "--precision", p))
            for p in ("tf32", "bf16")
        ),
        Part(
            "baby_graph",
            "Baby, recdim 800, CUDA graph",
            command("epoch", *sized("baby"), "--cuda_graph", "auto" if rehearse else "1"),
        ),
    ]


def run_part(part: Part, folder: Path, limit: float) -> dict[str, typing.Any]:
    """Run a part for at most `limit` seconds: its title, state, seconds, command, output and figures."""
    path = folder / f"{part.name}.json"
    path.unlink(missing_ok=True)
    words = [sys.executable, *part.words, *(() if part.words[0] == "-m" else ("--json", str(path)))]
    result: dict[str, typing.Any] = {
        "title": part.title,
        "command": " ".join(words),
        "state": "no time was left",
        "output": "",
    }
    started = time.perf_counter()
    if limit > 0:
        result["state"], result["output"] = call(words, limit)
    result["seconds"] = time.perf_counter() - started
    if path.exists():
        result["figures"] = json.loads(path.read_text())
        path.unlink()
    return result


def call(words: Sequence[str], limit: float) -> tuple[str, str]:
    """Run a command for at most `limit` seconds: (state, what it printed)."""
    # A group of its own, so that its worker processes end with it.
    process = subprocess.Popen(
        words,
        cwd=bench.ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit)
        return "ok" if process.returncode == 0 else f"exit code {process.returncode}", output
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        return f"stopped after {limit:.0f} s", process.communicate()[0]
    finally:
        if process.poll() is None:  # this process is interrupted
            os.killpg(process.pid, signal.SIGKILL)


def environment() -> dict[str, str]:
    """The machine and the versions."""
    gpu = {}
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        driver = (
            shutil.which("nvidia-smi")
            and subprocess.run(
                ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"],
                capture_output=True,
                text=True,
            ).stdout
        )
        gpu = {
            "GPU": f"{properties.name}, {properties.total_memory / 1e9:.0f} GB, compute capability "
            f"{properties.major}.{properties.minor}, {torch.cuda.device_count()} in the machine",
            "driver": (driver or "unknown").strip(),
            "CUDA, cuDNN": f"{torch.version.cuda}, {torch.backends.cudnn.version()}",
        }
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=bench.ROOT, capture_output=True, text=True)
    return {
        **gpu,
        "torch": torch.__version__,
        "Python": platform.python_version(),
        "CPU": f"{bench.cpu_name()}, {os.cpu_count()} cores",
        "commit": commit.stdout.strip() or "unknown",
        "date": time.strftime("%Y-%m-%d"),
    }


# ---------------------------------------------------------------- the page


def rows_of(result: dict[str, typing.Any]) -> list[Row]:
    """What a part has timed: name, seconds, and where they are known floor and peak_memory_mb."""
    measured = result.get("figures", {})
    figures, kind = measured.get("figures"), measured.get("benchmark")
    if kind == "epoch":
        return [{"name": name, **figure} for name, figure in figures.items()]
    names = {"graphs": ("kNN graph, dim", "dim", "seconds"), "step": ("step, recdim", "recdim", "step")}
    if kind not in names:
        return []
    title, size, times = names[kind]
    rows = []
    for figure in figures:
        seconds = figure[times]["ours"] if kind == "graphs" else figure[times]
        rows.append({**figure, "name": f"{title} {figure[size]}", "seconds": statistics.median(seconds)})
    return rows


def page(report: dict[str, typing.Any]) -> str:
    """The report as Markdown."""
    results, rehearsed = report["parts"], report["rehearsed"]
    sections = [
        "# GPU check"
        + (": a rehearsal with tiny sizes on the CPU, without any meaning" if rehearsed else ""),
        markdown_table([[name, value] for name, value in report["environment"].items()], ["", ""]),
        markdown_table(
            [[name, r["title"], r["state"], f"{r['seconds']:.0f} s"] for name, r in results.items()],
            ["part", "", "state", "took"],
        ),
        "## Times\nThe floor is what the bytes and float32 operations alone take at the measured limits.",
        times_table(results, rehearsed),
    ]
    for name, result in results.items():
        if result["state"] != "ok" or name in ("tests", "textbook", "profile"):
            lines = result["output"].strip().splitlines()[-40:]
            sections.append("\n".join([f"## {result['title']}", "```", *lines, "```"]))
    return "\n\n".join(sections) + "\n"


def goal_of(part: str, name: str) -> float | None:
    """Seconds that a row of a part should take, if there is a goal for it."""
    goals = GOALS.get(part, {})
    return next((s for start, s in goals.items() if name == start or name.startswith(f"{start}, ")), None)


def times_table(results: dict[str, dict[str, typing.Any]], rehearsed: bool) -> str:
    """All that was timed, beside floors and, unless the sizes are tiny, goals."""
    lines = []
    for part, result in results.items():
        for row in rows_of(result):
            seconds, floor = row["seconds"], row.get("floor", 0)
            goal = None if rehearsed else goal_of(part, row["name"])
            lines.append(
                [
                    f"{result['title']}: {row['name']}",
                    f"{seconds:.3g} s",
                    f"{floor:.3g} s, {seconds / floor:.1f} times" if floor else "",
                    "" if goal is None else f"{goal} s: {'met' if seconds <= goal else 'missed'}",
                    f"{row['peak_memory_mb']:.0f} MB",
                ]
            )
    return markdown_table(lines, ["", "time", "floor", "goal", "peak memory"])


def markdown_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Cells as a table in Markdown."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


# ---------------------------------------------------------------- command line


def check(args: argparse.Namespace) -> int:
    """Run the parts and write the report. Returns the exit code."""
    if not args.rehearse and not torch.cuda.is_available():
        raise UserError(
            "no GPU that torch can use: run this on a machine with an NVIDIA GPU and a CUDA build of torch, "
            "or add --rehearse for tiny sizes on the CPU"
        )
    memory = 0 if args.rehearse else torch.cuda.get_device_properties(0).total_memory
    chosen = [part for part in parts(args.rehearse, memory) if not args.parts or part.name in args.parts]
    folder, deadline = Path(args.output), time.perf_counter() + 60 * args.minutes
    folder.mkdir(parents=True, exist_ok=True)
    report: dict[str, typing.Any] = {
        "environment": environment(),
        "rehearsed": args.rehearse,
        "parts": {},
    }
    for part in chosen:
        print(f"{part.title} ...", flush=True)
        result = run_part(part, folder, min(deadline - time.perf_counter(), LIMIT))
        report["parts"][part.name] = result
        print(f"  {result['state']}, {result['seconds']:.0f} s", flush=True)
        write_json(folder / "gpu_check.json", report)
        write_text(folder / "gpu_check.md", page(report))
    print(f"figures in {folder / 'gpu_check.json'}, the page is {folder / 'gpu_check.md'}")
    return 0 if all(result["state"] == "ok" for result in report["parts"].values()) else 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code."""
    parser = Parser(description="Whether everything works on this machine's GPU, and how fast.")
    parser.add_argument(
        "--parts",
        nargs="+",
        choices=[part.name for part in parts(False, 0)],
        default=[],
        help="parts to run (default: all)",
    )
    parser.add_argument("--minutes", type=float, default=10.0, help="time for all parts together")
    parser.add_argument("--rehearse", action="store_true", help="tiny sizes on the CPU, to test this script")
    parser.add_argument(
        "--output", default=str(bench.ROOT / "runs" / "gpu_check"), help="folder of the report"
    )
    return run_tool(check, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
