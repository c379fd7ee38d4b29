"""Optimal transport between the dimensions of two representations: costs and Sinkhorn (eq. 9-11)."""

import math

import torch

from layers.device import on_cpu
from layers.kernels import l1_cost


def squared_cost(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """C[i, j] = mean over rows b of (x[b, i] - y[b, j])^2, from moments. x: [n, p], y: [n, q] -> [p, q]."""
    cross = x.T @ y / len(x)
    return (x.square().mean(0)[:, None] + y.square().mean(0) - 2 * cross).clamp_min(0)


COSTS = {"l1": l1_cost, "squared": squared_cost}


def cost_unit(cost: torch.Tensor, unit: str) -> torch.Tensor | float:
    """The unit of epsilon: 1 ("absolute"), the mean of the cost [p, q] ("mean"), or its "spread".

    A plan does not change when a constant is added to a row or a column of the cost, so the spread is the
    standard deviation of the cost without its row and column means. ID vectors grow in training and modality
    vectors do not; where one side is far longer than the other, the means are nearly all of the cost, and an
    epsilon relative to the mean cost would flatten the plan.
    """
    if unit == "absolute":
        return 1.0
    if unit == "mean":
        return cost.mean().clamp_min(1e-30)
    centred = cost - cost.mean(0) - cost.mean(1, keepdim=True) + cost.mean()
    return centred.square().mean().sqrt().clamp_min(1e-30)


def sinkhorn_log(
    cost: torch.Tensor,
    epsilon: float,
    iterations: int,
    start: torch.Tensor | None = None,
    tolerance: float = 1e-4,
    check_every: int = 10,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Entropy-regularised optimal transport in the log domain, uniform marginals (Cuturi 2013; eq. 10-11).

    cost: [p, q]; epsilon: in units of the cost; start: column potential [q] of an earlier call (warm start).
    Returns the plan [p, q], of mass 1 and with exact column marginals, and the column potential [q].

    Of every `check_every` iterations the first is computed in the log domain and the others as scalings of
    the kernel that it leaves ("absorption", Schmitzer 2019): the same iterations for a tenth of the
    exponentials. Scalings that leave the range of the type are dropped. On a CPU, iteration ends once the row
    marginals are within `tolerance` of uniform (sum of absolute errors); on a GPU all iterations are made,
    without waiting for the device.
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
        if on_cpu(cost) and error <= tolerance:
            break
    plan = torch.exp(row[:, None] + column - scaled)
    return plan / (q * plan.sum(0)), column * epsilon


def sinkhorn_exp(cost: torch.Tensor, epsilon: float, iterations: int) -> torch.Tensor:
    """Sinkhorn-Knopp on exp(-cost / epsilon) as the released code runs it; underflows where cost >> epsilon.

    cost: [p, q]; returns the plan [p, q].
    """
    p, q = cost.shape
    kernel = torch.exp(-cost / epsilon)
    column = torch.full((q,), 1 / q, dtype=cost.dtype, device=cost.device)
    for _ in range(iterations):
        row = (1 / p) / (kernel @ column + 1e-8)
        column = (1 / q) / (kernel.T @ row + 1e-8)
    return row[:, None] * kernel * column
