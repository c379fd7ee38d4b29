"""Cosines, nearest rows and mean directions, compared with float64, where no square leaves the range."""

import pytest
import torch
from model_helpers import randn
from torch.utils._python_dispatch import TorchDispatchMode

from layers.cosine import cosines, mean_direction, nearest_rows, unit_rows

# Lengths whose squares are 0 or infinite in float32, and an ordinary one.
SCALES = torch.tensor([1e-30, 1.0, 1e30])


def rows(n, seed, d=4):
    """Random rows [n, d] of very different lengths."""
    return randn(n, d, seed=seed, dtype=torch.float32) * SCALES[torch.arange(n) % 3, None]


def exact(queries, features):
    """All cosines [m, n] in float64."""
    unit = [x.double() / x.double().norm(dim=1, keepdim=True) for x in (queries, features)]
    return unit[0] @ unit[1].T


def test_unit_rows_have_length_one_and_zeros_stay():
    x = rows(9, seed=1)
    x[4] = 0
    expected = torch.ones(9)
    expected[4] = 0
    torch.testing.assert_close(unit_rows(x).norm(dim=1), expected)


@pytest.mark.parametrize("block", [2, 256])
def test_cosines_are_those_of_the_named_rows(block):
    queries, features = rows(7, seed=7), rows(11, seed=11)
    ids = torch.randint(11, (7, 3), generator=torch.Generator().manual_seed(1))
    expected = exact(queries, features).gather(1, ids).float()
    torch.testing.assert_close(cosines(queries, features, ids, block), expected)


class Largest(TorchDispatchMode):
    """Records the number of entries of the largest tensor that is made."""

    entries = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if isinstance(result, torch.Tensor):
            self.entries = max(self.entries, result.numel())
        return result


def test_cosines_of_many_rows_take_little_memory():
    x, ids = randn(3000, 32, seed=1, dtype=torch.float32), torch.arange(30000).view(3000, 10) % 3000
    with Largest() as largest:
        found = cosines(x, x, ids)
    assert largest.entries <= 256 * 10 * 32 < found.numel() * 32


@pytest.mark.parametrize("k", [1, 4, 50])
@pytest.mark.parametrize("block", [2, 1024])
def test_nearest_rows_equal_sorted_cosines(k, block):
    queries, features = rows(7, seed=7), rows(11, seed=11)
    expected = exact(queries, features).sort(descending=True).indices[:, :k]
    assert torch.equal(nearest_rows(queries, features, k, block=block), expected)


def test_nearest_rows_are_among_those_allowed():
    queries, features, allowed = rows(7, seed=7), rows(11, seed=11), torch.arange(11) % 2 == 1
    among = exact(queries, features).masked_fill(~allowed, -2)
    assert torch.equal(nearest_rows(queries, features, 3, allowed), among.topk(3).indices)


def test_a_mean_direction_has_the_mean_length():
    near = randn(5, 3, 4, seed=2, dtype=torch.float32)
    mean = near.mean(1)
    found = mean_direction(near)
    torch.testing.assert_close(found.norm(dim=1), near.norm(dim=2).mean(1))
    torch.testing.assert_close(torch.cosine_similarity(found, mean), torch.ones(5))
