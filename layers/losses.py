"""Losses."""

import torch
from torch.nn import functional as F

from layers.kernels import _InfoNCE


def bpr_loss(user, positive, negative):
    """Bayesian personalised ranking (Rendle 2009, eq. 19): mean of -log sigmoid(u.p - u.n) over [B, d] vectors."""
    return F.softplus((user * (negative - positive)).sum(1)).mean()


def squared_norm(*taken):
    """Mean over the batch of the summed squared norms of the vectors of each triple (LightGCN's regulariser, without its 1/2).

    taken: pairs (vectors [n, d], which of them each triple takes [B]).
    """
    return sum(vectors.square().sum(1).index_select(0, at).sum() for vectors, at in taken) / len(taken[0][1])


def triple_bpr(user, item, batch):
    """BPR of a batch of triples. user: [v, d], vectors of batch.each_user; item: [r, d], of batch.each_item."""
    return bpr_loss(
        user.index_select(0, batch.user_at),
        item.index_select(0, batch.pos_at),
        item.index_select(0, batch.neg_at),
    )


def info_nce(a, b, temperature, target=None, block=480, dtype=None):
    """InfoNCE with cosine similarity (eq. 7): mean over rows of -log softmax(cos(a_r, b_*) / temperature)[target_r].

    a: [n, d]; b: [m, d], the candidates; target: [n] int64, the row of b that belongs to each row of a (default: r);
    dtype: that operands of matrix products are rounded to (default: none).
    """
    return unit_info_nce(F.normalize(a, dim=1), F.normalize(b, dim=1), temperature, target, block, dtype)


def unit_info_nce(a, b, temperature, target=None, block=480, dtype=None):
    """info_nce of rows that have length 1 already."""
    if target is None:
        target = torch.arange(len(a), device=a.device)
    return _InfoNCE.apply(a, b, target, temperature, block, dtype or a.dtype)
