"""Transport costs and plans, compared with broadcast formulas and with POT (Python Optimal Transport)."""

import numpy as np
import ot
import pytest
import torch
from model_helpers import randn
from torch.utils._python_dispatch import TorchDispatchMode

from layers.transport import cost_unit, l1_cost, sinkhorn_exp, sinkhorn_log, squared_cost

# ---------------------------------------------------------------- costs


@pytest.mark.parametrize("cost, elementwise", [(l1_cost, torch.abs), (squared_cost, torch.square)])
def test_cost_equals_the_broadcast_formula_and_passes_gradcheck(cost, elementwise):
    x, y = randn(9, 4, seed=1, grad=True), randn(9, 6, seed=2, grad=True)
    expected = elementwise(x[:, :, None] - y[:, None, :]).mean(0)
    torch.testing.assert_close(cost(x, y), expected, rtol=1e-11, atol=1e-12)
    assert torch.autograd.gradcheck(cost, (x, y))
    probe = randn(4, 6, seed=3)
    ours = torch.autograd.grad((cost(x, y) * probe).sum(), (x, y))
    theirs = torch.autograd.grad((expected * probe).sum(), (x, y))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("cost", [l1_cost, squared_cost])
def test_cost_never_makes_a_cube(cost):
    n, d, sizes = 2000, 400, []

    class Watch(TorchDispatchMode):
        """Records the size of every tensor that an operation returns."""

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            results = out if isinstance(out, (tuple, list)) else [out]
            sizes.extend(t.numel() for t in results if isinstance(t, torch.Tensor))
            return out

    x, y = (randn(n, d, seed=s, dtype=torch.float32, grad=True) for s in (1, 2))
    with Watch():
        cost(x, y).sum().backward()
    # The cube of all differences has 320 million elements, 1220 MB.
    assert len(sizes) > 3 and max(sizes) <= 4 * n * d


def test_squared_cost_of_equal_columns_is_not_negative():
    x = 1000 + randn(50, 6, dtype=torch.float32)
    assert (squared_cost(x, x) >= 0).all()


# ---------------------------------------------------------------- the unit of epsilon


def test_units_of_epsilon_by_hand():
    cost = torch.from_numpy(random_cost())
    rows, columns, mean = cost.mean(1).tolist(), cost.mean(0).tolist(), cost.mean().item()
    rest = [float(cost[i, j]) - rows[i] - columns[j] + mean for i in range(6) for j in range(9)]
    assert cost_unit(cost, "absolute") == 1
    assert cost_unit(cost, "mean").item() == pytest.approx(mean)
    assert cost_unit(cost, "spread").item() == pytest.approx(np.std(rest))


def test_spread_ignores_what_is_added_to_a_row_or_a_column():
    cost = torch.from_numpy(random_cost())
    shifted = cost + 50 * randn(6, 1, seed=1) + 50 * randn(1, 9, seed=2)
    torch.testing.assert_close(cost_unit(shifted, "spread"), cost_unit(cost, "spread"))


@pytest.mark.parametrize("unit", ["mean", "spread"])
def test_unit_of_a_cost_of_zeros_is_positive(unit):
    assert 0 < cost_unit(torch.zeros(3, 4), unit).item() < 1e-20


# ---------------------------------------------------------------- Sinkhorn


def uniform(n):
    return np.full(n, 1 / n)


def random_cost(p=6, q=9, seed=0):
    return np.random.default_rng(seed).random((p, q))


def test_sinkhorn_log_equals_pot_at_moderate_epsilon():
    cost = random_cost()
    expected = ot.sinkhorn(uniform(6), uniform(9), cost, 0.1, stopThr=1e-13, numItermax=10000)
    plan, _ = sinkhorn_log(torch.from_numpy(cost), 0.1, 10000, tolerance=1e-12)
    np.testing.assert_allclose(plan.numpy(), expected, rtol=1e-8, atol=1e-12)


