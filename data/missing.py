"""Items that lack a modality (--missing), and what takes the place of their features (--missing_fill).

    absent = missing_items(0.3, 7050, seed=2025, modality="text")    # [I] bool
    fill_neighbours(features, absent, train, n_users)                # in place

Everything is made of features of the items that have them, and of the TRAIN split.
"""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp

from world import MODALITIES


def missing_items(share: float, n_items: int, seed: int, modality: str) -> np.ndarray:
    """Which items lack a modality, round(share * n_items) of them: [I] bool.

    The draw depends on the seed and the modality alone, and those of a smaller share are among those of a
    larger one.
    """
    order = np.random.default_rng((seed, MODALITIES.index(modality))).permutation(n_items)
    absent = np.zeros(n_items, bool)
    absent[order[: round(share * n_items)]] = True
    return absent


def fill_mean(features: np.ndarray, absent: np.ndarray) -> None:
    """Give the absent rows [I] bool of features [I, dim] the mean of the others, in place."""
    if not absent.all():
        features[absent] = features[~absent].mean(0)


def fill_neighbours(features: np.ndarray, absent: np.ndarray, train: np.ndarray, n_users: int) -> None:
    """Give the absent rows the mean features of the items that the same users have in TRAIN, in place.

    features: [I, dim]; absent: [I] bool; train: [n, 2] pairs of (user, item). An item counts once for each
    user that it shares with the absent one, and absent items do not count. Without any other the row is zero.
    """
    user, item = train.T
    matrix = sp.csr_matrix((np.ones(len(train), np.float32), (user, item)), (n_users, len(features)))
    together = (matrix[:, absent].T @ matrix[:, ~absent]).tocsr()
    total = np.maximum(np.asarray(together.sum(1)), 1)
    features[absent] = (together @ features[~absent]) / total
