"""The neighbourhood term and EASE, compared with loops and dense algebra."""

import dataclasses
import json
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import dataset_of, write_txt
from model_helpers import CPU, build, settings

from data.formats import read_interactions
from dataloader import held_out, pairs_to_rows
from layers.sparse import from_scipy
from models.base import ItemWeights
from models.ease import EASE, MAX_ITEMS, reconstruction_weights
from models.neighbours import co_purchases, cosine_graph, graph_shares, neighbour_weights, product_at
from parse import parse_args
from session import make_model
from training.evaluation import final_scorer, make_splits
from training.prefilter import certain_misses
from training.ranking import evaluate, relevant_ranks
from training.scoring import GROUP, Scorer, history_scores, row_numbers
from utils import UserError

MODELS = ("mf", "lgn", "vbpr", "freedom", "bm3", "lattice", "mgcn", "smore", "lgn_mm")


def interactions_of(folder):
    return read_interactions(folder, min_items=30)


def naive_co_purchases(pairs, n_users, n_items, power):
    """offdiag(D_i^-b X' D_u^-1/2 X) by loops over users and pairs of their items."""
    items = {u: [i for v, i in pairs if v == u] for u in range(n_users)}
    degree = [sum(i == j for _, j in pairs) for i in range(n_items)]
    weights = np.zeros((n_items, n_items))
    for own in items.values():
        for j in own:
            for i in own:
                if i != j:
                    weights[j, i] += len(own) ** -0.5 * degree[j] ** -power
    return weights


@pytest.mark.parametrize("power", [0.0, 0.4, 1.0])
def test_co_purchases_equal_loops(small_dataset, power):
    data = interactions_of(small_dataset)
    weights = co_purchases(data.train, data.n_users, data.n_items, power)
    expected = naive_co_purchases(data.train.tolist(), data.n_users, data.n_items, power)
    np.testing.assert_allclose(weights.toarray(), expected, rtol=1e-5)


def naive_content(folder, shares, n=30, k=4):
    """A + A' of the formula by loops: shares of the cosines of the k nearest items, in both directions."""
    content = np.zeros((n, n))
    for m, share in shares.items():
        x = np.load(folder / f"{m}_feat.npy").astype(np.float64)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        for i in range(n):
            nearest = sorted((j for j in range(n) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:k]
            for j in nearest:
                content[i, j] += share * (unit[i] @ unit[j])
                content[j, i] += share * (unit[i] @ unit[j])
    return content


@pytest.mark.parametrize(
    "alpha, gamma, sigma", [(0.7, 0, 0), (0, 0.6, 0), (0, 0, 0.9), (0.2, 0.5, 1.0), (0, 0, 0)]
)
def test_weights_equal_their_formula(small_dataset, alpha, gamma, sigma):
    config = settings(
        dataset=small_dataset.name,
        data_root=str(small_dataset.parent),
        model="mf",
        neighbour_weight=1.0,
        neighbour_content=alpha,
        neighbour_agreement=gamma,
        neighbour_smoothing=sigma,
        neighbour_power=0.4,
        item_graph_image=0.3,
    )
    dataset = dataset_of(config)
    together = naive_co_purchases(dataset.interactions.train.tolist(), 40, 30, 0.4)
    content = naive_content(small_dataset, {"text": 0.7, "image": 0.3})
    smoothed = np.zeros((30, 30))
    for j in range(30):
        for i in range(30):
            if together[j, i] or content[j, i]:
                mean = content[j] / np.abs(content[j]).sum()
                smoothed[j, i] = sum(mean[n] * together[n, i] for n in range(30))
    expected = together + alpha * content + gamma * together * content + sigma * smoothed
    np.testing.assert_allclose(neighbour_weights(config, dataset).toarray(), expected, rtol=1e-4, atol=1e-6)


def test_weights_keep_the_largest_of_each_item(small_dataset):
    config = settings(
        dataset=small_dataset.name, data_root=str(small_dataset.parent), model="mf", neighbour_weight=1.0
    )
    dataset = dataset_of(config)
    every = neighbour_weights(config, dataset).toarray()
    kept = neighbour_weights(dataclasses.replace(config, neighbour_keep=3), dataset).toarray()
    for row, largest in zip(every, kept, strict=True):
        chosen = np.argsort(-row, kind="stable")[:3]
        expected = np.zeros(30)
        expected[chosen] = row[chosen]
        np.testing.assert_array_equal(largest, expected)


@pytest.mark.parametrize("block", [1, 7, 64])
def test_products_at_a_pattern_equal_dense_ones(block):
    left, right, pattern = (sp.random(20, 20, 0.3, format="csr", random_state=seed) for seed in range(3))
    found = product_at(left, right, pattern, block)
    expected = (left.toarray() @ right.toarray()) * (pattern.toarray() != 0)
    np.testing.assert_allclose(found.toarray(), expected, rtol=1e-12, atol=0)


def test_an_own_id_in_a_neighbour_table_is_no_neighbour():
    table, features = np.array([[1, 0], [1, 0]]), torch.eye(2) + 0.5
    graph = cosine_graph({"text": table}, {"text": features}, {"text": 1.0}).toarray()
    assert graph[0, 0] == graph[1, 1] == 0 and graph[0, 1] == graph[1, 0] == pytest.approx(1.5 / 2.5)


def test_shares_of_the_modalities():
    assert graph_shares(["text", "image"], 0.1) == {"text": 0.9, "image": 0.1}
    assert graph_shares(["text", "audio"], 0.1) == {"text": 0.5, "audio": 0.5}
    assert graph_shares(["image"], 0.1) == {"image": 1.0}


def full_scores(model, data, config):
    """[U, I] scores of the formula, from the model's vectors and the dense weights."""
    with torch.inference_mode():
        user, item = (vectors.double().numpy() for vectors in model.eval().embeddings())
    base, history = user @ item.T, np.zeros((data.n_users, data.n_items))
    history[tuple(data.train.T)] = 1
    term = history @ model.neighbour_weights.to_dense().double().numpy()
    if config.neighbour_scale == "spread":
        base = base / base.std(1, ddof=1, keepdims=True)
        term = term / np.maximum(term.std(1, ddof=1, keepdims=True), 1e-12)
    return base + config.neighbour_weight * term


@pytest.mark.parametrize("mkl", [True, False])
@pytest.mark.parametrize("scale", ["raw", "spread"])
@pytest.mark.parametrize("name", MODELS)
def test_scores_of_every_model_include_the_term(small_dataset, monkeypatch, name, scale, mkl):
    if not mkl:
        monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: False)
    model = build(small_dataset, model=name, neighbour_weight=2.5, neighbour_scale=scale)
    data, config = interactions_of(small_dataset), model.config
    expected = full_scores(model, data, config)
    with final_scorer(model, data, config) as scorer:
        padded = torch.cat([scorer.item, scorer.item.new_zeros(-30 % GROUP, scorer.item.shape[1])])
        users = torch.tensor([0, 7, 39, 12])  # user 39 has no train item
        scores = scorer.score(users, padded, torch.empty(4, len(padded)))
    np.testing.assert_allclose(scores[:, :30].numpy(), expected[users.numpy()], rtol=1e-3, atol=1e-4)


