"""The k largest columns of each row."""

import torch


def top_columns(scores, k, group=64):
    """Indices of the k largest of each row [rows, k], best first; the same as topk, sooner.

    scores: [rows, n]. The k best of a row lie in the k groups of columns with the largest maxima, so only these are
    searched. Where n is no multiple of group, or too small for this to pay, it is topk.
    """
    rows, n = scores.shape
    if n % group or 2 * k * group >= n:
        return scores.topk(k, dim=1).indices
    groups = scores.view(rows, -1, group)
    best = groups.amax(2).topk(k, dim=1, sorted=False).indices  # [rows, k]
    flat = best + groups.shape[1] * torch.arange(rows, device=scores.device)[:, None]
    candidates = groups.flatten(0, 1).index_select(0, flat.flatten()).view(rows, -1)  # [rows, k * group]
    at = candidates.topk(k, dim=1).indices
    return best.gather(1, at // group) * group + at % group


def first_columns(scores, k, group=64):
    """top_columns with equal scores in the order of their columns: the first k of a stable descending sort of each row.

    A row is only sorted where two of its best k + 1 are equal.
    """
    top = top_columns(scores, min(k + 1, scores.shape[1]), group)
    values = scores.gather(1, top)
    tied = (values[:, 1:] == values[:, :-1]).any(1).nonzero()[:, 0]
    top[tied] = scores[tied].sort(dim=1, descending=True, stable=True).indices[:, : top.shape[1]]
    return top[:, :k]
