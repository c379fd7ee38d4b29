"""Exports of recommend.py: from the files alone, other programs make the same lists and scores."""

import json
import shutil
import sys

import numpy as np
import pytest
import scipy.sparse as sp
import yaml
from recommend_helpers import N_ITEMS, N_USERS, items_of, read_table, train, write_names

from data.formats import read_interactions

safetensors = pytest.importorskip("safetensors.numpy")


def read_ids(path):
    """The ids of a file of lines "row TAB id"."""
    rows = [line.split("\t") for line in path.read_text("utf-8").splitlines()]
    assert [int(number) for number, _ in rows] == [*range(len(rows))]
    return [name for _, name in rows]


def read_history(folder):
    """TRAIN interactions [U, I], dense."""
    history = np.zeros((N_USERS, N_ITEMS), np.float32)
    history[tuple(read_interactions(folder, "txt").train.T)] = 1
    return history


def rebuilt_scores(arrays, history):
    """Scores [U, I] from exported arrays and TRAIN interactions, as docs and card tell it."""
    scores = arrays["user"] @ arrays["item"].T
    if "weights_values" not in arrays:
        return scores
    parts = tuple(arrays[f"weights_{name}"] for name in ("values", "columns", "rows"))
    term = history @ sp.csr_matrix(parts, (N_ITEMS, N_ITEMS)).toarray()
    if arrays["weights_spread"][0]:
        scores = scores / scores.std(1, ddof=1, keepdims=True)
        term = term / np.maximum(term.std(1, ddof=1, keepdims=True), 1e-12)  # a user may have no TRAIN item
    return scores + arrays["weights_factor"] * term


CASES = [
    ("lgn_mm", {}),
    ("lgn", {"neighbour_weight": 0.7}),
    ("lgn", {"neighbour_weight": 0.7, "neighbour_scale": "spread"}),
    ("itemknn", {}),
]


@pytest.mark.parametrize("model, changes", CASES)
@pytest.mark.parametrize("name", ["v.npz", "v.safetensors"])
def test_scores_can_be_rebuilt_from_an_export(small_dataset, tmp_path, run, name, model, changes):
    write_names(small_dataset)
    folder = train(small_dataset, tmp_path / "runs", model, **changes)
    assert run(folder, "--export_embeddings", str(tmp_path / name), output=None)[0] == 0
    if name.endswith("npz"):
        with np.load(tmp_path / name, allow_pickle=False) as file:
            arrays = dict(file)
        users, items = arrays.pop("user_ids").tolist(), arrays.pop("item_ids").tolist()
    else:
        arrays = safetensors.load_file(tmp_path / name)
        users, items = (read_ids(tmp_path / f"v.{kind}_ids.tsv") for kind in ("user", "item"))
    assert users[7] == "user-7é" and items[7] == "B0007"
    scores = rebuilt_scores(arrays, read_history(small_dataset))
    lists = read_table(run(folder, "--topk", "30", "--exclude", "none")[1])[1]
    for user, rows in lists.items():
        for item, score, *_ in rows:
            assert scores[users.index(user), items.index(item)] == pytest.approx(score, rel=1e-4, abs=1e-5)


def test_a_search_with_faiss_gives_the_lists(recgoat, small_dataset, run, tmp_path):
    """As docs/recommend.md tells it: ask for more, and leave out what the user has."""
    faiss = pytest.importorskip("faiss", reason="faiss is optional")
    write_names(small_dataset)
    files = [
        "--export_embeddings",
        str(tmp_path / "v.safetensors"),
        "--export_faiss",
        str(tmp_path / "v.faiss"),
    ]
    assert run(recgoat, *files, output=None)[0] == 0
    index, items = faiss.read_index(str(tmp_path / "v.faiss")), read_ids(tmp_path / "v.faiss.item_ids.tsv")
    history = read_history(small_dataset)
    longest = int(history.sum(1).max())
    user = safetensors.load_file(tmp_path / "v.safetensors")["user"]
    scores, found = index.search(user, 5 + longest)
    lists = read_table(run(recgoat, "--topk", "5")[1])[1]
    for number, name in enumerate(read_ids(tmp_path / "v.user_ids.tsv")):
        kept = [(items[i], s) for i, s in zip(found[number], scores[number]) if not history[number, i]][:5]
        assert [item for item, _ in kept] == items_of(lists[name])
        assert [score for _, score in kept] == pytest.approx([row[1] for row in lists[name]], rel=1e-4)


def test_an_index_is_without_the_term_and_says_so(small_dataset, tmp_path, run):
    pytest.importorskip("faiss", reason="faiss is optional")
    folder = train(small_dataset, tmp_path / "runs", "lgn", neighbour_weight=0.5)
    code, _, err = run(folder, "--export_faiss", str(tmp_path / "x.faiss"), output=None)
    assert code == 0 and "which the index is without" in err
    knn = train(small_dataset, tmp_path / "knn", "itemknn")
    code, _, err = run(knn, "--export_faiss", str(tmp_path / "y.faiss"), output=None)
    assert code == 2 and "has no vectors" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize("flag, package", [("--export_faiss", "faiss"), ("--export_hub", "safetensors")])
