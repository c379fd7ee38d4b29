"""Functions that read several columns: their values and gradients in three processes and in one."""

import pytest
import torch
from parallel_helpers import in_processes
from torch.nn import functional as F

from layers import columns
from layers.columns import all_columns, all_parts, own, own_part, shared, sum_parts
from layers.dropout import keep_mask
from layers.kernels import unit_info_nce

P, N, D = 3, 5, 12


def inputs():
    generator = torch.Generator().manual_seed(1)
    a, b = (torch.randn(N, D, generator=generator, dtype=torch.float64) for _ in range(2))
    a[2] = 0  # the vector of an item without features
    return a, b


def gradients(function):
    """A scalar function of own columns of two matrices: its value, and its gradients of all columns."""
    a, b = (own_part(x, 1).clone().requires_grad_() for x in inputs())
    value = function(a, b)
    return value.detach(), *(all_parts(x, 1) for x in torch.autograd.grad(value, (a, b)))


FUNCTIONS = {
    "inner products": lambda a, b: F.softplus(sum_parts((a * b).sum(1))).sum(),
    "own rows of all columns": lambda a, b: sum_parts(
        (own_part(all_columns(a), 0) @ all_columns(b).T).exp().sum()
    ),
    "own columns of all columns": lambda a, b: sum_parts(
        (all_columns(a) @ own_part(torch.eye(D, dtype=a.dtype), 1) * b).square().sum()
    ),
    "lengths": lambda a, b: (columns.row_norms(a) * columns.row_norms(b).exp()).sum(),
    "unit rows": lambda a, b: F.softplus(sum_parts((columns.unit_rows(a) * b).sum(1))).sum(),
    "LayerNorm": lambda a, b: F.softplus(sum_parts((columns.LayerNorm(D).double()(a) * b).sum(1))).sum(),
    "a factor of all": lambda a, b: sum_parts((shared(sum_parts(b.sum())) * a).square().sum()),
    "InfoNCE": lambda a, b: unit_info_nce(
        F.normalize(all_columns(a), dim=1), F.normalize(all_columns(b), dim=1), 0.5
    ),
    "InfoNCE of fewer rows than processes": lambda a, b: unit_info_nce(
        F.normalize(all_columns(a)[:2], dim=1), F.normalize(all_columns(b), dim=1), 0.5
    ),
}


def work():
    """Everything that this file compares, of one process among several or alone."""
    results = {name: gradients(function) for name, function in FUNCTIONS.items()}
    torch.manual_seed(2)
    results["table"] = all_parts(columns.normal_table(3 * 2**14 + 5, 6, 0.5), 1)
    results["small table"] = all_parts(columns.normal_table(1, 3, 0.5), 1)
    for dim in (0, 1):
        whole = torch.empty((9, 7) if dim == 0 else (7, 9))
        results[f"mask {dim}"] = all_parts(keep_mask(own_part(whole, dim), 0.4, dim), dim)
    results["next number"] = torch.rand(())  # of the generator: all have drawn equally often
    return results


@pytest.fixture(scope="module")
def results():
    return work(), in_processes(P, work)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_values_and_gradients_equal_those_of_one_process(results, name):
    for found in results[1]:
        torch.testing.assert_close(found[name], results[0][name], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("name", ["table", "small table", "mask 0", "mask 1", "next number"])
def test_random_numbers_are_those_of_one_process(results, name):
    for found in results[1]:
        assert torch.equal(found[name], results[0][name])


def test_one_process_draws_its_tables_with_torch_randn():
    torch.manual_seed(4)
    table = columns.normal_table(50, 6, 0.5)
    torch.manual_seed(4)
    assert torch.equal(table, 0.5 * torch.randn(50, 6))


def uneven():
    mine = torch.arange(columns.rank() + 1)
    sent = all_parts(mine, to=1)
    return all_parts(mine), sent, [own(10), own(2), own(1)]


def test_parts_of_different_sizes_are_joined_in_order_and_own_parts_cover_all():
    found = in_processes(P, uneven)
    for rank, (joined, sent, _) in enumerate(found):
        assert joined.tolist() == [0, 0, 1, 0, 1, 2]
        assert sent.tolist() == (joined.tolist() if rank == 1 else list(range(rank + 1)))
    for count, parts in zip((10, 2, 1), zip(*(slices for _, _, slices in found))):
        assert [i for part in parts for i in range(count)[part]] == list(range(count))


def test_with_one_process_every_function_returns_its_argument():
    x = torch.ones(2, 3)
    assert all(function(x) is x for function in (sum_parts, shared, all_columns, all_parts))
    assert own(7) == slice(0, 7)
