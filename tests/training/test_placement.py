"""Where tensors are on a GPU: all that a run computes without gradients, on pretended CUDA tensors."""

import dataclasses

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from helpers import dataset_of, random_features, random_pairs
from model_helpers import (
    CPU,
    TRAINED,
    UNTRAINED,
    build,
    choose_gpu_branches,
    repeating_batch,
    settings_on,
)
from pretend_cuda import CUDA, move, pretend_cuda

from data.formats import read_interactions
from data.graphs import nearest_neighbours
from dataloader import Sampler, held_out, pairs_to_rows
from layers.sparse import from_scipy
from models.base import ItemWeights
from models.registry import find_model
from training.evaluation import final_scorer, make_splits
from training.ranking import evaluate, rank_items
from training.scoring import Scorer

SCORED = {
    name: TRAINED[name]
    for name in ("vbpr", "freedom", "bm3", "lattice", "mgcn", "smore", "oat", "concat", "sum", "users")
} | UNTRAINED
LOGGED = {name: TRAINED[name] for name in ("mf", "lgn", "users")}
FAST = {"sinkhorn_iters": 10}


# ---------------------------------------------------------------- the pretended device


@pytest.mark.parametrize(
    "wrong",
    [
        lambda x: x + torch.ones(5, 4),
        lambda x: torch.cat([x, torch.ones(5, 4)]),
        lambda x: x.index_select(0, torch.tensor([1])),
        lambda x: torch.mm(x, x.T, out=torch.empty(5, 5)),
        lambda x: torch.mm(x, x.T, out=torch.empty(5, 5, dtype=torch.float64, device=x.device)),
        lambda x: torch.ones(5, 5).to_sparse_csr() @ x,
        lambda x: move(torch.ones(5, 5).double().to_sparse_csr()) @ x,
    ],
)
def test_a_mistake_is_noticed(wrong):
    with pretend_cuda(), pytest.raises((RuntimeError, AssertionError)):
        wrong(torch.ones(5, 4, device="cuda"))


def test_values_are_those_of_the_cpu_and_waits_are_named():
    x, rows = torch.arange(12.0).view(4, 3), torch.tensor([2, 0])
    with pretend_cuda() as cuda:
        y = move(x)
        y[:, 0] = 7
        assert cuda.waits == []
        chosen = y[move(rows), 1:].cpu()
        assert cuda.waits == ["_to_copy"]
        assert y.sum().item() == 76 and len((y > 6.5).nonzero()) == 8 and float(y[y > 10]) == 11
    assert cuda.waits[1:] == ["_local_scalar_dense", "nonzero", "nonzero", "_local_scalar_dense"]
    assert chosen.device == CPU and chosen.tolist() == [[7, 8], [1, 2]]


# ---------------------------------------------------------------- a run


@pytest.mark.parametrize("changes", TRAINED.values(), ids=TRAINED)
def test_loss_of_a_step_has_its_values_and_does_not_wait(small_dataset, monkeypatch, changes):
    model, batch = build(small_dataset, **FAST, **changes).train(), repeating_batch()

    def step():
        torch.manual_seed(3)
        model.begin_step(0)
        begun = len(cuda.waits)
        return model.loss(batch), begun

    with pretend_cuda() as cuda, monkeypatch.context() as context:
        choose_gpu_branches(context)
        expected, _ = step()
    model, batch = move(build(small_dataset, **FAST, **changes).train()), move(batch)
    with pretend_cuda() as cuda:
        terms, begun = step()
        assert cuda.waits[begun:] == []
        # FREEDOM's and LATTICE's graphs of an epoch are made on the CPU.
        if changes.get("model") not in ("freedom", "lattice"):
            assert begun == 0
        assert all(value.device == CUDA for value in terms.values())
        torch.testing.assert_close({name: value.cpu() for name, value in terms.items()}, expected)