def test_without_a_package_the_remedy_is_named(lgn, run, tmp_path, monkeypatch, flag, package):
    monkeypatch.setitem(sys.modules, package, None)
    code, _, err = run(lgn, flag, str(tmp_path / "x"), output=None)
    assert code == 2 and f"needs {package}: pip install" in err and len(err.splitlines()) == 1


# ---------------------------------------------------------------- the folder for a hub


@pytest.fixture
def hub(small_dataset, tmp_path, run):
    """Function that exports a run with these settings: (folder, header of the card, text of the card)."""

    def export(model="lgn", **changes):
        folder = train(small_dataset, tmp_path / "runs", model, **changes)
        assert run(folder, "--export_hub", str(tmp_path / "hub"), output=None)[0] == 0
        _, header, text = (tmp_path / "hub" / "README.md").read_text("utf-8").split("---\n", 2)
        return tmp_path / "hub", yaml.safe_load(header), text

    return export


def test_a_folder_for_a_hub_is_complete(hub, small_dataset, tmp_path):
    write_names(small_dataset)
    folder, header, text = hub(lr=0.03)
    names = {"README.md", "config.json", "embeddings.safetensors", "item_ids.tsv", "user_ids.tsv"}
    assert {path.name for path in folder.iterdir()} == names
    assert header["license"] == "other" and "recommender-system" in header["tags"]
    assert read_ids(folder / "item_ids.tsv")[3] == "B0003"
    settings = json.loads((folder / "config.json").read_text())
    assert settings["lr"] == 0.03 and settings["dataset"] == "small" and "data_root" not in settings
    assert str(tmp_path) not in text + (folder / "config.json").read_text()
    (result,) = (tmp_path / "runs").glob("*/result.json")
    stored = json.loads(result.read_text())
    for words in (
        "# LightGCN on small",
        "| lr | 0.03 |",
        f"| test | 5 | {stored['test']['recall@5']:.4f} | {stored['test']['ndcg@5']:.4f} |",
        "train items masked at test",
        f"| interactions | {stored['data']['interactions']} |",
        "their terms of use apply",
    ):
        assert words in text, words
    assert "neighbourhood" not in text


def test_a_card_of_a_result_that_lacks_entries(lgn, run, tmp_path):
    copy = tmp_path / "older"
    shutil.copytree(lgn, copy)
    result = json.loads((copy / "result.json").read_text())
    for entry in ("protocol", "best_epoch", "valid"):
        del result[entry]
    (copy / "result.json").write_text(json.dumps(result))
    assert run(copy, "--export_hub", str(tmp_path / "hub"), output=None)[0] == 0
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "The epoch (unknown)" in text and "| valid | 5 | – |" in text


def test_the_code_of_a_card_rebuilds_the_scores(hub, small_dataset, tmp_path, run, monkeypatch):
    folder, _, text = hub(neighbour_weight=0.7)
    assert "**without**" in text
    code = "\n".join(part.partition("```")[0] for part in text.split("```python\n")[1:])
    monkeypatch.chdir(folder)
    history = sp.csr_matrix(read_history(small_dataset))
    names = {"given": history}
    exec(code.replace("history = ...", "history = given"), names)
    (trained,) = (tmp_path / "runs").iterdir()
    lists = read_table(run(trained, "--topk", "30", "--exclude", "none")[1])[1]
    for user, rows in lists.items():
        shown = [names["scores"][int(user), int(item)] for item in items_of(rows)]
        assert shown == pytest.approx([row[1] for row in rows], rel=1e-4, abs=1e-5)


def test_text_of_a_dataset_is_quoted_in_a_card(small_dataset, tmp_path, run):
    strange = small_dataset.rename(small_dataset.parent / "a|b<script>`*")
    folder = train(strange, tmp_path / "runs", "mf")
    assert run(folder, "--export_hub", str(tmp_path / "hub"), output=None)[0] == 0
    text = (tmp_path / "hub" / "README.md").read_text()
    assert "<script" not in text.replace("\\<script", "") and "a\\|b\\<script" in text
    assert "| dataset | a\\|b\\<script>\\`\\* |" in text


def test_a_folder_keeps_what_no_export_has_written(lgn, run, tmp_path):
    before = (lgn / "config.json").read_bytes()
    code, _, err = run(lgn, "--export_hub", str(lgn), output=None)
    assert code == 2 and "name a new folder" in err and (lgn / "config.json").read_bytes() == before
    target = tmp_path / "hub"
    target.mkdir()
    (target / "README.md").write_text("mine")
    assert run(lgn, "--export_hub", str(target), output=None)[0] == 2
    (target / "README.md").unlink()
    assert [run(lgn, "--export_hub", str(target), output=None)[0] for _ in range(2)] == [0, 0]


def test_the_card_of_last_pt_has_no_metrics_of_best_pt(lgn, run, tmp_path):
    for name, has_metrics in (("best", True), ("last", False)):
        assert run(lgn / f"{name}.pt", "--export_hub", str(tmp_path / name), output=None)[0] == 0
        assert ("| test | 5 |" in (tmp_path / name / "README.md").read_text()) == has_metrics


def test_a_folder_that_cannot_be_made_is_refused(lgn, run, tmp_path):
    (tmp_path / "file").write_text("")
    code, _, err = run(lgn, "--export_hub", str(tmp_path / "file"), output=None)
    assert code == 2 and "cannot be created" in err and len(err.splitlines()) == 1
