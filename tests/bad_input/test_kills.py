"""Tools that are killed at their renames and fsyncs: every file is the old one or the new one, never a part.

main.py, tune.py and the downloads have tests of their own. A process dies as by kill -9, without cleaning up.
"""

import importlib
import os
import shutil
import sys

import pytest
from helpers import random_pairs

from benchmarks.processes import SERVER, finish

KILLED = 137
HIDDEN = (".tmp", ".lock")  # what a killed process may leave, besides hidden folders


def run_and_die(tool, argv, number):
    """Run a tool and die before its n-th rename or fsync; 0: run to the end."""
    calls = 0

    def dying(function):
        def call(*args, **named):
            nonlocal calls
            calls += 1
            if calls == number:
                os._exit(KILLED)
            return function(*args, **named)

        return call

    os.replace, os.rename, os.fsync = map(dying, (os.replace, os.rename, os.fsync))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
    sys.exit(importlib.import_module(tool).main([str(word) for word in argv]))


def run(tool, argv, number=0):
    """Exit code of run_and_die in a process of its own."""
    process = SERVER.Process(target=run_and_die, args=(tool, argv, number))
    process.start()
    return finish(process)


def contents(folder):
    """{name: bytes} of the files that a tool has made; a page has the time at which it was made."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
        and path.suffix not in (*HIDDEN, ".html", ".md")
        and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    }


# ---------------------------------------------------------------- the tools


def lists(trained, folder):
    (folder / "lists.tsv").write_text("old\n")
    flags = ["--checkpoint", trained[1], "--data_root", trained[0].parent, "--cuda", 0, "--topk", 5]
    return "recommend", [*flags, "--output", folder / "lists.tsv"]


def vectors(trained, folder):
    flags = ["--checkpoint", trained[1], "--data_root", trained[0].parent, "--cuda", 0]
    return "recommend", [*flags, "--export_embeddings", folder / "vectors.npz"]


def tables(trained, folder):
    (folder / "tables.tex").write_text("old\n")
    return "report", [trained[1], "--output", folder, "--figures", 0]


def synthetic(trained, folder):
    return "data.synthetic", ["made", "--data_root", folder, "--users", 50, "--items", 60]


def prepared(trained, folder):
    table = folder.parent / "orders.csv"
    pairs = [pair for rows in random_pairs(0, 40, 30, 6).values() for pair in rows.tolist()]
    lines = [f"u{user},i{item},{number}" for number, (user, item) in enumerate(pairs)]
    table.write_text("\n".join(["user,item,timestamp", *lines]) + "\n")
    return "data.prepare", ["made", "--interactions", table, "--data_root", folder, "--core", 2]


@pytest.mark.parametrize("make", [lists, vectors, tables, synthetic, prepared])
def test_every_file_is_old_or_new(make, trained, tmp_path):
    (tmp_path / "whole").mkdir()
    assert run(*make(trained, tmp_path / "whole")) == 0
    new = contents(tmp_path / "whole")
    assert new
    kills, number = 0, 1
    folder = tmp_path / "killed"
    while True:
        folder.mkdir()
        tool, argv = make(trained, folder)
        old = contents(folder)
        code = run(tool, argv, number)
        for name, content in contents(folder).items():
            assert content in (old.get(name), new.get(name)), (name, number)
        if code == 0:
            break
        assert code == KILLED
        kills += 1
        assert run(tool, argv) == 0, "the next process is hindered by what the killed one left"
        assert contents(folder) == new
        shutil.rmtree(folder)
        # All points of tools that write one file, and some of the others.
        number += 1 if len(new) == 1 else 7
    assert kills >= 2
