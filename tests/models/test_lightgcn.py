"""LightGCN, compared with powers of the dense normalised adjacency."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from model_helpers import CPU, batch_of, bpr_by_hand, norm_by_hand, randn, settings

from layers.sparse import bipartite_adjacency
from models.lightgcn import LightGCN

N_USERS, N_ITEMS = 9, 7


def random_hits(seed=0):
    """Dense 0/1 matrix of train interactions; user 8 and item 6 have none."""
    hits = np.random.default_rng(seed).random((N_USERS, N_ITEMS)) < 0.4
    hits[0, 0], hits[-1], hits[:, -1] = True, False, False
    return hits


def normalised(hits):
    """Dense adjacency of the interactions, symmetrically normalised, in float64."""
    n_users, n_items = hits.shape
    dense = np.zeros((n_users + n_items,) * 2)
    for u, i in np.argwhere(hits):
        dense[u, n_users + i] = dense[n_users + i, u] = 1 / math.sqrt(hits[u].sum() * hits[:, i].sum())
    return dense


def make_lightgcn(hits, **changes):
    """LightGCN on these interactions."""
    n_users, n_items = hits.shape
    interactions = SimpleNamespace(n_users=n_users, n_items=n_items, train=np.argwhere(hits))
    adjacency = bipartite_adjacency(interactions.train, n_users, n_items, CPU)
    torch.manual_seed(0)
    dataset = SimpleNamespace(interactions=interactions, adjacency=adjacency)
    return LightGCN(settings(model="lgn", **changes), dataset)


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_embeddings_and_gradients_equal_dense_algebra(layers):
    hits = random_hits()
    model, dense = make_lightgcn(hits, layer=layers), normalised(hits)
    power = sum(np.linalg.matrix_power(dense, k) for k in range(layers + 1)) / (layers + 1)
    start = torch.cat([model.user, model.item]).detach().double().requires_grad_()
    expected = torch.from_numpy(power) @ start
    probe = randn(*expected.shape, seed=4)
    user, item = model.embeddings()
    assert user.shape == (9, 8) and item.shape == (7, 8)
    torch.testing.assert_close(torch.cat([user, item]).double(), expected, rtol=1e-5, atol=1e-6)
    (torch.cat([user, item]) * probe.float()).sum().backward()
    (expected * probe).sum().backward()
    found = torch.cat([model.user.grad, model.item.grad]).double()
    torch.testing.assert_close(found, start.grad, rtol=1e-5, atol=1e-6)


def test_loss_is_bpr_of_propagated_plus_the_norm_of_initial_embeddings():
    model = make_lightgcn(random_hits(), layer=2, decay=0.3)
    batch = batch_of([0, 1, 1], [0, 2, 3], [5, 6, 5])
    bpr, norm = bpr_by_hand(*model.embeddings(), batch), norm_by_hand(model.user, model.item, batch)
    terms = {name: value.item() for name, value in model.loss(batch).items()}
    assert terms == pytest.approx({"loss": bpr + 0.3 * norm, "bpr": bpr, "norm": norm}, rel=1e-5)


@pytest.mark.parametrize("layers, history", [(0, [1, 3, 5]), (1, [1]), (1, [0, 1]), (1, [0, 1, 4])])
def test_a_new_user_has_the_vector_of_a_training_user_with_a_zero_embedding(layers, history):
    # Items 0 to 2 have other users; the others are untrained, and left out. With two layers a training user
    # would change the vectors of others too, which a new user does not.
    trained = [item for item in history if item < 3]
    hits = np.zeros((3, 6), dtype=bool)
    hits[0, [0, 1]], hits[1, [1, 2]] = True, True
    model = make_lightgcn(hits, layer=layers)
    histories = sp.csr_matrix((np.ones(len(history)), ([0] * len(history), history)), (1, 6))
    vectors, notes = model.new_user_vectors(histories, model.embeddings()[1])
    assert notes == []
    if not layers:
        torch.testing.assert_close(vectors[0], model.item[trained].mean(0))
        return
    hits[2, trained] = True
    with_user = make_lightgcn(hits, layer=layers)
    with torch.no_grad():
        with_user.user.copy_(model.user)
        with_user.item.copy_(model.item)
        with_user.user[2] = 0
    expected = with_user.embeddings()[0][2]
    assert expected.abs().max() > 0.01
    torch.testing.assert_close(vectors[0], expected)
