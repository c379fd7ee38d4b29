"""Full ranking."""

import dataclasses

import torch
from tqdm import tqdm

from layers.topk import first_columns
from training.metrics import ranking_metrics


def row_numbers(crow, start, stop):
    """Rows start..stop of a CSR -> the row of each of their entries, counted from 0."""
    counts = crow[start + 1 : stop + 1] - crow[start:stop]
    return torch.repeat_interleave(torch.arange(stop - start, device=crow.device), counts)


GROUP = 64  # columns of a score matrix that are looked at together


def chunk_size(n_items, device):
    """Users to score at a time: as many as keep the scores in the cache of a CPU, or 1 GB of them on a GPU."""
    return max((2**21 if device.type == "cpu" else 2**28) // n_items, 64)


@torch.inference_mode()
def score_chunks(user, item, split, chunk=0):
    """Scores of all items for the users of a HeldOut split. Yields (start, stop, [rows, n]), n: I rounded up to a multiple of GROUP.

    user: [U, d], item: [I, d]; chunk: users scored at a time, 0: as many as suit the device. Masked items score less than any
    other, but more than the columns that are no items. The memory of a chunk is that of the next one.
    """
    chunk, n_items = chunk or chunk_size(len(item), item.device), len(item)
    item = torch.cat([item, item.new_zeros(-n_items % GROUP, item.shape[1])]).T
    crow, masked = split.masked
    buffer = item.new_empty(min(chunk, len(split.users)), item.shape[1])
    for start in tqdm(range(0, len(split.users), chunk), desc="ranking", unit="chunk", leave=False, delay=2):
        stop = min(start + chunk, len(split.users))
        scores = torch.mm(user[split.users[start:stop]], item, out=buffer[: stop - start])
        scores[:, n_items:] = -torch.inf
        scores[row_numbers(crow, start, stop), masked[crow[start] : crow[stop]]] = torch.finfo(
            scores.dtype
        ).min
        yield start, stop, scores


def rank_items(user, item, split, k, chunk=0):
    """Best k items of every user of a HeldOut split, of equal ones the lower first. Yields (start, stop, [rows, k] item ids) chunk by chunk.

    user, item, chunk: as score_chunks takes them. With fewer than k candidates, masked items fill the end.
    """
    for start, stop, scores in score_chunks(user, item, split, chunk):
        yield start, stop, first_columns(scores, k, GROUP)


def ranks_of(scores, row, column, k):
    """Ranks, from 0, of some entries of a score matrix among the columns of their rows; k for all that are not among the first k.

    scores: [rows, n], n a multiple of GROUP; row, column: [m] int64. Of equal scores the lower column comes first; a score that is
    NaN comes last, and behind a NaN. Returns [m] int64.
    A score below the maxima of k groups is not among the first k, which settles most of them; for the others it is enough
    to count in the groups with a larger maximum and in their own.
    """
    groups = scores.view(len(scores), -1, GROUP)
    score, own = scores[row, column][:, None], (column // GROUP)[:, None]
    best, number = groups.amax(2).index_select(0, row), torch.arange(groups.shape[1], device=scores.device)
    lower = torch.where(
        number < own, best < score, best <= score
    )  # groups without a column that is certain to come first
    near = (lower.sum(1) > groups.shape[1] - k).nonzero()[:, 0]
    entry, group = (~lower[near] | (number == own[near])).nonzero().unbind(1)
    at = near[entry]
    members = groups.flatten(0, 1).index_select(0, row[at] * groups.shape[1] + group)  # [p, GROUP]
    columns = group[:, None] * GROUP + torch.arange(GROUP, device=scores.device)
    behind = torch.where(columns < column[at, None], members < score[at], members <= score[at]).sum(1)
    ranks = torch.full_like(row, k)
    ranks[near] = torch.zeros_like(near).index_add_(0, entry, GROUP - behind).clamp_(max=k)
    return ranks


def certain_misses(user, item, split, row, column, k, chunk=0, share=8):
    """Which entries (row of a HeldOut, item) have k better items for sure, from a part of the scores: [m] bool.

    row, column: [m] int64, rows ascending. One item in `share` is scored, those with the highest mean score: enough to tell
    that most relevant items are not among the first k. What this cannot tell is False. Two ways to make a score differ by
    rounding, but by less than half the margin here, so that all scores at hand decide as this does.
    """
    few = len(item) // share // GROUP * GROUP
    missed = torch.zeros(len(row), dtype=torch.bool, device=row.device)
    if few < 4 * share * k:
        return missed
    liked = (item @ user.mean(0)).topk(few).indices
    place = torch.full_like(item[:, 0], -1, dtype=torch.int64).index_copy_(
        0, liked, torch.arange(few, device=item.device)
    )
    crow, masked = split.masked[0], place[split.masked[1]]
    kept = torch.cat([crow.new_zeros(1), (masked >= 0).cumsum(0)])
    short = dataclasses.replace(split, masked=(kept[crow], masked[masked >= 0]))
    margin = 4 * item.shape[1] * torch.finfo(item.dtype).eps * item.norm(dim=1).max() * user.norm(dim=1)
    for start, stop, scores in score_chunks(user, item[liked], short, chunk):
        part = bounds(row, start, stop)
        who = split.users[row[part]]
        bar = (user[who] * item[column[part]]).sum(1) + margin[who]
        best = scores.view(len(scores), share, -1).amax(1)  # [rows, few / share]
        missed[part] = (best.index_select(0, row[part] - start) > bar[:, None]).sum(1) >= k
    return missed


def bounds(row, start, stop):
    """Slice of the entries of an ascending row [m] that lie in rows start..stop."""
    return slice(*torch.searchsorted(row, row.new_tensor([start, stop])).tolist())


def relevant_ranks(user, item, splits, k, chunk=0):
    """Ranks, as ranks_of gives them, of the relevant items of HeldOut splits that rank alike: a list of [n], in the order of relevant."""
    row, order = torch.cat([row_numbers(split.relevant[0], 0, len(split.users)) for split in splits]).sort(
        stable=True
    )
    column = torch.cat([split.relevant[1] for split in splits])[order]
    ranks = torch.full_like(row, k)
    undecided = (~certain_misses(user, item, splits[0], row, column, k, chunk)).nonzero()[:, 0]
    rows, row = row[undecided].unique_consecutive(return_inverse=True)
    column, order = column[undecided], order[undecided]
    for start, stop, scores in score_chunks(user, item, splits[0].take(rows), chunk):
        part = bounds(row, start, stop)
        ranks[order[part]] = ranks_of(scores, row[part] - start, column[part], k)
    return ranks.split([len(split.relevant[1]) for split in splits])


def mean_metrics(ranks, split, ks):
    """{"recall@10": mean over the users of a split, ...} from the ranks of its relevant items."""
    crow, k = split.relevant[0], max(ks)
    hits = torch.zeros(
        len(split.users), k + 1, dtype=torch.bool, device=ranks.device
    )  # the last column: not among the first k
    hits[row_numbers(crow, 0, len(split.users)), ranks] = True
    return {
        name: float(values.mean()) for name, values in ranking_metrics(hits[:, :k], crow.diff(), ks).items()
    }


@torch.inference_mode()
def evaluate(user, item, splits, ks, chunk=0):
    """Full-ranking metrics of each split: a list of {"recall@10": mean over its users, ...}.

    user: [U, d], item: [I, d] final vectors; splits: list of HeldOut; ks: cut-offs, at most I; chunk: as score_chunks takes it.
    No list of items is made: the ranks of the relevant items say it all. Splits with the same users and masks share the scores.
    """
    metrics = {}
    for first in splits:
        alike = [i for i, split in enumerate(splits) if i not in metrics and split.ranks_like(first)]
        if alike:
            ranks = relevant_ranks(user, item, [splits[i] for i in alike], max(ks), chunk)
            metrics.update({i: mean_metrics(found, splits[i], ks) for i, found in zip(alike, ranks)})
    return [metrics[i] for i in range(len(splits))]
