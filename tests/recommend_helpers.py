"""Shared by the tests of recommend.py: short runs to recommend from, names of a dataset, and its output."""

import json

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from small_runs import command_line, only

import main
import recommend
from recommending.trained import load_run

N_USERS, N_ITEMS = 40, 30  # of the fixture small_dataset


def train(folder, runs, model, **changes):
    """Train two epochs on a dataset folder. Returns the run folder."""
    settings = {"topks": "5,10", "recdim": 16, "attn_heads": 4, "epochs": 2, **changes}
    # Some tests of vectors run without gradients.
    with torch.enable_grad():
        assert main.main(command_line(folder, runs, model=model, **settings)) == 0
    return only(runs)


@pytest.fixture
def lgn(small_dataset, tmp_path):
    """Run folder of LightGCN."""
    return train(small_dataset, tmp_path / "runs", "lgn")


@pytest.fixture
def recgoat(small_dataset, tmp_path):
    """Run folder of RecGOAT."""
    return train(small_dataset, tmp_path / "runs", "lgn_mm")


@pytest.fixture
def run(tmp_path, capsys):
    """Function that runs recommend.py: (exit code, text of the output file or None, stderr)."""

    def run(folder, *flags, output="out"):
        target = ["--output", str(tmp_path / output)] if output else []
        code = recommend.main(["--checkpoint", str(folder), "--cuda", "0", *flags, *target])
        written = output and (tmp_path / output).exists()
        return code, (tmp_path / output).read_text("utf-8") if written else None, capsys.readouterr().err

    return run


def load(folder):
    """(model in eval mode, dataset, config) of best.pt."""
    return load_run(folder / "best.pt", {"cuda": 0})


def write_names(folder):
    """Original ids of users and items, and titles of every other item, for a dataset folder."""
    (folder / "user_ids.tsv").write_text("".join(f"{u}\tuser-{u}é\n" for u in range(N_USERS)), "utf-8")
    (folder / "item_ids.tsv").write_text("".join(f"{i}\tB{i:04d}\n" for i in range(N_ITEMS)))
    records = (
        {"item": i, "id": f"B{i:04d}", "title": f"Title\tof  {i}\n" if i % 2 else ""}
        for i in reversed(range(N_ITEMS))
    )
    (folder / "item_text.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))


def read_table(text):
    """(header, {query: [(item, score, *title), ...]}) of tab-separated output, whose ranks are checked."""
    header, *lines = text.splitlines()
    lists = {}
    for line in lines:
        query, rank, item, score, *title = line.split("\t")
        lists.setdefault(query, []).append((item, float(score), *title))
        assert int(rank) == len(lists[query])
    return header.split("\t"), lists


def items_of(rows):
    """The items of one list."""
    return [row[0] for row in rows]


def sparse_histories(histories):
    """Lists of items as the sparse 0/1 matrix that new_user_vectors takes."""
    rows = np.repeat(np.arange(len(histories)), [len(items) for items in histories])
    values = np.ones(len(rows), np.float32)
    return sp.csr_matrix((values, (rows, np.concatenate(histories))), (len(histories), N_ITEMS))
