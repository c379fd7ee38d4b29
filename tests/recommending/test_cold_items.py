"""recommend.py --cold_items: candidates that were not in training, known by their features alone."""

import numpy as np
import pytest
import torch
from helpers import random_features
from recommend_helpers import N_ITEMS, items_of, load, read_table, train, write_names

from layers.attention import AttentionGraph, GraphAttention

NAMES = ("fourth", "ninth")


@pytest.fixture
def new_items(small_dataset, tmp_path):
    """A folder of two items with the features of items 4 and 9, times 1.5."""
    folder = tmp_path / "new_items"
    folder.mkdir()
    for m in ("text", "image"):
        np.save(folder / f"{m}_feat.npy", np.load(small_dataset / f"{m}_feat.npy")[[4, 9]] * 1.5)
    (folder / "item_ids.tsv").write_text("0\tfourth\n1\tninth\n")
    return folder


def test_appended_nodes_attend_and_are_not_attended_to():
    """Old rows are unchanged, new rows equal the formula of graph attention (eq. 3)."""
    torch.manual_seed(0)
    table = np.array([[1, 2], [2, 3], [3, 0], [0, 1], [2, 1]])
    graph, layer, x = (
        AttentionGraph.from_neighbours(table, 4),
        GraphAttention(6, 8, 4).eval(),
        torch.randn(7, 6),
    )
    new = torch.tensor([[3, 1], [0, 4]])
    out = layer(graph.append_targets(new), x).detach()
    torch.testing.assert_close(out[:5], layer(graph, x[:5]).detach())
    for row, neighbours in enumerate(new, 5):
        nodes = [*neighbours.tolist(), row]
        h = (x @ layer.weight.T).view(7, 4, 2)
        score = (h[row] * layer.a_dst).sum(1) + (h[nodes] * layer.a_src).sum(2)  # [3, H]
        alpha = torch.nn.functional.leaky_relu(score, 0.2).softmax(0)
        expected = (alpha[..., None] * h[nodes]).sum(0).flatten() + layer.bias
        torch.testing.assert_close(out[row], expected.detach())


