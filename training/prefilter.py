"""A shortcut of the evaluation: which relevant items cannot be among the first k, from a part of the scores.

Most relevant items rank far behind: an eighth of the items, those that score highest on average, is enough to
show that k of them score better. The decision is exact, not approximate: ranks_of gives the same ranks
without it.
"""

from __future__ import annotations

import dataclasses

import torch

from dataloader import HeldOut
from models.base import ItemWeights
from training.scoring import GROUP, Scorer, history_scores, score_chunks, slice_of_rows


def certain_misses(
    scorer: Scorer,
    split: HeldOut,
    row: torch.Tensor,
    column: torch.Tensor,
    k: int,
    chunk: int = 0,
    share: int = 8,
) -> torch.Tensor:
    """Which entries (row of the split, item) certainly have k better items: [m] bool, False where undecided.

    row, column: [m] int64, rows ascending; share: one item in `share` is scored.
    """
    user, item = scorer.user, scorer.item
    count = len(item) // share // GROUP * GROUP
    missed = torch.zeros(len(row), dtype=torch.bool, device=row.device)
    if count < 4 * share * k or not (scorer.weights is None or can_bound(scorer.weights)):
        return missed
    candidates = (item @ user.mean(0)).topk(count).indices
    position = torch.full((len(item),), -1, device=item.device)
    position[candidates] = torch.arange(count, device=item.device)
    crow, masked = split.masked[0], position[split.masked[1]]
    kept = torch.cat([crow.new_zeros(1), (masked >= 0).cumsum(0)])
    reduced = dataclasses.replace(split, masked=(kept[crow], masked[masked >= 0]))
    # The same score computed in two ways differs by rounding, by less than half of this margin.
    eps = torch.finfo(item.dtype).eps
    margin = 4 * item.shape[1] * eps * item.norm(dim=1).max() * user.norm(dim=1)
    extra = None
    if scorer.weights is not None and scorer.history is not None:
        # The candidates are scored without this term, which can only raise their scores.
        terms = history_scores(split.users[row], column, scorer.history, scorer.weights.matrix)
        extra = scorer.weights.factor * terms * (1 + 1e-4)  # more than any sum loses by rounding
    for start, stop, scores in score_chunks(Scorer(user, item[candidates]), reduced, chunk):
        part = slice_of_rows(row, start, stop)
        users = split.users[row[part]]
        bar = (user[users] * item[column[part]]).sum(1) + margin[users]
        if extra is not None:
            bar += extra[part]
        best = scores.view(len(scores), share, -1).amax(1)  # [rows, count / share]
        missed[part] = (best.index_select(0, row[part] - start) > bar[:, None]).sum(1) >= k
    return missed


def can_bound(weights: ItemWeights) -> bool:
    """Whether the scores without the term of these weights are a lower bound of those with it."""
    return not weights.spread and weights.factor >= 0 and bool((weights.matrix.values() >= 0).all())
