"""VBPR and FREEDOM against naive algebra."""

import math
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import dataset_of

from data.formats import Interactions
from dataloader import make_batches
from models.freedom import FREEDOM, graph_shares, mean_neighbour_graph
from models.vbpr import VBPR
from world import Config

CPU = torch.device("cpu")
TRIPLES = torch.tensor([[0, 1, 1], [0, 2, 3], [5, 6, 5]])


@pytest.fixture
def make(small_dataset):
    """Function: settings -> (model, dataset) on small_dataset."""
    kinds = {"vbpr": VBPR, "freedom": FREEDOM}

    def build(model, **changes):
        config = Config(
            model=model,
            dataset="small",
            data_root=str(small_dataset.parent),
            recdim=6,
            item_knn_k=4,
            layer=2,
            topks=(5,),
            bpr_batch=3,
            **changes,
        )
        torch.manual_seed(0)
        dataset = dataset_of(config)
        return kinds[model](config, dataset), dataset

    return build


def bpr(user, item, triples=TRIPLES):
    """Mean of -log sigmoid(u . p - u . n), triple by triple."""
    margins = [float(user[u] @ item[p] - user[u] @ item[n]) for u, p, n in zip(*triples.tolist())]
    return sum(math.log(1 + math.exp(-x)) for x in margins) / len(margins)


# ---------------------------------------------------------------- VBPR


def test_vbpr_scores_are_those_of_its_formula(make):
    model, dataset = make("vbpr")
    with torch.no_grad():
        model.bias.normal_()
    user, item = (vectors.detach() for vectors in model.embeddings())
    matrices = [
        matrix / np.mean([row.norm().item() for row in matrix]) for matrix in dataset.features.values()
    ]
    for u, i in ((0, 0), (3, 7), (39, 29)):
        f = torch.cat([matrix[i] for matrix in matrices])
        weight = model.content.weight.detach()
        expected = (
            model.user[u] @ model.item[i]
            + model.theta[u] @ (weight[:6] @ f)
            + model.bias[i, 0]
            + weight[6] @ f
        )
        assert float(user[u] @ item[i]) == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def test_vbpr_loss_is_bpr_plus_weighted_norm_of_all_that_is_learnt(make):
    model, _ = make("vbpr", decay=0.3)
    user, item = (vectors.detach() for vectors in model.embeddings())
    parts = {name: parameter.detach() for name, parameter in model.named_parameters()}
    rows = [
        [
            parts["user"][u],
            parts["theta"][u],
            parts["item"][p],
            parts["item"][n],
            parts["bias"][p],
            parts["bias"][n],
        ]
        for u, p, n in zip(*TRIPLES.tolist())
    ]
    norm = sum(float(vector.square().sum()) for row in rows for vector in row) / 3 + float(
        parts["content.weight"].square().sum()
    )
    terms = {name: value.item() for name, value in model.loss(*make_batches(*TRIPLES, 3)).items()}
    assert terms == pytest.approx(
        {"loss": bpr(user, item) + 0.3 * norm, "bpr": bpr(user, item), "norm": norm}, rel=1e-5
    )


