"""The files of a run folder: settings, log, checkpoints, result and test lists; and the times reported."""

import itertools
import json
import math
import os
import subprocess
import time

import numpy as np
import pytest
import torch
from helpers import random_pairs
from small_runs import METRICS, read_json, read_state, train

import training.folder as folder_module
from models.mf import MF
from training.run import Run
from world import RECIPES, Config


def test_files_and_their_content(small_dataset):
    folder, result, lines = train(small_dataset, epochs=3, seed=7)
    assert {path.name for path in folder.iterdir()} == {
        "config.json",
        "metrics.jsonl",
        "best.pt",
        "last.pt",
        "result.json",
        "test_ranking.npz",
        "train.log",
    }
    assert folder.parent == small_dataset.parent.parent / "runs"
    assert folder.name.startswith("small_lgn_mm_") and folder.name.endswith("_7")
    config = read_json(folder, "config.json")
    assert config.keys() == {*Config.__dataclass_fields__, "provenance"}
    expected = {"seed": 7, "recdim": 8, "topks": [3, 5], "dataset": "small"}
    assert {key: config[key] for key in expected} == expected
    assert read_json(folder) == json.loads(json.dumps(result))
    assert result["status"] == "finished" and result["best_epoch"] in (1, 2, 3)
    names = {f"{name}@{k}" for name in METRICS for k in (3, 5)}
    assert result["valid"].keys() == result["test"].keys() == names
    assert result["peak_memory_mb"] > 50
    versions = {name: result["versions"][name] for name in ("torch", "numpy")}
    assert versions == {"torch": torch.__version__, "numpy": np.__version__}
    for epoch, line in enumerate(lines, 1):
        assert line["epoch"] == epoch and {"step", "seconds", "train", "valid"} <= line.keys()
        assert {"loss", "bpr", "norm", "contrastive"} <= line["train"].keys()
        assert line["valid"].keys() == names
    log = (folder / "train.log").read_text()
    rows = [line.split() for line in log.splitlines()]
    assert [row[0] for row in rows if row[0].isdigit()] == ["1", "2", "3"]
    assert f"best epoch {result['best_epoch']}" in log
    assert f"{result['test']['recall@5']:.4f}" in log


def test_checkpoints_load_without_pickle_and_have_settings_and_metrics(small_dataset):
    folder, result, lines = train(small_dataset, epochs=2)
    best, last = read_state(folder / "best.pt"), read_state(folder / "last.pt")
    assert best["progress"]["epoch"] == result["best_epoch"]
    assert best["progress"]["latest"] == result["valid"]
    assert last["progress"]["epoch"] == 2 and last["progress"]["latest"] == lines[-1]["valid"]
    assert best["config"]["recdim"] == 8 and best["optimizer"]["param_groups"][0]["lr"] == 0.02
    assert best["device"] == last["device"] == "cpu"


def test_the_result_names_the_protocol_and_warns_of_a_selection_on_test(small_dataset):
    folder, result, lines = train(small_dataset, model="mf", select_on="test", mask_valid_at_test=1)
    assert result["protocol"]["selected_on"] == "test"
    assert result["protocol"]["masked_at_test"] == ["train", "valid"]
    assert "valid" not in lines[0] and "test" in lines[0]
    assert "leak" in (folder / "train.log").read_text()
    folder, result, _ = train(small_dataset, model="mf")
    assert result["protocol"]["masked_at_test"] == ["train"]
    assert "leak" not in (folder / "train.log").read_text()


@pytest.mark.parametrize("users", [0, 15])
def test_a_result_selected_on_test_is_the_one_that_was_selected(small_dataset, users):
    """Dropout in scoring draws anew at every evaluation; the final one repeats the draw of the best epoch."""
    changes = dict(select_on="test", eval_dropout=1, eval_dropout_users=users, fuse_drop=0.5, patience=0)
    folder, result, lines = train(small_dataset, epochs=4, **changes)
    best = max((line["test"] for line in lines), key=lambda metrics: metrics["ndcg@3"])
    assert result["test"] == best and "valid" not in result
    with np.load(folder / "test_ranking.npz", allow_pickle=False) as file:
        crow, relevant, items = file["relevant_crow"], file["relevant_items"], file["items"]
    found = [
        len({*relevant[start:stop]} & {*row[:3]}) / (stop - start)
        for (start, stop), row in zip(itertools.pairwise(crow), items)
    ]
    assert np.mean(found) == pytest.approx(best["recall@3"])


