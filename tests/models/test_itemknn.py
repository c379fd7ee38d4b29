"""ItemKNN, compared with loops over users and items."""

import math
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import dataset_of, random_pairs
from model_helpers import CPU, build, settings

from dataloader import held_out, pairs_to_rows
from models.itemknn import ItemKNN, item_cosines
from models.neighbours import keep_largest
from parse import parse_args
from training.evaluation import final_scorer, make_splits, score
from training.ranking import evaluate, rank_items
from training.scoring import Scorer
from utils import UserError

N_USERS, N_ITEMS = 12, 15


def train_pairs(seed=0):
    """Train pairs of 12 users and 15 items; the last of each has none."""
    return random_pairs(seed, N_USERS, N_ITEMS, 4)["train"]


def naive_cosines(pairs):
    """[I, I] cosine similarities of items by loops over sets of users, zero for an item and itself."""
    owners = [{u for u, i in pairs.tolist() if i == item} for item in range(N_ITEMS)]
    cosines = np.zeros((N_ITEMS, N_ITEMS))
    for i, a in enumerate(owners):
        for j, b in enumerate(owners):
            if i != j and a & b:
                cosines[i, j] = len(a & b) / math.sqrt(len(a) * len(b))
    return cosines


def naive_largest(matrix, k):
    """The matrix with zeros for all but the k largest entries of a row; of equal ones, the first stay."""
    kept = np.zeros_like(matrix)
    for i, row in enumerate(matrix):
        for j in sorted(np.flatnonzero(row), key=lambda j: (-row[j], j))[:k]:
            kept[i, j] = row[j]
    return kept


def make_itemknn(pairs, k=0, n_users=N_USERS, n_items=N_ITEMS):
    """ItemKNN on these train pairs."""
    interactions = SimpleNamespace(train=pairs, n_users=n_users, n_items=n_items)
    config = settings(model="itemknn", itemknn_k=k)
    return ItemKNN(config, SimpleNamespace(interactions=interactions))


# ---------------------------------------------------------------- similarities


@pytest.mark.parametrize("seed", range(3))
def test_cosines_equal_loops(seed):
    pairs = train_pairs(seed)
    with warnings.catch_warnings(action="error"):
        cosines = item_cosines(pairs, N_USERS, N_ITEMS)
    assert cosines.dtype == np.float32 and cosines.nnz == np.count_nonzero(naive_cosines(pairs))
    np.testing.assert_allclose(cosines.toarray(), naive_cosines(pairs), rtol=1e-6)


@pytest.mark.parametrize("k", [1, 3, 14, 100])
def test_largest_entries_of_each_row_equal_a_sort(k):
    cosines = item_cosines(train_pairs(), N_USERS, N_ITEMS)
    expected = naive_largest(cosines.toarray(), k)
    np.testing.assert_array_equal(keep_largest(cosines, k).toarray(), expected)
    # Many entries are equal here, of which the lower columns are kept.
    assert len(np.unique(cosines.data)) < cosines.nnz / 2


@pytest.mark.parametrize("k", [0, 2])
def test_weights_of_the_model_are_the_cosines_it_keeps(k):
    pairs = train_pairs()
    cosines = naive_cosines(pairs).astype(np.float32)
    expected = naive_largest(item_cosines(pairs, N_USERS, N_ITEMS).toarray(), k) if k else cosines
    weights = make_itemknn(pairs, k).item_weights().matrix
    assert weights.layout == torch.sparse_csr and weights.shape == (N_ITEMS, N_ITEMS)
    np.testing.assert_allclose(weights.to_dense().numpy(), expected, rtol=1e-6)


# ---------------------------------------------------------------- scores


def naive_scores(pairs, k):
    """[U, I]: for each user and item, the sum of the kept similarities to the user's items."""
    weights = item_cosines(pairs, N_USERS, N_ITEMS).toarray()
    weights = naive_largest(weights, k) if k else weights
    scores = np.zeros((N_USERS, N_ITEMS))
    for user, item in pairs.tolist():
        for other in range(N_ITEMS):
            scores[user, other] += weights[item, other]
    return scores


