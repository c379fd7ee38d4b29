"""Costs and Sinkhorn."""

import math

import torch

from layers.kernels import _L1Cost


def l1_cost(x, y):
    """C[i, j] = mean over rows b of |x[b, i] - y[b, j]| (eq. 9). x: [n, p], y: [n, q] -> [p, q], in O(n (p + q) + p q) memory."""
    return _L1Cost.apply(x, y)


def squared_cost(x, y):
    """C[i, j] = mean over rows b of (x[b, i] - y[b, j])^2, from second moments. x: [n, p], y: [n, q] -> [p, q]."""
    cross = x.T @ y / len(x)
    return (x.square().mean(0)[:, None] + y.square().mean(0) - 2 * cross).clamp_min(0)


COSTS = {"l1": l1_cost, "squared": squared_cost}


def cost_unit(cost, unit):
    """What epsilon is measured in: 1 (absolute), the mean of cost [p, q], or its spread.

    A plan does not change when a constant is added to a row or a column of the cost, so the spread is the standard
    deviation of the cost without its row and column means. Where one side is far longer than the other (ID vectors
    grow in training, modality vectors do not), those means are nearly all of the cost, and an epsilon relative to the
    mean would flatten the plan.
    """
    if unit == "absolute":
        return 1.0
    if unit == "mean":
        return cost.mean().clamp_min(1e-30)
    return (
        (cost - cost.mean(0) - cost.mean(1, keepdim=True) + cost.mean())
        .square()
        .mean()
        .sqrt()
        .clamp_min(1e-30)
    )


def sinkhorn_log(cost, epsilon, iterations, start=None, tolerance=1e-4, check_every=10):
    """Entropy-regularised optimal transport in the log domain with uniform marginals (Cuturi 2013; eq. 10-11).

    cost: [p, q]; epsilon: in units of the cost; start: column potential [q] of an earlier call, to begin nearer.
    Of every `check_every` iterations the first is made in the log domain, and the others as scalings of the kernel that
    it leaves (Schmitzer 2019, "absorption"): the same iterations for a tenth of the exponentials. Where a scaling leaves
    the range of the type, it is dropped. On a CPU it stops early once the row marginals are within `tolerance`
    (relative, summed over rows) of uniform; on a GPU it never waits for the device.
    Returns the plan [p, q] (mass 1, exact column marginals) and the column potential [q].
    """
    p, q = cost.shape
    scaled = cost / epsilon
    column = torch.zeros(q, dtype=cost.dtype, device=cost.device) if start is None else start / epsilon
    for done in range(0, iterations, check_every):
        row = -torch.logsumexp(column - scaled, 1) - math.log(p)
        column = -torch.logsumexp(row[:, None] - scaled, 0) - math.log(q)
        kernel = torch.exp(row[:, None] + column - scaled)  # a plan with exact column marginals
        u, v = torch.ones_like(row), torch.ones_like(column)
        for _ in range(min(check_every, iterations - done) - 1):
            u = 1 / (p * (kernel @ v))
            v = 1 / (q * (u @ kernel))
        error = (u * (kernel @ v) - 1 / p).abs().sum()  # not finite if u or v is not
        row = torch.where(error.isfinite(), row + u.log(), row)
        column = torch.where(error.isfinite(), column + v.log(), column)
        if cost.device.type == "cpu" and error <= tolerance:
            break
    plan = torch.exp(row[:, None] + column - scaled)
    return plan / (q * plan.sum(0)), column * epsilon


def sinkhorn_exp(cost, epsilon, iterations):
    """Plain Sinkhorn-Knopp on exp(-cost / epsilon) as the released code runs it. Underflows when cost >> epsilon."""
    p, q = cost.shape
    kernel = torch.exp(-cost / epsilon)
    column = torch.full((q,), 1 / q, dtype=cost.dtype, device=cost.device)
    for _ in range(iterations):
        row = (1 / p) / (kernel @ column + 1e-8)
        column = (1 / q) / (kernel.T @ row + 1e-8)
    return row[:, None] * kernel * column
