"""A shortcut of the evaluation: which relevant items cannot be among the first k, from a part of the scores.

Most relevant items rank far behind: an eighth of the items, those that score highest on average, is enough to
show that k of them score better. The decision is exact, not approximate: ranks_of gives the same ranks
without it.
"""

from __future__ import annotations

import dataclasses

import torch

from dataloader import HeldOut
from training.scoring import GROUP, Scorer, score_chunks, slice_of_rows


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
    if scorer.weights is not None or count < 4 * share * k:
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
    for start, stop, scores in score_chunks(Scorer(user, item[candidates]), reduced, chunk):
        part = slice_of_rows(row, start, stop)
        users = split.users[row[part]]
        bar = (user[users] * item[column[part]]).sum(1) + margin[users]
        best = scores.view(len(scores), share, -1).amax(1)  # [rows, count / share]
        missed[part] = (best.index_select(0, row[part] - start) > bar[:, None]).sum(1) >= k
    return missed
