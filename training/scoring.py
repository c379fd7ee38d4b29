"""Scores of all items for the users of a split, in chunks that fit a CPU's cache or a GPU's memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
from tqdm import tqdm

from dataloader import HeldOut, Rows
from layers.device import on_cpu
from layers.sparse import csr_tensor
from models.base import ItemWeights

ENTRIES = 2**24  # of item weights that are looked at together; each takes about 48 bytes
GROUP = 64  # score matrices are padded to a multiple of this many columns, which rankings look at together


@dataclasses.dataclass(frozen=True)
class Scorer:
    """Scores of users for items: user @ item.T, and the term of a model's item weights."""

    user: torch.Tensor  # [U, d], or of several processes the part `users` of the rows
    item: torch.Tensor  # [I, d]
    weights: ItemWeights | None = None
    history: Rows | None = None  # the items of each of these users that the weights apply to: of TRAIN
    users: slice | None = None  # the users that this process scores; None: all

    def score(self, users: torch.Tensor, item: torch.Tensor, out: torch.Tensor) -> torch.Tensor:
        """Scores of users [r] int64 for all items, in `out` [r, n]. item: [n, d], with padding rows."""
        scores = torch.mm(self.user[users], item.T, out=out)
        if self.weights is None or self.history is None:
            return scores
        if not self.weights.spread:
            add_history(scores, users, self.history, self.weights.matrix, self.weights.factor)
            return scores
        term, n_items = torch.zeros_like(scores), len(self.item)
        add_history(term, users, self.history, self.weights.matrix, self.weights.factor)
        for part, factor in ((scores, 1.0), (term, self.weights.factor)):
            part /= part[:, :n_items].std(1, keepdim=True).clamp_min(1e-12) / factor
        return scores.add_(term)


def add_history(
    scores: torch.Tensor, users: torch.Tensor, history: Rows, weights: torch.Tensor, factor: float
) -> None:
    """Add to the scores [r, n] of each user factor * the rows of the weights [I, I] of the user's items."""
    crow, items = history
    first, counts = crow[users], crow[users + 1] - crow[users]
    row, entry = expand(first, counts)
    rows = items[entry]
    if on_cpu(scores) and torch.backends.mkl.is_available():
        # A product of two sparse matrices that MKL adds to a dense one.
        pointers = torch.cat([counts.new_zeros(1), counts.cumsum(0)]).int()
        chosen = csr_tensor(pointers, rows.int(), scores.new_ones(len(rows)), (len(users), len(weights)))
        padded = csr_tensor(
            weights.crow_indices().int(),
            weights.col_indices().int(),
            weights.values(),
            (len(weights), scores.shape[1]),
        )
        torch.addmm(scores, chosen, padded, alpha=factor, out=scores)
        return
    crow, col, values = weights.crow_indices().long(), weights.col_indices(), weights.values()
    first, counts = crow[rows], crow[rows + 1] - crow[rows]
    for part in in_parts(counts):
        which, entry = expand(first[part], counts[part])
        target = row[part][which] * scores.shape[1] + col[entry]
        scores.view(-1).index_add_(0, target, values[entry], alpha=factor)


def history_scores(
    users: torch.Tensor, items: torch.Tensor, history: Rows, weights: torch.Tensor
) -> torch.Tensor:
    """The sum over the user's items j of weights[j, item] for pairs of users and items [m] int64: [m]."""
    (crow, owned), n = history, len(weights)
    source = torch.repeat_interleave(weights.crow_indices().diff().long())
    keys = source * n + weights.col_indices()  # ascending; int64, as n^2 may exceed int32
    first, counts = crow[users], crow[users + 1] - crow[users]
    sums = weights.values().new_zeros(len(users))
    if not len(keys):
        return sums
    for part in in_parts(counts):
        pair, entry = expand(first[part], counts[part])
        wanted = owned[entry] * n + items[part][pair]
        position = torch.searchsorted(keys, wanted).clamp_(max=len(keys) - 1)
        values = torch.where(keys[position] == wanted, weights.values()[position], 0)
        sums[part].index_add_(0, pair, values)
    return sums


def in_parts(counts: torch.Tensor) -> Iterator[slice]:
    """Slices of consecutive rows that have about ENTRIES entries together; counts: [n], entries of a row."""
    stop = 0
    for size in torch.bincount(counts.cumsum(0) // ENTRIES).tolist():
        start, stop = stop, stop + size
        yield slice(start, stop)


def expand(first: torch.Tensor, counts: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Concatenate the ranges first[i] .. first[i] + counts[i]: (i, value) of every element."""
    index = torch.repeat_interleave(counts)
    start = counts.cumsum(0) - counts
    return index, torch.arange(len(index), device=counts.device) - start[index] + first[index]


def chunk_size(n_items: int, tensor: torch.Tensor) -> int:
    """Users to score at a time: such that the scores stay in a CPU's cache, or take 1 GB of a GPU."""
    return max((2**21 if on_cpu(tensor) else 2**28) // n_items, 64)


def row_numbers(crow: torch.Tensor, start: int, stop: int) -> torch.Tensor:
    """The row of each entry in rows start..stop of a CSR with these row pointers, counted from `start`."""
    counts = crow[start + 1 : stop + 1] - crow[start:stop]
    return torch.repeat_interleave(torch.arange(stop - start, device=crow.device), counts)


@torch.inference_mode()
def score_chunks(scorer: Scorer, split: HeldOut, chunk: int = 0) -> Iterator[tuple[int, int, torch.Tensor]]:
    """Scores of all items for the users of a split, chunk by chunk: (start, stop, [stop - start, n]).

    n is the number of items rounded up to a multiple of GROUP. Masked items score less than any other, but
    more than the padding columns. The chunks share their memory. chunk: users scored at a time (0: chosen for
    the device).
    """
    item, n_items = scorer.item, len(scorer.item)
    chunk = chunk or chunk_size(n_items, item)
    item = torch.cat([item, item.new_zeros(-n_items % GROUP, item.shape[1])])
    crow, masked = split.masked
    buffer = item.new_empty(min(chunk, len(split.users)), len(item))
    starts = range(0, len(split.users), chunk)
    for start in tqdm(starts, desc="ranking", unit="chunk", leave=False, delay=2, disable=None):
        stop = min(start + chunk, len(split.users))
        scores = scorer.score(split.users[start:stop], item, buffer[: stop - start])
        scores[:, n_items:] = -torch.inf
        entries = row_numbers(crow, start, stop), masked[crow[start] : crow[stop]]
        scores[entries] = torch.finfo(scores.dtype).min
        yield start, stop, scores


def slice_of_rows(row: torch.Tensor, start: int, stop: int) -> slice:
    """The entries of an ascending row index [m] that lie in rows start..stop."""
    return slice(*torch.searchsorted(row, row.new_tensor([start, stop])).tolist())
