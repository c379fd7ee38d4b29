"""Cosine similarity between rows whose numbers may be very large or small, as those of feature files."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Scale the rows of x [n, d] to length 1; rows of zeros remain zeros."""
    # Division by the largest entry first: squares of very large or small entries leave the range of float32.
    x = x / x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return F.normalize(x, dim=1)


def cosines(x: torch.Tensor, others: torch.Tensor, ids: torch.Tensor, block: int = 256) -> torch.Tensor:
    """The cosine of each row of x [n, d] with the rows ids [n, k] of others [m, d]: float32 [n, k]."""
    found = []
    # The gathered rows of all of x may not fit in memory.
    for part, rows in zip(x.split(block), ids.to(x.device).split(block), strict=True):
        gathered = unit_rows(others[rows.flatten()].float()).view(*rows.shape, -1)
        found.append(torch.einsum("nd,nkd->nk", unit_rows(part.float()), gathered))
    return torch.cat(found)


def nearest_rows(
    queries: torch.Tensor,
    features: torch.Tensor,
    k: int,
    allowed: torch.Tensor | None = None,
    block: int = 1024,
) -> torch.Tensor:
    """Rows of features [n, d] of highest cosine similarity to each query [m, d]: [m, min(k, n)] int64.

    allowed: [n] bool, the rows to choose from, n' in number, which takes the place of n (None: all).
    """
    rows = None if allowed is None else allowed.nonzero()[:, 0]
    unit = unit_rows((features if rows is None else features[rows]).float())
    k = min(k, len(unit))
    found = torch.cat(
        [(part @ unit.T).topk(k, dim=1).indices for part in unit_rows(queries.float()).split(block)]
    )
    return found if rows is None else rows[found]


def mean_direction(near: torch.Tensor) -> torch.Tensor:
    """The mean of k vectors, lengthened to the mean of their lengths: [n, k, d] -> [n, d].

    A mean is shorter than the vectors it averages. At that length, an item that it stands in for would
    rank last.
    """
    return unit_rows(near.mean(1)) * near.norm(dim=2).mean(1, keepdim=True)