def test_a_weight_of_zero_builds_nothing(small_dataset):
    model = build(small_dataset, model="lgn")
    assert model.item_weights() is None and not hasattr(model, "neighbour_weights")
    assert not dataset_of(model.config).features


def test_without_features_the_error_names_the_flags_of_co_purchases_alone(small_dataset):
    (small_dataset / "text_feat.npy").unlink()
    (small_dataset / "image_feat.npy").unlink()
    flags = ["--dataset", small_dataset.name, "--data_root", str(small_dataset.parent), "--model", "lgn"]
    config, _ = parse_args([*flags, "--neighbour_weight", "2"])
    alone = "--neighbour_content 0 --neighbour_agreement 0 --neighbour_smoothing 0"
    with pytest.raises(UserError, match=alone):
        dataset_of(config)
    config, _ = parse_args([*flags, "--neighbour_weight", "2", *alone.split()])
    assert not dataset_of(config).neighbours


def test_the_term_comes_from_train_alone(small_dataset):
    before = build(small_dataset, model="lgn", neighbour_weight=1.0).neighbour_weights
    rng = np.random.default_rng(0)
    data = interactions_of(small_dataset)
    taken = {tuple(pair) for pair in data.train.tolist()}
    free = [(u, i) for u in range(40) for i in range(30) if (u, i) not in taken]
    chosen = rng.permutation(len(free))[:80]
    pairs = np.array([free[c] for c in chosen])
    write_txt(small_dataset, data.train, pairs[:40], pairs[40:])
    after = build(small_dataset, model="lgn", neighbour_weight=1.0).neighbour_weights
    assert torch.equal(before.to_dense(), after.to_dense())


def test_history_scores_of_a_catalogue_whose_square_exceeds_int32():
    n, rng = 50_000, np.random.default_rng(0)
    matrix = sp.random(n, n, 2e-6, "csr", np.float32, rng)
    assert matrix.nnz == 5_000
    owned, items = matrix.nonzero()  # user i has item owned[i] alone
    rows = torch.arange(len(owned) + 1), torch.from_numpy(owned.astype(np.int64))
    weights = from_scipy(matrix, torch.device("cpu"))
    found = history_scores(torch.arange(len(owned)), torch.from_numpy(items.astype(np.int64)), rows, weights)
    np.testing.assert_array_equal(found.numpy(), matrix.data)


