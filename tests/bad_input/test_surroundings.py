"""Surroundings that nobody plans for: clocks that step back, users without rights, odd titles, odd paths."""

import json
import os
import shutil
import subprocess
import sys
import time
from multiprocessing.pool import ThreadPool

import numpy as np
import pytest
from broken import ROOT, assert_refused, command_line, runs_folder

import recommend
import report
from main import main

# Half of a surrogate pair, a tab, an escape sequence of the terminal, a formula.
TITLES = ["\ud800 half", "a\tb", "\x1b[2Jclear", "=1+1", "two\u2028lines"]


def write_titles(folder):
    records = (json.dumps({"item": i, "title": TITLES[i % len(TITLES)]}) for i in range(30))
    (folder / "item_text.jsonl").write_text("\n".join(records) + "\n")


@pytest.fixture
def dataset(trained, tmp_path):
    """A copy of the dataset with odd titles, as tmp_path/data/small."""
    folder = shutil.copytree(trained[0], tmp_path / "data" / "small")
    write_titles(folder)
    return folder


def recommend_to(path, run_folder, data_root, *flags):
    argv = ["--checkpoint", run_folder, "--data_root", data_root, "--output", path, "--cuda", 0, *flags]
    return recommend.main([str(word) for word in argv])


@pytest.mark.parametrize("kind", ["tsv", "jsonl", "parquet"])
def test_lists_with_odd_titles(trained, dataset, tmp_path, kind):
    path = tmp_path / f"lists.{kind}"
    assert recommend_to(path, trained[1], dataset.parent, "--format", kind, "--topk", 5) == 0
    if kind == "parquet":
        import pyarrow.parquet

        titles = set(pyarrow.parquet.read_table(path)["title"].to_pylist())
    elif kind == "jsonl":
        titles = {
            title for line in path.read_text("utf-8").splitlines() for title in json.loads(line)["title"]
        }
    else:
        rows = [line.split("\t") for line in path.read_text("utf-8").removesuffix("\n").split("\n")]
        assert {len(row) for row in rows} == {5}
        titles = {row[4] for row in rows[1:]}
    assert titles == {"\ufffd half", "a b", "\ufffd[2Jclear", "=1+1", "two lines"}


def test_projector_labels_with_odd_titles(dataset):
    extra = ["--model", "mf", "--tensorboard", 1, "--projector", 1]
    assert main(command_line(dataset, *extra)) == 0
    (labels,) = runs_folder(dataset).glob("*/projector/item.tsv")
    rows = [line.split("\t") for line in labels.read_text("utf-8").removesuffix("\n").split("\n")]
    assert len(rows) == 31 and {len(row) for row in rows} == {4}


def test_what_a_killed_process_left_in_the_projector_is_removed_on_resume(trained, tmp_path):
    folder = shutil.copytree(trained[1], tmp_path / "run")
    (folder / "projector").mkdir()
    for path in (folder / ".last.pt.0badcafe.tmp", folder / "projector" / ".item_vectors.tsv.0badcafe.tmp"):
        path.write_bytes(b"half")
    assert main(["--resume", str(folder)]) == 0
    assert list(folder.rglob("*.tmp")) == []


def test_a_run_that_was_killed_before_it_wrote_its_settings(tmp_path, capsys):
    (tmp_path / "run").mkdir()
    words = ["config.json: cannot be read", "killed before it wrote anything, remove it and start a new run"]
    assert_refused(main(["--resume", str(tmp_path / "run")]), capsys.readouterr().err, words)


def test_a_clock_that_steps_back(small_dataset, monkeypatch):
    """Runs start, resume and report while every reading of the clock is an hour before the last."""
    clock = [2e9]

    def back():
        clock[0] -= 3600
        return clock[0]

    monkeypatch.setattr(time, "time", back)
    monkeypatch.setattr(time, "time_ns", lambda: int(back() * 1e9))
    original = time.strftime
    monkeypatch.setattr(time, "strftime", lambda form, *t: original(form, *(t or (time.localtime(back()),))))
    argv = command_line(small_dataset, "--model", "mf", "--tensorboard", 1)
    assert main(argv) == main(argv) == 0
    first, second = sorted(runs_folder(small_dataset).iterdir())
    assert main(["--resume", str(first), "--epochs", "3"]) == 0
    epochs = [json.loads(line)["epoch"] for line in (first / "metrics.jsonl").read_text().splitlines()]
    assert epochs == sorted(set(epochs)) and epochs[-1] == 3
    assert len(list(first.glob("events*"))) == 2
    for folder in (first, second):
        result = json.loads((folder / "result.json").read_text())
        assert result["status"] == "finished" and 0 <= result["seconds_to_best"] <= result["seconds"] < 600
    assert report.main([str(second), "--output", str(second.parents[1] / "out"), "--figures", "0"]) == 0


