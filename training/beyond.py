"""Metrics beyond accuracy, from the top-K lists of users: what is recommended, rather than what is hit.

beyond_accuracy(lists, popularity, n_users, (10, 20))   # {"coverage@10": 0.31, "novelty@10": 9.8, ...}
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

BEYOND = ("coverage", "novelty", "popularity", "tail", "gini")
ITEM_BINS = ("head", "middle", "tail", "cold")


def item_bins(popularity: np.ndarray) -> np.ndarray:
    """Assign each item to a bin by its number of training interactions [I]: an index into ITEM_BINS, [I].

    From the most popular item down, head items account for the first half of all interactions, middle items
    for the next 30%, tail items for the rest. Cold items have no training interaction.
    """
    order = np.argsort(-popularity, kind="stable")
    more_popular = np.cumsum(popularity[order]) - popularity[order]
    share = more_popular / max(popularity.sum(), 1)
    bins = np.empty(len(popularity), dtype=np.int64)
    bins[order] = (share >= 0.5).astype(int) + (share >= 0.8)
    bins[popularity == 0] = ITEM_BINS.index("cold")
    return bins


def beyond_accuracy(
    lists: np.ndarray, popularity: np.ndarray, n_users: int, ks: Sequence[int]
) -> dict[str, float]:
    """Metrics of BEYOND at every K: {"coverage@10": ..., ...}; docs/metrics.md has definitions and sources.

    lists: [n, K_max] item ids, best first; popularity: [I] TRAIN interactions of each item; n_users: users
    with TRAIN interactions, of which a share popularity / n_users has the item.
    """
    surprise = np.log2(n_users / np.maximum(popularity, 1))
    is_tail = item_bins(popularity) >= ITEM_BINS.index("tail")
    metrics: dict[str, float] = {}
    for k in ks:
        top = lists[:, :k]
        count = np.bincount(top.ravel(), minlength=len(popularity))
        values = (
            np.mean(count > 0),
            surprise[top].mean(),
            popularity[top].mean(),
            is_tail[top].mean(),
            gini(count),
        )
        metrics |= {f"{name}@{k}": float(value) for name, value in zip(BEYOND, values, strict=True)}
    return metrics


def gini(count: np.ndarray) -> float:
    """Gini index of counts [n], not all 0: 0 if all are equal, 1 - 1/n if one has everything."""
    rank = np.arange(1, len(count) + 1)
    return float(((2 * rank - len(count) - 1) * np.sort(count)).sum() / (len(count) * count.sum()))