def test_history_scores_of_pairs_equal_the_dense_product(small_dataset):
    model = build(small_dataset, model="mf", neighbour_weight=1.0)
    data = interactions_of(small_dataset)
    history = np.zeros((40, 30), np.float32)
    history[tuple(data.train.T)] = 1
    dense = torch.from_numpy(history) @ model.neighbour_weights.to_dense()
    users, items = torch.arange(40).repeat_interleave(30), torch.arange(30).repeat(40)
    rows = pairs_to_rows(data.train, 40, CPU)
    found = history_scores(users, items, rows, model.neighbour_weights)
    torch.testing.assert_close(found.view(40, 30), dense, rtol=1e-5, atol=1e-6)


def test_history_scores_of_weights_without_entries_are_zeros():
    weights = from_scipy(sp.csr_matrix((3, 3), dtype=np.float32), CPU)
    rows = torch.tensor([0, 1, 2]), torch.tensor([2, 0])
    assert history_scores(torch.tensor([0, 1]), torch.tensor([1, 2]), rows, weights).tolist() == [0, 0]


def large_scorer(negative, users=90, items=2100):
    """Random vectors and sparse item weights, and a split, of a catalogue large enough for the prefilter."""
    rng = np.random.default_rng(0)
    user, item = (torch.from_numpy(rng.standard_normal((n, 6)).astype(np.float32)) for n in (users, items))
    user[:, 0] += 1.5
    pairs = np.unique(np.stack([np.arange(users).repeat(9), rng.integers(items, size=9 * users)], 1), axis=0)
    matrix = sp.random(items, items, 0.01, format="csr", dtype=np.float32, random_state=1)
    matrix.data[0] = -1 if negative else 1
    weights = ItemWeights(from_scipy(matrix, CPU), 3.0)
    train, test = pairs[::2], pairs[1::2]
    return Scorer(user, item, weights, pairs_to_rows(train, users, CPU)), held_out(test, [train], CPU)


@pytest.mark.parametrize("negative, entries", [(False, 2**24), (False, 50), (True, 2**24)])
def test_the_prefilter_decides_as_the_full_scores_do_and_only_for_weights_above_zero(
    monkeypatch, negative, entries
):
    monkeypatch.setattr("training.scoring.ENTRIES", entries)
    scorer, split = large_scorer(negative)
    row, column = row_numbers(split.relevant[0], 0, len(split.users)), split.relevant[1]
    missed = certain_misses(scorer, split, row, column, 5)
    assert bool(missed.any()) == (not negative)
    ranks = relevant_ranks(scorer, [split], 5)[0]
    undecided = torch.zeros(len(row), dtype=torch.bool)
    monkeypatch.setattr("training.ranking.certain_misses", lambda *_: undecided)
    assert torch.equal(relevant_ranks(scorer, [split], 5)[0], ranks)
    assert (ranks[missed] == 5).all() and (ranks < 5).any()


@pytest.mark.parametrize("l2", [1.0, 50.0])
def test_ease_minimises_its_objective(small_dataset, l2):
    """The gradient of |X - X B|^2 + l2 |B|^2 is zero off the diagonal, which is zero itself."""
    data = interactions_of(small_dataset)
    weights = reconstruction_weights(data.train, data.n_users, data.n_items, l2).astype(np.float64)
    x = np.zeros((data.n_users, data.n_items))
    x[tuple(data.train.T)] = 1
    gradient = x.T @ (x @ weights - x) + l2 * weights
    np.fill_diagonal(gradient, 0)
    assert np.abs(gradient).max() < 1e-4 * l2 and not np.diag(weights).any() and np.abs(weights).max() > 1e-3


def test_ease_refuses_a_regularisation_that_is_too_small():
    pairs = np.random.default_rng(0).integers((10, 50), size=(300, 2))
    dataset = SimpleNamespace(interactions=SimpleNamespace(n_items=50, n_users=10, train=pairs))
    with pytest.raises(UserError, match="--ease_l2 1e-06: too small"):
        EASE(settings(model="ease", ease_l2=1e-6), dataset)


def test_ease_refuses_a_catalogue_that_does_not_fit():
    dataset = SimpleNamespace(
        interactions=SimpleNamespace(n_items=MAX_ITEMS + 1, n_users=2, train=np.zeros((0, 2), int))
    )
    with pytest.raises(UserError, match="take --model itemknn"):
        EASE(settings(model="ease"), dataset)


@pytest.mark.parametrize("name", ["ease", "itemknn"])
def test_untrained_models_are_evaluated(small_dataset, name):
    more = ["--itemknn_similarity", "neighbours"] if name == "itemknn" else []
    flags = ["--dataset", small_dataset.name, "--data_root", str(small_dataset.parent), "--model", name]
    config, _ = parse_args([*flags, "--topks", "5", "--item_knn_k", "4", *more])
    dataset = dataset_of(config)
    model = make_model(config, dataset, CPU)
    with final_scorer(model, dataset.interactions, config) as scorer:
        [metrics, _] = evaluate(scorer, list(make_splits(dataset.interactions, config, CPU)), (5,))
    assert 0 < metrics["recall@5"] < 1 and json.dumps(metrics)