def test_the_ranking_file_gives_the_metrics_of_the_result(small_dataset):
    folder, result, _ = train(small_dataset, epochs=3)
    pairs = random_pairs(0, 40, 30, 6)
    train_pairs, test_pairs = ({tuple(pair) for pair in pairs[split].tolist()} for split in ("train", "test"))
    with np.load(folder / "test_ranking.npz", allow_pickle=False) as file:
        users, items, crow, relevant = (
            file[name].tolist() for name in ("users", "items", "relevant_crow", "relevant_items")
        )
        history, popularity = file["history"].tolist(), file["popularity"].tolist()
    relevant = [set(relevant[start:stop]) for start, stop in itertools.pairwise(crow)]
    assert {(user, item) for user, wanted in zip(users, relevant) for item in wanted} == test_pairs
    for k in (3, 5):
        recalls = [len(wanted & set(row[:k])) / len(wanted) for wanted, row in zip(relevant, items)]
        assert result["test"][f"recall@{k}"] == pytest.approx(np.mean(recalls), rel=1e-12)
    assert history == [sum(pairs["train"][:, 0] == user) for user in users]
    assert popularity == [sum(pairs["train"][:, 1] == item) for item in range(30)]
    assert not {(user, item) for user, row in zip(users, items) for item in row} & train_pairs


def test_the_released_recipe_trains_without_warnings(small_dataset, recwarn):
    _, result, lines = train(small_dataset, epochs=2, tensorboard=1, **RECIPES["released"])
    assert result["status"] == "finished"
    assert all(math.isfinite(value) for line in lines for value in line["train"].values())
    assert not [warning for warning in recwarn if issubclass(warning.category, RuntimeWarning)]


def test_the_commit_is_read_without_writing_to_the_repository(tmp_path, monkeypatch):
    """`git status` refreshes the index by default, and leaves its lock behind if it is killed meanwhile."""

    def git(*words):
        command = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b", *words]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    git("init", "-q")
    (tmp_path / "training").mkdir()
    (tmp_path / "training" / "folder.py").write_text("code\n")
    git("add", "."), git("commit", "-qm", "first")
    os.utime(tmp_path / "training" / "folder.py", (1, 1))
    before = (tmp_path / ".git" / "index").read_bytes()
    monkeypatch.setattr(folder_module, "__file__", str(tmp_path / "training" / "folder.py"))
    record = folder_module.provenance()
    assert record["git_commit"] == git("rev-parse", "HEAD").strip() and record["git_dirty"] is False
    assert (tmp_path / ".git" / "index").read_bytes() == before
    git("status")
    assert (tmp_path / ".git" / "index").read_bytes() != before


# ---------------------------------------------------------------- times


def test_reported_seconds_of_an_evaluation_include_the_diagnostics(small_dataset, monkeypatch):
    original = MF.diagnostics
    monkeypatch.setattr(MF, "diagnostics", lambda self: time.sleep(0.2) or original(self))
    _, _, lines = train(small_dataset, model="mf", epochs=2)
    assert all(line["evaluation_seconds"] >= 0.2 for line in lines)
    assert lines[1]["seconds"] - lines[0]["seconds"] >= 0.2


def test_seconds_of_a_run_include_the_writing_of_checkpoints(small_dataset, monkeypatch):
    original, written = Run.save, []

    def save(run, name):
        time.sleep(0.2)
        written.append(name)
        original(run, name)

    monkeypatch.setattr(Run, "save", save)
    _, result, lines = train(small_dataset, model="mf", epochs=2)
    # The seconds of an epoch are reported before its own checkpoints are written.
    before = written[: written.index("last.pt") + 1]
    assert lines[1]["seconds"] - lines[0]["seconds"] >= 0.2 * len(before)
    assert result["seconds"] >= 0.2 * (len(written) - 1)
    seconds = [line["seconds"] for line in lines]
    assert seconds == sorted(seconds) and result["seconds"] >= seconds[-1]
