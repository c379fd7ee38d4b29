"""Loss terms, compared with loops in plain Python and with cross entropy."""

import math

import pytest
import torch
from model_helpers import randn
from torch.nn import functional as F

from layers.losses import bpr_loss, directions, info_nce, squared_norm, unit_info_nce

# ---------------------------------------------------------------- BPR and norms


def test_bpr_loss_equals_a_loop():
    user, pos, neg = randn(7, 5, seed=1), randn(7, 5, seed=2), randn(7, 5, seed=3)
    rows = [
        -math.log(1 / (1 + math.exp(-sum(float(u[c] * p[c] - u[c] * n[c]) for c in range(5)))))
        for u, p, n in zip(user, pos, neg)
    ]
    assert bpr_loss(user, pos, neg).item() == pytest.approx(sum(rows) / 7, rel=1e-12)


def test_bpr_loss_is_finite_for_huge_margins():
    user, item = torch.full((2, 1), 1e4), torch.tensor([[1e4], [-1e4]])
    assert bpr_loss(user, item, -item).item() == pytest.approx(1e8, rel=1e-6)


def test_squared_norm_equals_a_loop():
    vectors = [randn(n, 3, seed=n) for n in (4, 9)]
    index = torch.tensor([[0, 3, 3, 1, 0, 2], [8, 8, 0, 1, 2, 5]])
    rows = [sum(float(x) ** 2 for v, i in zip(vectors, index) for x in v[i[r]]) for r in range(6)]
    assert squared_norm(*zip(vectors, index)).item() == pytest.approx(sum(rows) / 6, rel=1e-12)


# ---------------------------------------------------------------- InfoNCE


def naive_info_nce(a, b, temperature, target):
    """InfoNCE with cosine similarity by loops over rows."""

    def cosine(x, y):
        return sum(p * q for p, q in zip(x, y)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))

    a, b, rows = a.tolist(), b.tolist(), []
    for r, t in enumerate(target):
        scores = [cosine(a[r], y) / temperature for y in b]
        rows.append(max(scores) + math.log(sum(math.exp(s - max(scores)) for s in scores)) - scores[t])
    return sum(rows) / len(rows)


# The smallest temperature is below 1 / 60, where the maximum of the scores is subtracted.
@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.2, 1.0])
@pytest.mark.parametrize("n, m, target", [(6, 6, None), (4, 9, None), (7, 3, [2, 0, 1, 1, 2, 0, 0])])
def test_info_nce_equals_a_loop_for_every_block_size(n, m, target, temperature):
    a, b = randn(n, 5, seed=1), 3 * randn(m, 5, seed=2)
    expected = naive_info_nce(a, b, temperature, target or range(n))
    for block in (1, 2, 5, 512):
        value = info_nce(a, b, temperature, None if target is None else torch.tensor(target), block)
        assert value.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(
    "n, m, target, block", [(4, 4, None, 512), (5, 3, [2, 0, 1, 1, 2], 2), (3, 6, None, 1)]
)
def test_info_nce_gradcheck(n, m, target, block):
    target = None if target is None else torch.tensor(target)
    inputs = randn(n, 4, seed=1, grad=True), randn(m, 4, seed=2, grad=True)
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.2, target, block), inputs)


def test_a_row_of_zeros_has_the_gradient_of_a_row_of_length_one():
    """In the first step the vectors of an item without features are zeros: F.normalize makes that 1e12."""
    a, b = randn(6, 4, seed=1), randn(6, 4, seed=2, grad=True)
    a[3] = 0
    a.requires_grad_()
    info_nce(a, b, 0.2).backward()
    assert a.grad.isfinite().all() and 0 < a.grad[3].norm() < 10 and b.grad.isfinite().all()
    unit = F.normalize(randn(6, 4, seed=1), dim=1)
    torch.testing.assert_close(directions(randn(6, 4, seed=1)), unit, rtol=0, atol=0)


@pytest.mark.parametrize("temperature", [0.01, 0.02, 0.2])
def test_info_nce_has_the_gradients_of_cross_entropy(temperature):
    target = torch.tensor([3, 1, 0, 3, 2, 2])
    a, b = randn(6, 5, seed=1, grad=True), randn(4, 5, seed=2, grad=True)
    ours = torch.autograd.grad(3 * info_nce(a, b, temperature, target, block=4), (a, b))
    scores = F.normalize(a) @ F.normalize(b).T / temperature
    theirs = torch.autograd.grad(3 * F.cross_entropy(scores, target), (a, b))
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def test_info_nce_is_finite_in_float32_at_a_low_temperature():
    a = randn(20, 4, dtype=torch.float32, grad=True)
    loss = info_nce(a, -a, 0.001)
    loss.backward()
    assert 1000 < loss.item() < 3000 and a.grad.isfinite().all()


def test_info_nce_does_not_change_its_inputs():
    a, b = randn(5, 4, seed=1), randn(5, 4, seed=2)
    before = a.clone(), b.clone()
    info_nce(a, b, 0.1)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_info_nce_in_bfloat16_is_near_that_in_float32(temperature):
    a, b = (randn(40, 16, seed=s, dtype=torch.float32, grad=True) for s in (1, 2))
    exact, narrow = info_nce(a, b, temperature), info_nce(a, b, temperature, dtype=torch.bfloat16)
    assert narrow.dtype == torch.float32
    assert narrow.item() == pytest.approx(exact.item(), rel=0.02)
    for x, y in zip(torch.autograd.grad(narrow, (a, b)), torch.autograd.grad(exact, (a, b))):
        assert x.dtype == torch.float32 and (x - y).norm() < 0.05 * y.norm()


@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize(
    "counts, target",
    [
        ([1, 3, 1, 2], None),
        ([2, 0, 1, 0], None),
        ([1, 3, 1, 2], [3, 1, 0, 3, 2, 2]),
        ([2, 0, 1, 0], [2, 0, 0, 2, 2, 0]),
    ],
)
def test_a_row_that_counts_several_times_is_as_good_as_copies_of_it(counts, target, temperature):
    inputs = randn(4 if target is None else 6, 5, seed=1, grad=True), randn(4, 5, seed=2, grad=True)
    copies = torch.arange(4).repeat_interleave(torch.tensor(counts))
    if target is None:
        expected = info_nce(inputs[0][copies], inputs[1][copies], temperature)
        ours = info_nce(*inputs, temperature, block=3, counts=torch.tensor(counts).double())
    else:
        matches = torch.searchsorted(copies, torch.tensor(target))
        expected = info_nce(inputs[0], inputs[1][copies], temperature, matches)
        ours = info_nce(
            *inputs, temperature, torch.tensor(target), block=3, counts=torch.tensor(counts).double()
        )
    torch.testing.assert_close(ours, expected, rtol=1e-11, atol=0)
    for x, y in zip(torch.autograd.grad(ours, inputs), torch.autograd.grad(expected, inputs)):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def test_unit_info_nce_of_unit_rows_is_info_nce():
    a, b = randn(6, 5, seed=1), randn(8, 5, seed=2)
    expected = info_nce(a, b, 0.3)
    torch.testing.assert_close(unit_info_nce(F.normalize(a), F.normalize(b), 0.3), expected)
