"""FREEDOM, compared with dense algebra; its thinned graphs, with sets of edges and sampling theory."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from model_helpers import CPU, batch_of, bpr_by_hand, build, norm_by_hand, randn, settings

from data.graphs import normalised_adjacency
from models.freedom import FREEDOM, graph_shares, mean_neighbour_graph

TRIPLES = [0, 1, 1], [0, 2, 3], [5, 6, 5]


def build_freedom(folder, **changes):
    """FREEDOM on the small dataset, which has 40 users, with two LightGCN layers and batches of 3."""
    return build(folder, **{"model": "freedom", "recdim": 6, "layer": 2, "bpr_batch": 3, **changes})


# ---------------------------------------------------------------- the item graph


def test_item_graph_is_the_weighted_mean_over_neighbours():
    # Item 2 has no neighbour by text, item 3 none by image: their rows name themselves.
    text = np.array([[1, 2], [0, 2], [2, 2], [0, 1]])
    image = np.array([[3, 1], [2, 3], [1, 0], [3, 3]])
    graph = mean_neighbour_graph({"text": text, "image": image}, {"text": 0.9, "image": 0.1})
    expected = np.zeros((4, 4))
    for share, table in ((0.9, text), (0.1, image)):
        for i, row in enumerate(table):
            others = {j for j in row if j != i}
            for j in others:
                expected[i, j] += share / len(others)
    assert graph.dtype == np.float32
    np.testing.assert_allclose(graph.toarray(), expected, rtol=1e-6)


def test_model_has_the_item_graph_of_its_dataset_and_its_transpose(small_dataset):
    model = build_freedom(small_dataset, item_graph_image=0.3)
    rows = {}
    for m in ("text", "image"):
        x = np.load(small_dataset / f"{m}_feat.npy").astype(np.float64)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        cosines = unit @ unit.T - 9 * np.eye(30)
        rows[m] = np.zeros((30, 30))
        np.put_along_axis(rows[m], np.argsort(-cosines, axis=1)[:, :4], 0.25, axis=1)
    expected = 0.7 * rows["text"] + 0.3 * rows["image"]
    np.testing.assert_allclose(model.item_graph.to_dense().numpy(), expected, rtol=1e-5)
    np.testing.assert_allclose(model.item_graph_transposed.to_dense().numpy(), expected.T, rtol=1e-5)


@pytest.mark.parametrize(
    "modalities, expected",
    [
        (["text"], [1]),
        (["image"], [1]),
        (["text", "image"], [0.9, 0.1]),
        (["text", "audio"], [0.5, 0.5]),
        (["text", "image", "audio"], [0.45, 0.1, 0.45]),
    ],
)
def test_graph_shares(modalities, expected):
    assert list(graph_shares(modalities, 0.1).values()) == pytest.approx(expected)


# ---------------------------------------------------------------- vectors and loss


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_embeddings_and_gradients_equal_dense_algebra(small_dataset, layers):
    model = build_freedom(small_dataset, item_graph_layers=layers).eval()
    adjacency, graph = model.adjacency.to_dense().double(), model.item_graph.to_dense().double()
    start = torch.cat([model.user, model.item]).detach().double().requires_grad_()
    mean = (start + adjacency @ start + adjacency @ adjacency @ start) / 3
    content = torch.linalg.matrix_power(graph, layers) @ start[40:]
    expected = torch.cat([mean[:40], mean[40:] + content])
    probe = randn(*expected.shape, seed=1)
    user, item = model.embeddings()
    torch.testing.assert_close(torch.cat([user, item]).double(), expected, rtol=1e-5, atol=1e-6)
    (torch.cat([user, item]) * probe.float()).sum().backward()
    (expected * probe).sum().backward()
    found = torch.cat([model.user.grad, model.item.grad]).double()
    torch.testing.assert_close(found, start.grad, rtol=1e-5, atol=1e-5)


def test_loss_is_the_weighted_sum_of_its_terms(small_dataset):
    model, batch = build_freedom(small_dataset, decay=0.2, feature_bpr_weight=0.5).eval(), batch_of(*TRIPLES)
    user, item = model.embeddings()
    features = 0
    for m in ("text", "image"):
        matrix = torch.from_numpy(np.load(small_dataset / f"{m}_feat.npy").astype(np.float32))
        features += bpr_by_hand(user, model.project[m](matrix), batch)
    bpr, norm = bpr_by_hand(user, item, batch), norm_by_hand(model.user, model.item, batch)
    expected = {"bpr": bpr, "norm": norm, "feature_bpr": features, "loss": bpr + 0.2 * norm + 0.5 * features}
    terms = {name: value.item() for name, value in model.loss(batch).items()}
    assert terms == pytest.approx(expected, rel=1e-5)


def test_gradients_reach_every_parameter(small_dataset):
    model = build_freedom(small_dataset).train()
    model.begin_step(0)
    model.loss(batch_of(*TRIPLES))["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


# ---------------------------------------------------------------- the thinned user-item graph


def tiny_model(pairs, n_users, n_items, **changes):
    """FREEDOM with features of one dimension on these pairs."""
    sizes = dict(n_users=n_users, n_items=n_items, cold_items=np.zeros(0, np.int64))
    ratings = np.arange(1, len(pairs) + 1, dtype=np.float32)
    interactions = SimpleNamespace(train=np.array(pairs), train_rating=ratings, **sizes)
    config = settings(model="freedom", recdim=2, bpr_batch=2, **changes)
    dataset = SimpleNamespace(
        interactions=interactions,
        adjacency=normalised_adjacency(interactions, config.edge_weight, CPU),
        neighbours={"text": np.arange(n_items)[::-1, None]},
        features={"text": torch.ones(n_items, 1)},
    )
    return FREEDOM(config, dataset)


def edges_of(adjacency, n_users):
    """{(user, item)} of a normalised graph, whose weights have to be 1 / sqrt of the degrees in it."""
    dense = adjacency.to_dense().numpy()
    rows = dense[:n_users, n_users:]
    degree_u, degree_i = (rows > 0).sum(1), (rows > 0).sum(0)
    for u, i in np.argwhere(rows):
        assert rows[u, i] == pytest.approx(1 / math.sqrt(degree_u[u] * degree_i[i]), rel=1e-6)
    np.testing.assert_array_equal(dense, dense.T)
    return set(map(tuple, np.argwhere(rows).tolist()))


def test_thinned_graph_keeps_its_share_of_the_train_edges_and_normalises_them_anew(small_dataset):
    model = build_freedom(small_dataset, edge_dropout=0.75)
    train = edges_of(model.adjacency, 40)
    assert train == set(map(tuple, model.pairs.tolist()))
    kept = [edges_of(model.thin(epoch), 40) for epoch in range(3)]
    assert all(len(part) == len(train) // 4 and part < train for part in kept)
    assert kept[0] != kept[1] != kept[2]


def test_edges_of_popular_nodes_are_dropped_more_often():
    """With one edge kept, edge (u, i) is the one with probability proportional to 1 / sqrt(deg u deg i)."""
    pairs = [(0, 0), (1, 0), (2, 0), (2, 1), (3, 2)]
    odds = np.array([1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(6), 1 / math.sqrt(2), 1])
    model, draws = tiny_model(pairs, 4, 3, edge_dropout=0.8), 4000
    counts = Counter(edge for epoch in range(draws) for edge in edges_of(model.thin(epoch), 4))
    observed, expected = np.array([counts[pair] for pair in pairs]), draws * odds / odds.sum()
    # Chi-square with 4 degrees of freedom: p = 0.001.
    assert observed.sum() == draws and ((observed - expected) ** 2 / expected).sum() < 18.5


def test_edges_keep_their_ratings():
    pairs = [(0, 0), (0, 1), (1, 1)]
    model = tiny_model(pairs, 2, 2, edge_weight="rating", edge_dropout=0.0)
    assert model.thin(0).to_dense()[0, 3] == pytest.approx(2 / math.sqrt(2 * 2))
    assert torch.equal(model.thin(0).to_dense(), model.adjacency.to_dense())


def test_at_least_one_edge_is_kept():
    model = tiny_model([(0, 0), (1, 1)], 2, 2, edge_dropout=0.99)
    assert len(edges_of(model.thin(0), 2)) == 1


def test_graph_of_training_depends_on_the_epoch_alone(small_dataset):
    model, graphs = build_freedom(small_dataset).train(), []
    for step in range(2 * model.steps_per_epoch):
        model.begin_step(step)
        graphs.append(edges_of(model.graph(), 40))
    steps, first, second = model.steps_per_epoch, graphs[0], graphs[-1]
    assert graphs == [first] * steps + [second] * steps and first != second
    # A resumed run begins in the middle of an epoch; its random numbers are others.
    torch.manual_seed(99)
    resumed = build_freedom(small_dataset).train()
    for step, graph in ((steps + 2, second), (1, first)):
        resumed.begin_step(step)
        assert edges_of(resumed.graph(), 40) == graph


def test_another_seed_draws_other_graphs():
    pairs = [(user, user) for user in range(40)]
    models = [tiny_model(pairs, 40, 40, seed=seed, edge_dropout=0.5) for seed in (1, 2)]
    assert edges_of(models[0].thin(0), 40) != edges_of(models[1].thin(0), 40)


def test_scoring_uses_the_whole_graph(small_dataset):
    model = build_freedom(small_dataset)
    whole = [vectors.detach().clone() for vectors in model.eval().embeddings()]
    model.train().begin_step(0)
    assert not torch.equal(model.embeddings()[0], whole[0])
    assert all(torch.equal(a, b) for a, b in zip(whole, model.eval().embeddings()))
