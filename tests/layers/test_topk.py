"""The largest entries of rows, compared with torch.topk and a stable sort."""

import pytest
import torch

from layers.topk import first_columns, top_columns


@pytest.mark.parametrize("n, k", [(704, 1), (704, 5), (1024, 5), (300, 20), (64, 64), (640, 4)])
def test_top_columns_equal_topk_with_and_without_groups(n, k):
    torch.manual_seed(n)
    scores = torch.randn(9, n)
    # One row with exactly k candidates.
    scores[1, : n - k] = -torch.inf
    assert torch.equal(top_columns(scores, k), scores.topk(k, dim=1).indices)


@pytest.mark.parametrize("n, k", [(704, 1), (704, 5), (1024, 5), (300, 20), (64, 64), (640, 4)])
def test_top_columns_among_ties_have_the_values_of_topk_and_do_not_repeat(n, k):
    torch.manual_seed(n)
    scores = torch.randint(4, (9, n)).float()
    top = top_columns(scores, k)
    assert torch.equal(scores.gather(1, top), scores.topk(k, dim=1).values)
    assert all(len(set(row)) == k for row in top.tolist())


@pytest.mark.parametrize("n, k", [(704, 5), (300, 20), (64, 64), (1024, 1)])
@pytest.mark.parametrize("levels", [1, 4, 10**6])
def test_first_columns_equal_a_stable_sort(n, k, levels):
    torch.manual_seed(n)
    scores = torch.randint(levels, (30, n)).float()
    expected = scores.sort(dim=1, descending=True, stable=True).indices[:, :k]
    assert torch.equal(first_columns(scores, k), expected)
