"""What is near to each item, how well its modalities agree, and its place in a map of all items."""

from __future__ import annotations

import typing

import numpy as np
import scipy.sparse as sp
import torch

from data.graphs import nearest_neighbours

Array = np.ndarray

AGREEMENT_NEIGHBOURS = 10


class Near(typing.NamedTuple):
    """The nearest items of each item and how near they are: cosines, or counts of users."""

    items: Array  # [I, k] int64, best first; the item itself where there is no other
    values: Array  # [I, k]


def near_by_cosine(vectors: Array, k: int) -> Near:
    """The k items of the largest cosine similarity to each; vectors: [I, d]."""
    unit = unit_rows(vectors)
    items = nearest_neighbours(unit, min(k, len(unit) - 1), torch.device("cpu"))
    return Near(items, np.einsum("nd,nkd->nk", unit, unit[items]))


def near_by_users(history: sp.csr_matrix, k: int) -> Near:
    """The k items that most users of an item have too, of equal counts the rarer; history: [U, I]."""
    ones = sp.csr_matrix((np.ones(history.nnz), history.indices, history.indptr), history.shape)
    together, count = (ones.T @ ones).tocsr(), np.asarray(ones.sum(0)).ravel()
    n = together.shape[0]
    k = min(k, n - 1)
    items, values = np.tile(np.arange(n)[:, None], (1, k)), np.zeros((n, k))
    for i in range(n):
        entries = slice(*together.indptr[i : i + 2])
        others, counts = together.indices[entries], together.data[entries]
        order = np.lexsort((others, count[others], -counts))
        order = order[others[order] != i][:k]
        items[i, : len(order)], values[i, : len(order)] = others[order], counts[order]
    return Near(items, values)


def agreement(features: dict[str, Array]) -> Array | None:
    """How far an item's neighbours by the first modality are near by the second: [I]; None for one modality.

    The mean cosine by the second modality of the 10 nearest by the first, on a scale where 0 is that of a
    random item and 1 that of the 10 nearest by the second; cut off at 0 and 1.
    """
    if len(features) < 2:
        return None
    first, second = (unit_rows(matrix) for matrix in list(features.values())[:2])
    k = min(AGREEMENT_NEIGHBOURS, len(first) - 1)
    others = nearest_neighbours(first, k, torch.device("cpu"))
    cosine = np.einsum("nd,nkd->nk", second, second[others]).mean(1)
    best = near_by_cosine(second, k).values.mean(1)
    chance = second @ second.mean(0)
    return np.clip((cosine - chance) / np.maximum(best - chance, 1e-6), 0, 1)


def item_map(vectors: Array, method: str) -> Array:
    """Places [I, 2] of items by their vectors [I, d]: the two principal components, or UMAP."""
    if method == "umap":
        import umap  # optional; explore.check_flags has looked for it

        return umap.UMAP(random_state=0).fit_transform(vectors)
    centred = vectors - vectors.mean(0)
    _, _, axes = np.linalg.svd(centred.T @ centred)
    places = centred @ axes[:2].T
    return np.pad(places, ((0, 0), (0, 2 - places.shape[1])))


def on_grid(places: Array) -> Array:
    """Places [I, 2] as whole numbers from 0 to 65535; the outermost 0.5 % on each side lie on the border."""
    low, high = np.quantile(places, (0.005, 0.995), axis=0)
    return np.round(65535 * np.clip((places - low) / np.maximum(high - low, 1e-12), 0, 1))


def unit_rows(vectors: Array) -> Array:
    """Rows scaled to length 1, float32; rows of zeros stay."""
    length = np.linalg.norm(vectors, axis=1, keepdims=True)
    return (vectors / np.maximum(length, 1e-12)).astype(np.float32)
