"""Quality of the items' features: whether the neighbours of an item by a modality share its TRAIN users.

lifts = neighbour_lifts(dataset)      # {"text": [I] float32, ...}

The statistic is that of `python -m data.check` (data/row_order.py), item by item and of TRAIN alone.
docs/report.md says what it can and cannot tell.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from data.row_order import N_NEIGHBOURS, shared_history, unit_history
from dataloader import Dataset


def neighbour_lifts(dataset: Dataset) -> dict[str, np.ndarray]:
    """Lift of every item in the modalities that the model has a kNN graph of: {modality: [I] float32}.

    A modality that some items lack by --missing has none, nor has a graph of fewer than N_NEIGHBOURS columns:
    reports use the lifts of one run for others, so they must not depend on settings of the run.
    """
    data = dataset.interactions
    return {
        m: neighbour_lift(table[:, :N_NEIGHBOURS], data.train, data.n_users).astype(np.float32)
        for m, table in dataset.neighbours.items()
        if m not in dataset.missing and table.shape[1] >= N_NEIGHBOURS
    }


def neighbour_lift(neighbours: np.ndarray, train: np.ndarray, n_users: int) -> np.ndarray:
    """Mean cosine of an item's users and its neighbours' users, relative to that with all other items: [I].

    neighbours: [I, k] item ids, where an item's own id stands for "no neighbour"; train: (user, item) pairs
    [n, 2]. Only items with interactions count. NaN for an item without such neighbours, and for one that
    shares users with no item at all.
    """
    n_items, (users, items) = len(neighbours), train.T
    history = unit_history(sp.csr_matrix((np.ones(len(train)), (items, users)), (n_items, n_users)))
    active = np.diff(history.indptr) > 0
    counted = (neighbours != np.arange(n_items)[:, None]) & active[neighbours]
    pairs = counted.nonzero()[0], neighbours[counted]
    graph = sp.csr_matrix((np.ones(len(pairs[0])), pairs), (n_items, n_items))
    near = shared_history(graph @ history, history)
    # The cosine of an item with itself, 1, is no part of the sum; what is left of rounding is no cosine.
    others = history @ np.asarray(history.sum(axis=0)).ravel() - 1
    others[others < 1e-9] = np.nan
    with np.errstate(invalid="ignore"):
        return near / counted.sum(axis=1) / (others / (active.sum() - 1))
