"""Surroundings that nobody plans for: clocks that step back, users without rights, odd titles, odd paths."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from multiprocessing.pool import ThreadPool
from pathlib import Path

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
    left = [folder / ".last.pt.0badcafe", folder / "projector" / ".item_vectors.tsv.0badcafe"]
    for path in left:
        Path(f"{path}.recgoat.tmp").write_bytes(b"half")
    other = folder / ".notes.tmp"
    other.write_text("another program's")
    assert main(["--resume", str(folder)]) == 0
    assert list(folder.rglob("*.tmp")) == [other]


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
# Runs tools one after the other as a user who owns nothing, and prints [exit code, stdout, stderr] of each.
# Libraries that are imported late are imported before, in case that user may not read them.
AS_NOBODY = f"""
import codecs, contextlib, cProfile, io, json, os, sys
sys.path[:0] = [{str(ROOT)!r}]
import torch, main, recommend, report, session
torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
codecs.lookup("cp437")
os.setgroups([]), os.setgid({NOBODY}), os.setuid({NOBODY})
done = []
for tool, *argv in json.loads(sys.argv[1]):
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = {{"main": main, "recommend": recommend, "report": report}}[tool].main(argv)
    done.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(done))
"""


@pytest.fixture
def public(small_dataset, trained):
    """A folder that everyone may read, unlike tmp_path: data/, a trained run, and mine/ of nobody."""
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        root.chmod(0o755)
        for dataset in ("small", "secret", "hidden/small"):
            shutil.copytree(small_dataset, root / "data" / dataset)
        (root / "data" / "secret" / "text_feat.npy").chmod(0o600)
        (root / "data" / "hidden").chmod(0o700)
        shutil.copytree(trained[1], root / "run")
        (root / "mine").mkdir()
        os.chown(root / "mine", NOBODY, NOBODY)
        yield root


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_a_user_without_rights(public):
    def training(path, dataset):
        argv = command_line(public / "data" / "small", "--model", "lgn_mm", "--recdim", 8)
        argv[argv.index("--path") + 1] = str(public / path)
        return ["main", *argv, "--dataset", dataset]

    lists = [
        "recommend",
        "--checkpoint",
        public / "run",
        "--data_root",
        public / "data",
        "--output",
        public / "a",
    ]
    commands = [
        training("runs", "small"),
        training("mine", "small"),
        training("mine", "secret"),
        training("mine", "hidden/small"),
        ["report", public / "run", "--output", public / "out", "--figures", "0"],
        [*lists, "--output", public / "a"],
    ]
    argv = [
        sys.executable,
        "-c",
        AS_NOBODY,
        json.dumps([[str(word) for word in words] for words in commands]),
    ]
    process = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300, cwd="/")
    assert process.returncode == 0, process.stderr
    no_runs, cached, secret, hidden, no_report, no_lists = json.loads(process.stdout.splitlines()[-1])
    assert_refused(
        no_runs[0], no_runs[2], ["runs", "cannot be created or written (Permission denied)", "--path"]
    )
    assert cached[0] == 0 and "kNN graph not cached" in cached[1] and "Permission denied" in cached[1]
    assert_refused(secret[0], secret[2], ["text_feat.npy: cannot be read (Permission denied)"])
    assert_refused(hidden[0], hidden[2], ["data/hidden/small: cannot be read (Permission denied)"])
    assert_refused(no_report[0], no_report[2], ["out: cannot be created (Permission denied)", "--output"])
    assert no_lists[0] == 1 and no_lists[2].splitlines()[-1].endswith("Permission denied")
    assert sorted(path.name for path in public.iterdir()) == ["data", "mine", "run"]