def test_vbpr_trains_everything(make):
    model, _ = make("vbpr")
    model.loss(*make_batches(*TRIPLES, 3))["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


# ---------------------------------------------------------------- FREEDOM


def test_item_graph_is_the_shared_mean_over_neighbours():
    text, image = (
        np.array([[1, 2], [0, 2], [2, 2], [0, 1]]),
        np.array([[3, 1], [2, 3], [1, 0], [3, 3]]),
    )  # 2 has none, 3 has none
    graph, transposed = mean_neighbour_graph({"text": text, "image": image}, {"text": 0.9, "image": 0.1}, CPU)
    expected = np.zeros((4, 4))
    for share, table in ((0.9, text), (0.1, image)):
        for i, row in enumerate(table):
            others = {j for j in row if j != i}
            for j in others:
                expected[i, j] += share / len(others)
    np.testing.assert_allclose(graph.to_dense().numpy(), expected, rtol=1e-6)
    np.testing.assert_allclose(transposed.to_dense().numpy(), expected.T, rtol=1e-6)


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


@pytest.mark.parametrize("layers", [0, 1, 2])
def test_freedom_embeddings_and_gradients_equal_dense_algebra(make, layers):
    model, dataset = make("freedom", item_graph_layers=layers)
    adjacency, graph = dataset.adjacency.to_dense().double(), dataset.item_graph[0].to_dense().double()
    users, start = 40, torch.cat([model.user, model.item]).detach().double().requires_grad_()
    mean = (start + adjacency @ start + adjacency @ adjacency @ start) / 3
    expected = torch.cat(
        [mean[:users], mean[users:] + torch.linalg.matrix_power(graph, layers) @ start[users:]]
    )
    probe = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    user, item = model.eval().embeddings()
    torch.testing.assert_close(torch.cat([user, item]).double(), expected, rtol=1e-5, atol=1e-6)
    (torch.cat([user, item]) * probe.float()).sum().backward()
    (expected * probe).sum().backward()
    torch.testing.assert_close(
        torch.cat([model.user.grad, model.item.grad]).double(), start.grad, rtol=1e-5, atol=1e-5
    )


def test_freedom_loss_is_the_weighted_sum_of_its_terms(make):
    model, dataset = make("freedom", decay=0.2, feature_bpr_weight=0.5)
    model.eval()
    user, item = (vectors.detach() for vectors in model.embeddings())
    features = sum(bpr(user, model.project[m](matrix).detach()) for m, matrix in dataset.features.items())
    norm = (
        sum(
            (torch.stack([model.user[u], model.item[p], model.item[n]]) ** 2).sum().item()
            for u, p, n in zip(*TRIPLES.tolist())
        )
        / 3
    )
    terms = {name: value.item() for name, value in model.loss(*make_batches(*TRIPLES, 3)).items()}
    expected = {"bpr": bpr(user, item), "norm": norm, "feature_bpr": features}
    assert terms == pytest.approx(
        {"loss": expected["bpr"] + 0.2 * norm + 0.5 * features, **expected}, rel=1e-5
    )


def thin_model(pairs, n_users, n_items, **settings):
    """FREEDOM without features on these pairs."""
    data = Interactions(n_users, n_items, np.array(pairs), *[np.array([[0, 0]])] * 2, None, {}, "test")
    config = Config(model="freedom", recdim=2, bpr_batch=2, **settings)
    return FREEDOM(config, SimpleNamespace(interactions=data, adjacency=None, item_graph=None, features={}))


def edges(adjacency, n_users):
    """{(user, item)} of a normalised graph, and that its weights are 1 / sqrt of the degrees in it."""
    dense = adjacency.to_dense().numpy()
    rows = dense[:n_users, n_users:]
    degree_u, degree_i = (rows > 0).sum(1), (rows > 0).sum(0)
    for u, i in np.argwhere(rows):
        assert rows[u, i] == pytest.approx(1 / math.sqrt(degree_u[u] * degree_i[i]), rel=1e-6)
    np.testing.assert_array_equal(dense, dense.T)
    return set(map(tuple, np.argwhere(rows).tolist()))


def test_thinned_graph_keeps_its_share_of_the_train_edges_and_normalises_them_anew(make):
    model, dataset = make("freedom", edge_dropout=0.75)
    train = set(map(tuple, dataset.interactions.train.tolist()))
    kept = [edges(model.draw_edges(epoch), 40) for epoch in range(3)]
    assert all(len(part) == len(train) // 4 and part < train for part in kept)
    assert kept[0] != kept[1] != kept[2] and kept[1] == edges(model.draw_edges(1), 40)


def test_edges_of_popular_ends_are_dropped_more_often():
    """With one edge kept, edge (u, i) is the one with probability proportional to 1 / sqrt(deg u deg i)."""
    pairs = [(0, 0), (1, 0), (2, 0), (2, 1), (3, 2)]
    odds = np.array([1 / math.sqrt(3), 1 / math.sqrt(3), 1 / math.sqrt(6), 1 / math.sqrt(2), 1])
    model = thin_model(pairs, 4, 3, edge_dropout=0.8)
    draws = 4000
    count = Counter(edge for epoch in range(draws) for edge in edges(model.draw_edges(epoch), 4))
    observed, expected = np.array([count[pair] for pair in pairs]), draws * odds / odds.sum()
    assert (
        observed.sum() == draws and ((observed - expected) ** 2 / expected).sum() < 18.5
    )  # chi-square, 4 degrees, p .001


def test_thinning_changes_with_the_epoch_in_training_and_never_while_scoring(make):
    model, dataset = make("freedom")
    (batch,) = make_batches(*TRIPLES, 3)
    whole = [vectors.detach().clone() for vectors in model.eval().embeddings()]
    model.train()
    graphs = []
    for _ in range(2 * model.steps):
        model.loss(batch)
        graphs.append(model.thinned[1])
    assert (
        len(set(map(id, graphs))) == 2
        and graphs[0] is graphs[model.steps - 1]
        and graphs[model.steps] is graphs[-1]
    )
    assert all(torch.equal(a, b) for a, b in zip(whole, model.eval().embeddings()))