@pytest.mark.parametrize("changes", SCORED.values(), ids=SCORED)
def test_a_model_is_made_of_data_on_the_device(small_dataset, changes):
    config = settings_on(small_dataset, **changes)
    dataset = dataset_of(config)
    moved = {
        "adjacency": None if dataset.adjacency is None else move(dataset.adjacency),
        "features": {m: move(matrix) for m, matrix in dataset.features.items()},
        "user_features": None if dataset.user_features is None else move(dataset.user_features),
    }
    torch.manual_seed(3)
    expected = find_model(config.model)(config, dataset).state_dict()
    with pretend_cuda():
        torch.manual_seed(3)
        state = find_model(config.model)(config, dataclasses.replace(dataset, **moved)).state_dict()
        assert state.keys() == expected.keys()
        assert all(torch.equal(tensor.cpu(), expected[name]) for name, tensor in state.items())


@pytest.mark.parametrize("changes", SCORED.values(), ids=SCORED)
def test_evaluation(small_dataset, changes):
    model, data = build(small_dataset, **FAST, **changes), read_interactions(small_dataset, min_items=30)
    config = model.config

    def score(model, device):
        splits = make_splits(data, config, device)
        with final_scorer(model, data, config) as scorer:
            lists = [top for _, _, top, _ in rank_items(scorer, splits[1], 5)]
            return evaluate(scorer, splits, (3, 5)), torch.cat(lists).cpu()

    metrics, lists = score(model, CPU)
    with pretend_cuda():
        cuda_metrics, cuda_lists = score(move(model), CUDA)
    assert [*map(pytest.approx, metrics)] == cuda_metrics
    assert cuda_lists.tolist() == lists.tolist()


@pytest.mark.parametrize("changes", LOGGED.values(), ids=LOGGED)
def test_diagnostics_and_new_users_and_items(small_dataset, changes):
    histories = sp.csr_matrix(np.random.default_rng(0).random((3, 30)) < 0.3)
    model = move(build(small_dataset, **FAST, **changes).eval())
    features = {m: move(torch.randn(2, size)) for m, size in model.feature_sizes().items()}
    with pretend_cuda():
        _, item = model.embeddings()
        assert model.new_user_vectors(histories, item)[0].device == CUDA
        assert not features or model.cold_item_vectors(features).device == CUDA
        assert all(value.device == CUDA for value in model.diagnostics().values())
        assert all(image.matrix.device == CUDA for image in model.images().values())


def test_sampler():
    train = random_pairs(0, 40, 30, 6)["train"]
    expected = list(Sampler(train, 30, 50, 7, CPU).epoch())
    with pretend_cuda():
        batches = list(Sampler(train, 30, 50, 7, CUDA).epoch())
        assert all(part.device == CUDA for batch in batches for part in batch)
        assert [[part.tolist() for part in batch] for batch in batches] == [
            [part.tolist() for part in batch] for batch in expected
        ]


def test_nearest_neighbours():
    features = random_features(1290, 6)
    features[3] = 0
    expected = nearest_neighbours(features, 4, CPU, block=640)
    with pretend_cuda():
        found = nearest_neighbours(features, 4, CUDA, block=640)
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("weighted", [False, True])
def test_ranking_of_a_catalogue_that_is_searched_in_groups(weighted):
    """It is large enough for the prefilter and for top_columns."""
    rng = np.random.default_rng(0)
    user, item = (torch.from_numpy(random_features(n, 6, seed)) for seed, n in enumerate((20, 2112)))
    pairs = np.stack([rng.integers(20, size=300), rng.integers(2112, size=300)], 1)
    train, test = np.unique(pairs[:200], axis=0), np.unique(pairs[200:], axis=0)
    weights = from_scipy(sp.random(2112, 2112, 0.001, "csr", np.float32, rng), CPU)

    def score(device, place):
        chosen = ItemWeights(place(weights), 0.5) if weighted else None
        scorer = Scorer(place(user), place(item), chosen, pairs_to_rows(train, 20, device))
        split = held_out(test, [train], device)
        lists = [top for _, _, top, _ in rank_items(scorer, split, 5)]
        return evaluate(scorer, [split], (2, 5)), torch.cat(lists).cpu()

    [metrics], lists = score(CPU, lambda tensor: tensor)
    with pretend_cuda():
        [cuda_metrics], cuda_lists = score(CUDA, move)
    assert cuda_metrics == pytest.approx(metrics)
    assert cuda_lists.tolist() == lists.tolist()