def test_paths_with_line_ends(trained, tmp_path, capsys):
    """A report of runs in a folder whose name has line ends keeps its tables whole; a new run refuses it."""
    folder = shutil.copytree(trained[1], tmp_path / "a\n| b |\tc" / "run")
    assert report.main([str(folder), "--list"]) == 0
    table = [line for line in capsys.readouterr().out.splitlines() if line.startswith("|")]
    assert len(table) == 3 and len({line.replace(r"\|", "").count("|") for line in table}) == 1
    assert main(["--resume", str(folder)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and err.count("\n") == 1


def test_several_processes_that_write_lists_to_one_file(trained, tmp_path):
    """The file is one of their outputs, whole, whichever was the last."""
    lengths = (3, 7, 11)
    wholes = {}
    for k in lengths:
        assert recommend_to(tmp_path / "whole", trained[1], trained[0].parent, "--topk", k) == 0
        wholes[k] = (tmp_path / "whole").read_bytes()
    (tmp_path / "whole").unlink()
    target = tmp_path / "lists.tsv"
    with ThreadPool(3) as pool:
        jobs = [
            pool.apply_async(recommend_to, (target, trained[1], trained[0].parent, "--topk", k))
            for k in lengths * 3
        ]
        seen = set()
        while not all(job.ready() for job in jobs):
            if target.exists():
                seen.add(target.read_bytes())
        assert [job.get() for job in jobs] == [0] * 9
    assert seen | {target.read_bytes()} <= set(wholes.values())
    assert list(tmp_path.iterdir()) == [target]


# ---------------------------------------------------------------- a user without rights


NOBODY = 65534
AS_USER = f"""
import os, sys
sys.path[:0] = [{str(ROOT)!r}]
from main import main
import cProfile, report, recommend, torch
# Users without rights may not be able to read the libraries that are imported late.
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
tool = {{"main": main, "report": report.main, "recommend": recommend.main}}[sys.argv[1]]
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
sys.exit(tool(sys.argv[2:]))
"""


@pytest.fixture
def as_nobody(small_dataset, tmp_path):
    """Function that runs a tool as a user who may read the dataset and write nowhere: (code, stderr)."""
    if os.geteuid() != 0:
        pytest.skip("only root can become another user")
    for path in [tmp_path, *tmp_path.parents]:
        if path.stat().st_uid == 0 and path != path.parent and not path.stat().st_mode & 0o001:
            path.chmod(path.stat().st_mode | 0o001)

    def run(tool, *argv):
        words = [sys.executable, "-c", AS_USER, tool, *map(str, argv)]
        done = subprocess.run(words, capture_output=True, text=True, check=False, timeout=120, cwd=tmp_path)
        assert "Traceback" not in done.stdout + done.stderr, done.stderr
        return done.returncode, done.stderr, done.stdout

    return run


def test_a_user_without_rights(small_dataset, as_nobody, tmp_path):
    argv = command_line(small_dataset, "--model", "lgn_mm", "--recdim", 8)
    code, err, _ = as_nobody("main", *argv)
    assert_refused(code, err, ["runs", "cannot be created or written", "Permission denied", "--path"])
    (tmp_path / "mine").mkdir()
    os.chown(tmp_path / "mine", NOBODY, NOBODY)
    argv = ["--path" if word == "--path" else word for word in argv]
    argv[argv.index("--path") + 1] = str(tmp_path / "mine")
    code, err, out = as_nobody("main", *argv)
    assert code == 0 and "kNN graph not cached" in out and "Permission denied" in out
    (run_folder,) = (tmp_path / "mine").iterdir()
    code, err, _ = as_nobody("recommend", "--checkpoint", run_folder, "--output", tmp_path / "lists.tsv")
    assert code == 1 and "lists.tsv" in err and "Permission denied" in err
    code, err, _ = as_nobody("report", run_folder, "--output", tmp_path / "out", "--figures", 0)
    assert_refused(code, err, [f"{tmp_path}/out: cannot be created (Permission denied)", "--output"])
    (small_dataset / "text_feat.npy").chmod(0o600)
    code, err, _ = as_nobody("main", *argv)
    assert_refused(code, err, ["text_feat.npy: cannot be read (Permission denied)"])
    np.load(small_dataset / "text_feat.npy")