@pytest.mark.parametrize("k", [0, 2])
@pytest.mark.parametrize("chunk", [0, 5])
def test_scores_equal_loops_and_rank_the_items(k, chunk):
    data = random_pairs(0, N_USERS, N_ITEMS, 4)
    model, expected = make_itemknn(data["train"], k), naive_scores(data["train"], k)
    user, item = model.embeddings()
    history = pairs_to_rows(data["train"], N_USERS, CPU)
    scorer = Scorer(user, item, model.item_weights(), history)
    split = held_out(data["test"], [data["train"]], CPU)
    for u, i in data["train"]:
        expected[u, i] = -np.inf
    seen = 0
    for start, stop, items, scores in rank_items(scorer, split, 6, chunk):
        for row, u in enumerate(split.users[start:stop].tolist()):
            best = sorted(range(N_ITEMS), key=lambda i: (-np.float32(expected[u, i]), i))[:6]
            np.testing.assert_allclose(scores[row].numpy(), expected[u, best], rtol=1e-5, atol=1e-7)
            near = expected[u, items[row].numpy()]
            np.testing.assert_allclose(near, expected[u, best], rtol=1e-5, atol=1e-7)
            seen += 1
    assert seen == N_USERS


def test_metrics_equal_loops():
    data = random_pairs(1, N_USERS, N_ITEMS, 4)
    model, expected = make_itemknn(data["train"]), naive_scores(data["train"], 0)
    for u, i in data["train"]:
        expected[u, i] = -np.inf
    history = pairs_to_rows(data["train"], N_USERS, CPU)
    scorer = Scorer(*model.embeddings(), model.item_weights(), history)
    [metrics] = evaluate(scorer, [held_out(data["test"], [data["train"]], CPU)], (1, 3))
    for k in (1, 3):
        hits = 0
        for u, i in data["test"].tolist():
            rounded = expected[u].round(5)
            best = sorted(range(N_ITEMS), key=lambda j: (-rounded[j], j))[:k]
            hits += i in best
        assert metrics[f"recall@{k}"] == pytest.approx(hits / N_USERS)


# ---------------------------------------------------------------- in the program


def test_model_has_nothing_to_train_and_vectors_without_dimensions(small_dataset):
    model = build(small_dataset, model="itemknn")
    assert not list(model.parameters()) and not model.state_dict()
    user, item = model.embeddings()
    assert user.shape == (40, 0) and item.shape == (30, 0)
    user, item = model.embeddings(torch.tensor([3, 1]), torch.tensor([4]))
    assert user.shape == (2, 0) and item.shape == (1, 0)
    assert model.embeddings(items=torch.tensor([4]))[1].shape == (1, 0)
    assert model.embeddings(users=torch.tensor([4]))[0].shape == (1, 0)


def test_model_is_evaluated_without_training(small_dataset):
    flags = ["--model", "itemknn", "--itemknn_k", "5", "--dataset", "small", "--topks", "5"]
    config, _ = parse_args([*flags, "--data_root", str(small_dataset.parent)])
    data = dataset_of(config).interactions
    model = ItemKNN(config, SimpleNamespace(interactions=data))
    with final_scorer(model, data, config) as scorer:
        dense = scorer.score(torch.arange(40), scorer.item, torch.empty(40, 30)).numpy()
    expected = np.zeros((40, 30))
    for user, item in data.train.tolist():
        expected[user] += model.weights.to_dense()[item].numpy()
    np.testing.assert_allclose(dense, expected, rtol=1e-5, atol=1e-6)
    # A popular item ranks above an item without users, which has a score of 0.
    assert not dense[:, 29].any()
    valid, test = score(model, data, list(make_splits(data, config, CPU)), config)
    assert valid.keys() == test.keys() and 0 <= test["recall@5"] <= 1


def test_negative_number_of_neighbours_is_refused():
    with pytest.raises(UserError, match="--itemknn_k -1: must be at least 0"):
        settings(model="itemknn", itemknn_k=-1)
