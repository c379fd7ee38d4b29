"""scripts/gpu_check.sh: its parts with tiny sizes on the CPU, parts that fail, and its page."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import gpu_check

ROOT = Path(__file__).resolve().parents[1]


def run_script(*words):
    command = ["bash", ROOT / "scripts" / "gpu_check.sh", *words]
    environment = {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"}
    return subprocess.run(command, capture_output=True, text=True, env=environment)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path):
    done = run_script("--output", tmp_path / "report")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: no GPU that torch can use: ") and done.stderr.count("\n") == 1
    assert not (tmp_path / "report").exists()


@pytest.mark.slow
def test_rehearsal(tmp_path):
    """One of the parts; the benchmarks behind the others have tests of their own."""
    done = run_script("--rehearse", "--output", tmp_path, "--parts", "electronics")
    assert (done.returncode, done.stderr) == (0, "")
    assert {path.name for path in tmp_path.iterdir()} == {"gpu_check.json", "gpu_check.md"}
    report = json.loads((tmp_path / "gpu_check.json").read_text())
    assert {name: result["state"] for name, result in report["parts"].items()} == {"electronics": "ok"}
    text = (tmp_path / "gpu_check.md").read_text()
    assert text.startswith("# GPU check: a rehearsal") and "goal" in text and ": met" not in text
    for words in ("training epoch, 8 steps | ", "evaluation, valid | ", "kNN graph, 300 x 48 | "):
        assert words in text


def test_parts_are_those_of_the_true_sizes():
    full, rehearsed = gpu_check.parts(False, 8e10), gpu_check.parts(True, 0)
    assert [part.name for part in full] == [part.name for part in rehearsed]
    words = {part.name: " ".join(part.words) for part in full}
    assert words["baby"] == "benchmarks/epoch.py --shape baby --recdim 800 --batch 4096"
    assert words["electronics"] == "benchmarks/epoch.py --shape electronics --recdim 200 --batch 4096"
    assert "--rows 192403 --dims 4096" in words["neighbours"]
    assert all((ROOT / word).exists() for part in full for word in part.words if "/" in word)
    assert words["textbook"].endswith("--recdim 64 256 800")
    assert " ".join(gpu_check.parts(False, 1e10)[4].words).endswith("--recdim 64 256")


@pytest.mark.parametrize(
    "code, limit, state",
    [
        ("print('fine')", 60, "ok"),
        ("print('fine'); raise SystemExit(7)", 60, "exit code 7"),
        ("print('fine', flush=True); import time; time.sleep(60)", 5, "stopped after 5 s"),
        ("", 0, "no time was left"),
    ],
)
def test_a_part_that_fails_is_reported_with_its_output(tmp_path, code, limit, state):
    part = gpu_check.Part("part", "A part", ["-c", code])
    result = gpu_check.run_part(part, tmp_path, limit)
    assert result["state"] == state
    assert result["output"] == ("fine\n" if code else "")
    report = {"environment": {"GPU": "none"}, "rehearsed": False, "parts": {"part": result}}
    assert ("## A part\n```\nfine" in gpu_check.page(report)) == (state not in ("ok", "no time was left"))


def test_page_compares_times_with_floors_and_goals():
    row = {"seconds": 0.2, "floor": 0.05, "peak_memory_mb": 1.0}
    rows = {"training epoch, 29 steps": row, "evaluation, valid": row, "evaluation, valid and test": row}
    result = {"title": "Baby", "state": "ok", "seconds": 9.0, "output": ""}
    result["figures"] = {"benchmark": "epoch", "figures": rows}
    text = gpu_check.page({"environment": {}, "rehearsed": False, "parts": {"baby": result}})
    assert "| Baby: training epoch, 29 steps | 0.2 s | 0.05 s, 4.0 times | 0.3 s: met | 1 MB |" in text
    assert "| Baby: evaluation, valid | 0.2 s | 0.05 s, 4.0 times | 0.1 s: missed | 1 MB |" in text
    assert "| Baby: evaluation, valid and test | 0.2 s | 0.05 s, 4.0 times |  | 1 MB |" in text


def test_page_knows_the_figures_of_every_benchmark():
    graph = {"dim": 4096, "seconds": {"ours": [6.0]}, "floor": 2.0, "peak_memory_mb": 9.0}
    step = {"recdim": 64, "step": [3.0, 1.0, 2.0], "peak_memory_mb": 7.0}
    parts = {}
    for name, benchmark, figure in (("neighbours", "graphs", graph), ("textbook", "step", step)):
        figures = {"benchmark": benchmark, "figures": [figure]}
        parts[name] = {"title": "T", "state": "ok", "seconds": 9.0, "output": "fine", "figures": figures}
    text = gpu_check.page({"environment": {}, "rehearsed": False, "parts": parts})
    assert "| T: kNN graph, dim 4096 | 6 s | 2 s, 3.0 times | 5.0 s: missed | 9 MB |" in text
    assert "| T: step, recdim 64 | 2 s |  |  | 7 MB |" in text
