"""Full ranking: top-K lists of users, and metrics from the ranks of their relevant items.

scorer = Scorer(user, item)                            # final vectors of a model
[metrics] = evaluate(scorer, [split], ks=(10, 20))     # {"recall@10": 0.0501, ...}
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch

from dataloader import HeldOut
from layers.agreement import from_all
from layers.columns import all_parts
from layers.topk import first_columns
from training.metrics import ranking_metrics
from training.prefilter import certain_misses
from training.scoring import GROUP, Scorer, row_numbers, score_chunks, slice_of_rows


def rank_items(
    scorer: Scorer, split: HeldOut, k: int, chunk: int = 0
) -> Iterator[tuple[int, int, torch.Tensor, torch.Tensor]]:
    """Best k items of every user of a split, chunk by chunk: (start, stop, items [rows, k], their scores).

    Of equal scores the lower item comes first. With fewer than k candidates, masked items fill the end.
    """
    for start, stop, scores in score_chunks(scorer, split, chunk):
        top = first_columns(scores, k, GROUP)
        yield start, stop, top, scores.gather(1, top)


def top_items(scorer: Scorer, split: HeldOut, k: int, chunk: int = 0) -> torch.Tensor:
    """The items of rank_items for all users of a split, by all processes: [n, k]."""
    parts = [top for _, _, top, _ in rank_items(scorer, split.of_users(scorer.users), k, chunk)]
    return all_parts(torch.cat([split.users.new_empty(0, k), *parts]))


# ---------------------------------------------------------------- ranks of the relevant items


def ranks_of(scores: torch.Tensor, row: torch.Tensor, column: torch.Tensor, k: int) -> torch.Tensor:
    """Ranks from 0 of some entries of a score matrix within their rows, at most k: [m] int64.

    scores: [rows, n], n a multiple of GROUP; row, column: [m] int64, the entries. Of equal scores the lower
    column comes first. NaN never helps: an entry that is NaN ranks last, and another NaN counts as before it.

    A score below the maxima of k groups of columns is not among the first k, which decides most entries. For
    the others it is enough to count in the groups with a larger maximum and in their own.
    """
    groups = scores.view(len(scores), -1, GROUP)
    score, own_group = scores[row, column][:, None], (column // GROUP)[:, None]
    maxima = groups.amax(2).index_select(0, row)
    group = torch.arange(groups.shape[1], device=scores.device)
    # Groups in which no column is certain to come before the entry.
    behind = torch.where(group < own_group, maxima < score, maxima <= score)
    near = (behind.sum(1) > groups.shape[1] - k).nonzero()[:, 0]
    index, group = (~behind[near] | (group == own_group[near])).nonzero().unbind(1)
    entry = near[index]
    members = groups.flatten(0, 1).index_select(0, row[entry] * groups.shape[1] + group)  # [p, GROUP]
    columns = group[:, None] * GROUP + torch.arange(GROUP, device=scores.device)
    after = torch.where(columns < column[entry, None], members < score[entry], members <= score[entry])
    ranks = torch.full_like(row, k)
    before = GROUP - after.sum(1)
    ranks[near] = torch.zeros_like(near).index_add_(0, index, before).clamp_(max=k)
    return ranks


def relevant_ranks(
    scorer: Scorer, splits: Sequence[HeldOut], k: int, chunk: int = 0
) -> tuple[torch.Tensor, ...]:
    """Ranks, as ranks_of gives them, of the relevant items of splits with the same ranking: [n] each."""
    row, order = torch.cat([row_numbers(s.relevant[0], 0, len(s.users)) for s in splits]).sort(stable=True)
    column = torch.cat([split.relevant[1] for split in splits])[order]
    ranks = torch.full_like(row, k)
    undecided = (~certain_misses(scorer, splits[0], row, column, k, chunk)).nonzero()[:, 0]
    users, row = row[undecided].unique_consecutive(return_inverse=True)
    column, order = column[undecided], order[undecided]
    for start, stop, scores in score_chunks(scorer, splits[0].select(users), chunk):
        part = slice_of_rows(row, start, stop)
        ranks[order[part]] = ranks_of(scores, row[part] - start, column[part], k)
    return ranks.split([len(split.relevant[1]) for split in splits])


def mean_metrics(ranks: torch.Tensor, split: HeldOut, ks: Sequence[int]) -> dict[str, float]:
    """{"recall@10": mean over the users of a split, ...} from the ranks of its relevant items."""
    crow, k = split.relevant[0], max(ks)
    # Column k collects the items that are not among the first k.
    hits = torch.zeros(len(split.users), k + 1, dtype=torch.bool, device=ranks.device)
    hits[row_numbers(crow, 0, len(split.users)), ranks] = True
    metrics = ranking_metrics(hits[:, :k], crow.diff(), ks)
    return {name: float(values.mean()) for name, values in metrics.items()}


@torch.inference_mode()
def evaluate(
    scorer: Scorer, splits: Sequence[HeldOut], ks: Sequence[int], chunk: int = 0
) -> list[dict[str, float]]:
    """Full-ranking metrics of each split: {"recall@10": mean over its users, ...}.

    ks: cut-offs, at most I; chunk: users scored at a time (0: chosen for the device). The ranks of the
    relevant items are all that the metrics need, so no lists are made. Splits with the same users and masks
    share their scores. Each of several processes ranks its own users; the metrics are those of all.
    """
    metrics: dict[int, dict[str, float]] = {}
    for first in splits:
        same = [i for i, split in enumerate(splits) if i not in metrics and split.has_same_ranking(first)]
        if same:
            parts = [splits[i].of_users(scorer.users) for i in same]
            ranks = map(all_parts, relevant_ranks(scorer, parts, max(ks), chunk))
            metrics.update({i: mean_metrics(r, splits[i], ks) for i, r in zip(same, ranks, strict=True)})
    return from_all([metrics[i] for i in range(len(splits))])[0]