@torch.no_grad()
def test_vectors_of_recgoat(recgoat, new_items):
    """Attention over nearest items, mean direction and length of their ID vectors, and fusion, by hand."""
    model, dataset, _ = load(recgoat)
    features = {m: np.load(new_items / f"{m}_feat.npy").astype(np.float32) for m in ("text", "image")}
    _, z_id, _ = model.represent()
    z, neighbours = {}, []
    for m, new in features.items():
        old = dataset.features[m].double().numpy()
        cosine = new @ old.T / np.outer(np.linalg.norm(new, axis=1), np.linalg.norm(old, axis=1))
        cosine[:, ~np.isin(np.arange(N_ITEMS), dataset.interactions.train[:, 1])] = -1
        nearest = np.argsort(-cosine)[:, :4]
        assert nearest[:, 0].tolist() == [4, 9]
        graph = model.graphs[m].append_targets(torch.from_numpy(nearest.copy()))
        z[m] = model.branches[m](graph, torch.cat([dataset.features[m], torch.from_numpy(new)]))[-2:]
        neighbours.append(nearest)
    near = z_id.numpy()[np.concatenate(neighbours, 1)]
    mean, length = near.mean(1), np.linalg.norm(near, axis=2).mean(1)
    id_part = mean / np.linalg.norm(mean, axis=1, keepdims=True) * length[:, None]
    expected = model.fusion(torch.from_numpy(id_part), z)
    vectors = model.cold_item_vectors({m: torch.from_numpy(new) for m, new in features.items()})
    torch.testing.assert_close(vectors, expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_cold_items_are_further_candidates(small_dataset, new_items, run, tmp_path, precision):
    folder = train(small_dataset, tmp_path / "runs", "lgn_mm", precision=precision)
    write_names(small_dataset)
    cold = ["--cold_items", str(new_items)]
    known, lists = (read_table(run(folder, "--topk", "20", *flags)[1])[1] for flags in ([], cold))
    assert any(name in items_of(rows) for rows in lists.values() for name in NAMES)
    # The order of the other items is unchanged.
    for user, rows in lists.items():
        rest = [item for item in items_of(rows) if item not in NAMES]
        assert rest == items_of(known[user])[: len(rest)]


@torch.no_grad()
def test_the_neighbourhood_term_gives_cold_items_its_content_part(small_dataset, new_items, run, tmp_path):
    """lambda alpha sum over train(u) and modalities of share * cosine, of the k nearest items with users."""
    weight, alpha, image, k = 0.7, 0.3, 0.4, 4
    term = {"neighbour_weight": weight, "neighbour_content": alpha, "item_graph_image": image}
    folder = train(small_dataset, tmp_path / "runs", "lgn_mm", **term)
    model, dataset, _ = load(folder)
    features = {m: np.load(new_items / f"{m}_feat.npy").astype(np.float64) for m in ("text", "image")}
    cold = model.cold_item_vectors({m: torch.from_numpy(x).float() for m, x in features.items()})
    expected = (model.embeddings()[0] @ cold.T).numpy().astype(float)
    trained = {*dataset.interactions.train[:, 1]}
    for user, item in dataset.interactions.train:
        for m, share in (("text", 1 - image), ("image", image)):
            old = dataset.features[m].double().numpy()
            cosine = features[m] @ old.T
            cosine /= np.outer(np.linalg.norm(features[m], axis=1), np.linalg.norm(old, axis=1))
            for c in range(2):
                if item in [i for i in np.argsort(-cosine[c]) if i in trained][:k]:
                    expected[user, c] += weight * alpha * share * cosine[c, item]
    text = run(folder, "--cold_items", str(new_items), "--topk", str(N_ITEMS + 2))[1]
    for user, rows in read_table(text)[1].items():
        scores = {row[0]: row[1] for row in rows}
        for c, name in enumerate(NAMES):
            assert scores[name] == pytest.approx(expected[int(user), c], rel=1e-4, abs=1e-5)


def test_cold_items_in_similar_items_and_exported_vectors(recgoat, small_dataset, new_items, run, tmp_path):
    write_names(small_dataset)
    (new_items / "item_text.jsonl").write_text('{"item": 1, "title": "Nine"}\n')
    cold = ["--cold_items", str(new_items)]
    text = run(recgoat, *cold, "--similar_items", "ninth,B0003", "--topk", str(N_ITEMS + 1))[1]
    lists = read_table(text)[1]
    assert ("ninth", "Nine") in [(row[0], row[2]) for row in lists["B0003"]]
    assert len(lists["ninth"]) == N_ITEMS + 1
    assert run(recgoat, *cold, "--export_embeddings", str(tmp_path / "v.npz"), output=None)[0] == 0
    with np.load(tmp_path / "v.npz") as arrays:
        assert arrays["item_ids"].tolist()[-2:] == list(NAMES) and arrays["item"].shape == (N_ITEMS + 2, 16)


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda good: good[:, :-1], "it must have 20 dimensions"),
        (lambda good: good[:1], "has 1 rows for 2 items"),
        (lambda good: good * [[1], [0]], "row 1: is all zeros"),
        (lambda good: good * np.nan, "row 0: "),
        (lambda good: good.astype(np.int64), "int64"),
    ],
    ids=["dimensions", "rows", "zeros", "NaN", "type"],
)
def test_bad_features(recgoat, new_items, run, change, message):
    path = new_items / "image_feat.npy"
    np.save(path, change(np.load(path)))
    code, _, err = run(recgoat, "--cold_items", str(new_items))
    assert code == 2 and len(err.splitlines()) == 1 and "image_feat.npy" in err and message in err


def test_missing_files(recgoat, new_items, run):
    """Without item_ids.tsv the ids are numbers, which the data have already."""
    (new_items / "item_ids.tsv").unlink()
    code, _, err = run(recgoat, "--cold_items", str(new_items))
    assert code == 2 and "is in the data already" in err
    (new_items / "image_feat.npy").unlink()
    code, _, err = run(recgoat, "--cold_items", str(new_items))
    assert code == 2 and len(err.splitlines()) == 1 and "image_feat.npy: cannot be read" in err


def test_a_model_without_features_has_no_cold_items(lgn, run, tmp_path):
    np.save(tmp_path / "text_feat.npy", random_features(2, 12))
    code, _, err = run(lgn, "--cold_items", str(tmp_path))
    assert code == 2 and "--cold_items: lgn has no vectors" in err
