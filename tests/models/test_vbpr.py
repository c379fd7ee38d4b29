"""VBPR, compared with its formula item by item."""

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from model_helpers import batch_of, bpr_by_hand, build, norm_by_hand

TRIPLES = [0, 1, 1], [0, 2, 3], [5, 6, 5]


@pytest.fixture
def model(small_dataset):
    """VBPR with 6 dimensions and random biases."""
    model = build(small_dataset, model="vbpr", recdim=6, decay=0.3)
    with torch.no_grad():
        model.bias.normal_()
    return model


@torch.no_grad()
def test_scores_equal_the_formula(model, small_dataset):
    user, item = model.embeddings()
    matrices = [np.load(small_dataset / f"{m}_feat.npy").astype(np.float32) for m in ("text", "image")]
    matrices = [matrix / np.mean(np.linalg.norm(matrix, axis=1)) for matrix in matrices]
    for u, i in ((0, 0), (3, 7), (39, 29)):
        f, weight = torch.from_numpy(np.concatenate([matrix[i] for matrix in matrices])), model.content.weight
        content = model.theta[u] @ (weight[:6] @ f) + weight[6] @ f
        expected = model.user[u] @ model.item[i] + model.bias[i, 0] + content
        assert float(user[u] @ item[i]) == pytest.approx(expected.item(), rel=1e-4, abs=1e-6)


def test_loss_is_bpr_plus_the_weighted_norm_of_all_weights(model):
    batch = batch_of(*TRIPLES)
    user = torch.cat([model.user, model.theta], 1)
    # Biases count for the items alone, and E and b once a batch.
    norm = norm_by_hand(user, torch.cat([model.item, torch.zeros_like(model.item)], 1), batch)
    norm += sum(model.bias[[p, n]].square().sum().item() for _, p, n in zip(*TRIPLES)) / 3
    norm += model.content.weight.square().sum().item()
    bpr = bpr_by_hand(*model.embeddings(), batch)
    terms = {name: value.item() for name, value in model.loss(batch).items()}
    assert terms == pytest.approx({"loss": bpr + 0.3 * norm, "bpr": bpr, "norm": norm}, rel=1e-5)


def test_gradients_reach_every_parameter(model):
    model.loss(batch_of(*TRIPLES))["loss"].backward()
    assert all(parameter.grad.abs().sum() > 0 for parameter in model.parameters())


@torch.no_grad()
def test_a_new_user_scores_with_the_mean_of_their_items_and_the_bias_once(model):
    item = model.embeddings()[1]
    vectors, notes = model.new_user_vectors(sp.csr_matrix(([1.0, 1.0], ([0, 0], [3, 5])), (1, 30)), item)
    expected = item[:, :-1] @ item[[3, 5], :-1].mean(0) + item[:, -1]
    torch.testing.assert_close(item @ vectors[0], expected)
    assert notes == []
