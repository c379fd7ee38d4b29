"""Loss terms: BPR, the norm of embeddings, and InfoNCE."""

import functools
import operator
from collections.abc import Iterable

import torch
from torch.nn import functional as F

from layers.columns import divide_rows, sum_parts
from layers.kernels import unit_info_nce


def total(terms: Iterable[torch.Tensor]) -> torch.Tensor:
    """Sum of at least one tensor."""
    return functools.reduce(operator.add, terms)


def bpr_loss(user: torch.Tensor, positive: torch.Tensor, negative: torch.Tensor) -> torch.Tensor:
    """Bayesian personalised ranking (Rendle 2009, eq. 19): mean of -log sigmoid(u . p - u . n).

    user, positive, negative: [B, own columns], a row a triple.
    """
    return F.softplus(sum_parts((user * (negative - positive)).sum(1))).mean()


def squared_norm(*vectors: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
    """Mean over triples of the summed squared norms of their vectors (LightGCN's regulariser, times 2).

    vectors: pairs of distinct vectors [n, own columns] and the row index of each triple [B].
    """
    batch = len(vectors[0][1])
    norms = [rows.square().sum(1).index_select(0, index).sum() for rows, index in vectors]
    return sum_parts(total(norms) / batch)


def directions(x: torch.Tensor) -> torch.Tensor:
    """Rows [n, d], of all columns, scaled to length 1; a row of zeros stays as it is."""
    return divide_rows(x, x.norm(dim=1))


def info_nce(
    a: torch.Tensor,
    b: torch.Tensor,
    temperature: float,
    target: torch.Tensor | None = None,
    block: int = 480,
    dtype: torch.dtype | None = None,
    counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """InfoNCE with cosine similarity (eq. 7): mean of -log softmax(cos(a_r, b) / temperature)[target_r].

    a: [n, d] anchors; b: [m, d] candidates, of all columns; target: [n] int64, the row of b that matches each
    anchor (default: r); block: anchors processed at a time; dtype: type that operands of matrix products are
    rounded to (default: none); counts: see unit_info_nce.
    """
    return unit_info_nce(directions(a), directions(b), temperature, target, block, dtype, counts)
