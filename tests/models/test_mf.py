"""Matrix factorisation, compared with loops over triples."""

from types import SimpleNamespace

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from model_helpers import bpr_by_hand, norm_by_hand, repeating_batch, settings

from models.mf import MF


def make_mf(n_users, n_items, **changes):
    """MF for this number of users and items."""
    torch.manual_seed(0)
    every_item = np.stack([np.arange(n_items) % n_users, np.arange(n_items)], 1)
    data = SimpleNamespace(n_users=n_users, n_items=n_items, train=every_item)
    return MF(settings(model="mf", **changes), SimpleNamespace(interactions=data))


def test_embeddings_start_from_a_normal_distribution_of_deviation_a_tenth():
    model = make_mf(500, 400, recdim=64)
    for vectors in (model.user, model.item):
        assert abs(vectors.mean().item()) < 0.003 and vectors.std().item() == pytest.approx(0.1, rel=0.03)


def test_loss_is_bpr_plus_the_weighted_norm():
    model, batch = make_mf(9, 14, decay=0.3), repeating_batch()
    bpr, norm = bpr_by_hand(*model.embeddings(), batch), norm_by_hand(model.user, model.item, batch)
    terms = {name: value.item() for name, value in model.loss(batch).items()}
    assert terms == pytest.approx({"loss": bpr + 0.3 * norm, "bpr": bpr, "norm": norm}, rel=1e-5)


def test_vectors_of_a_new_user_are_the_mean_of_their_items():
    model = make_mf(9, 14)
    histories = sp.csr_matrix(([1.0] * 4, ([0, 0, 0, 1], [3, 5, 13, 2])), (2, 14))
    vectors, notes = model.new_user_vectors(histories, model.item)
    expected = torch.stack([model.item[[3, 5, 13]].mean(0), model.item[2]])
    torch.testing.assert_close(vectors, expected)
    assert notes == []


def test_diagnostics_are_mean_lengths():
    model = make_mf(9, 14)
    numbers = {name: value.item() for name, value in model.diagnostics().items()}
    lengths = [
        sum(row.norm().item() for row in vectors) / len(vectors) for vectors in (model.user, model.item)
    ]
    assert numbers == pytest.approx({"norm/user": lengths[0], "norm/item": lengths[1]}, rel=1e-5)