def test_sinkhorn_log_equals_pot_at_small_epsilon():
    cost = random_cost()
    expected = ot.bregman.sinkhorn_log(uniform(6), uniform(9), cost, 0.02, stopThr=1e-10, numItermax=20000)
    plan, _ = sinkhorn_log(torch.from_numpy(cost), 0.02, 20000, tolerance=1e-10)
    np.testing.assert_allclose(plan.numpy(), expected, rtol=1e-5, atol=1e-9)


@pytest.mark.parametrize("iterations", [1, 2, 10, 11, 25])
def test_sinkhorn_log_makes_the_given_number_of_iterations(iterations):
    """Blocks of ten iterations, the last one shorter, are the same as one iteration after the other."""
    cost = random_cost()
    kernel, v = np.exp(-cost / 0.05), np.ones(9)
    for _ in range(iterations):
        u = 1 / (6 * kernel @ v)
        v = 1 / (9 * kernel.T @ u)
    plan, _ = sinkhorn_log(torch.from_numpy(cost), 0.05, iterations, tolerance=0)
    np.testing.assert_allclose(plan.numpy(), u[:, None] * kernel * v, rtol=1e-9)


def test_sinkhorn_log_marginals():
    plan, _ = sinkhorn_log(torch.from_numpy(random_cost()), 0.05, 5000, tolerance=1e-6)
    assert (plan >= 0).all()
    np.testing.assert_allclose(plan.sum(0).numpy(), uniform(9), rtol=1e-10)
    assert (plan.sum(1) - 1 / 6).abs().sum() <= 1e-6
    loose, _ = sinkhorn_log(torch.from_numpy(random_cost()), 0.05, 5000, tolerance=1e-2)
    assert 1e-6 < (loose.sum(1) - 1 / 6).abs().sum() <= 1e-2


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_sinkhorn_log_keeps_mass_one_at_every_scale_of_the_cost(scale):
    cost = torch.from_numpy(random_cost()).float()
    plan, _ = sinkhorn_log(cost * scale, 0.02 * scale, 500)
    reference, _ = sinkhorn_log(cost, 0.02, 500)
    assert plan.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(plan, reference, rtol=0.01, atol=1e-5)


def test_sinkhorn_log_warm_start_gives_the_same_plan_in_fewer_iterations(monkeypatch):
    calls, original = [], torch.logsumexp
    monkeypatch.setattr(
        torch, "logsumexp", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    )
    cost = torch.from_numpy(random_cost())
    cold, potential = sinkhorn_log(cost, 0.05, 5000, tolerance=1e-10)
    cold_calls = len(calls)
    warm, again = sinkhorn_log(cost, 0.05, 5000, start=potential, tolerance=1e-10)
    assert len(calls) - cold_calls < cold_calls / 2
    torch.testing.assert_close(warm, cold, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(again, potential, rtol=1e-6, atol=1e-8)


def test_sinkhorn_log_nears_the_exact_transport_at_tiny_epsilon():
    cost = random_cost(7, 7)
    exact = ot.emd2(uniform(7), uniform(7), cost)
    plan, _ = sinkhorn_log(torch.from_numpy(cost), 0.002, 20000, tolerance=1e-7)
    assert exact - 1e-6 <= float((plan.numpy() * cost).sum()) <= exact * 1.03


def test_sinkhorn_exp_equals_pot_where_nothing_underflows():
    cost = random_cost()
    expected = ot.sinkhorn(uniform(6), uniform(9), cost, 0.2, stopThr=1e-13, numItermax=10000)
    np.testing.assert_allclose(sinkhorn_exp(torch.from_numpy(cost), 0.2, 2000).numpy(), expected, rtol=1e-5)


def test_sinkhorn_exp_underflows_where_sinkhorn_log_keeps_mass_one():
    cost = 10 + 100 * torch.from_numpy(random_cost()).float()
    assert sinkhorn_exp(cost, 0.01, 50).sum() < 1e-6
    assert sinkhorn_log(cost, 0.01, 50)[0].sum().item() == pytest.approx(1, abs=1e-4)
