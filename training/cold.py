"""Metrics of warm and cold items: those that are in training and those that are held out of it entirely.

warm_and_cold(scorer, split, cold, ks)    # {"warm": {"recall@20": ...}, "cold": ..., "cold among cold": ...}
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch

from dataloader import HeldOut, Rows
from layers.sparse import from_scipy, to_scipy
from models.base import ItemWeights
from training.ranking import evaluate
from training.scoring import Scorer, row_numbers

COLD_KINDS = ("warm", "cold", "cold among cold")


def warm_and_cold(
    scorer: Scorer, split: HeldOut, cold: np.ndarray, ks: Sequence[int], chunk: int = 0
) -> dict[str, dict[str, float]]:
    """Metrics of a split by the kind of the relevant items; a kind without any is left out.

    cold: [c] int64 ids of the cold items, ascending. "warm" and "cold" rank all items; relevant are those of
    the kind alone. "cold among cold" ranks the cold items alone, where they are as many as the largest K;
    with --neighbour_scale spread, the deviations are those over the cold items.
    """
    ids = torch.from_numpy(cold).to(split.users.device)
    is_cold = torch.zeros(len(scorer.item), dtype=torch.bool, device=ids.device).index_fill_(0, ids, True)
    parts = {"warm": with_relevant(split, ~is_cold), "cold": with_relevant(split, is_cold)}
    found = {kind: evaluate(scorer, [part], ks, chunk)[0] for kind, part in parts.items() if len(part.users)}
    if "cold" in found and len(cold) >= max(ks):
        number = is_cold.cumsum(0) - 1  # of a cold item among them
        part = with_relevant(split, is_cold)
        relevant = part.relevant[0], number[part.relevant[1]]
        masked = keep_entries(part.masked, is_cold)
        part = HeldOut(part.users, relevant, (masked[0], number[masked[1]]))
        found["cold among cold"] = evaluate(among(scorer, ids), [part], ks, chunk)[0]
    return found


def with_relevant(split: HeldOut, allowed: torch.Tensor) -> HeldOut:
    """The split with the relevant items of allowed [I] bool alone, and the users that have any."""
    relevant = keep_entries(split.relevant, allowed)
    return dataclasses.replace(split, relevant=relevant).select(relevant[0].diff().nonzero()[:, 0])


def keep_entries(csr: Rows, allowed: torch.Tensor) -> Rows:
    """The entries of a CSR whose item is allowed [I] bool; rows stay, some of them empty."""
    crow, items = csr
    kept = allowed[items]
    counts = torch.bincount(row_numbers(crow, 0, len(crow) - 1)[kept], minlength=len(crow) - 1)
    return torch.cat([crow.new_zeros(1), counts.cumsum(0)]), items[kept]


def among(scorer: Scorer, items: torch.Tensor) -> Scorer:
    """The scorer of some items [c] alone, in this order."""
    weights = scorer.weights
    if weights is not None:
        weights = dataclasses.replace(weights, matrix=columns_of(weights, items))
    return dataclasses.replace(scorer, item=scorer.item[items], weights=weights)


def columns_of(weights: ItemWeights, items: torch.Tensor) -> torch.Tensor:
    """Some columns [c] of the weights [I, I]: sparse CSR [I, c]."""
    return from_scipy(to_scipy(weights.matrix)[:, items.cpu().numpy()], weights.matrix.device)
