"""What is near to each item, how well its modalities agree, and its place in a map of all items."""

from __future__ import annotations

import typing

import numpy as np
import scipy.sparse as sp
import torch

from data.graphs import nearest_neighbours
from layers.cosine import cosines, unit_rows

Array = np.ndarray


class Near(typing.NamedTuple):
    """The nearest items of each item and how near they are: cosines, or counts of users."""

    items: Array  # [I, k] int64, best first; the item itself where there is no other
    values: Array  # [I, k]: cosines are float32, counts int64


def near_by_cosine(vectors: Array, k: int, device: torch.device) -> Near:
    """The k items of the largest cosine similarity to each, found on the device; vectors: [I, d] float32."""
    items = nearest_neighbours(vectors, min(k, len(vectors) - 1), device)
    table = torch.from_numpy(vectors).to(device)
    return Near(items, cosines(table, table, torch.from_numpy(items)).cpu().numpy())


def near_by_users(history: sp.csr_matrix, k: int) -> Near:
    """The k items that most users of an item have too, of equal counts the rarer; history: [U, I]."""
    ones = sp.csr_matrix((np.ones(history.nnz), history.indices, history.indptr), history.shape)
    together, count = (ones.T @ ones).tocsr(), np.asarray(ones.sum(0)).ravel()
    n = together.shape[0]
    k = min(k, n - 1)
    items, values = np.tile(np.arange(n)[:, None], (1, k)), np.zeros((n, k), np.int64)
    for i in range(n):
        entries = slice(*together.indptr[i : i + 2])
        others, counts = together.indices[entries], together.data[entries]
        order = np.lexsort((others, count[others], -counts))
        order = order[others[order] != i][:k]
        items[i, : len(order)], values[i, : len(order)] = others[order], counts[order]
    return Near(items, values)


def agreement(first: Near, second: Near, features: Array, device: torch.device) -> Array:
    """How far the neighbours of each item by one modality are near by a second: [I].

    first, second: the nearest items by each; features: those of the second [I, d] float32. The mean cosine by
    the second of the neighbours by the first, on a scale where 0 is that of a random item and 1 that of the
    neighbours by the second; cut off at 0 and 1. NaN for an item without features of one of the two, and for
    all where the neighbours by the second are all other items, which makes 0 and 1 the same.
    """
    table = torch.from_numpy(features).to(device)
    known = (features != 0).any(1)
    others = int(known.sum()) - 1
    if others <= second.items.shape[1]:
        return np.full(len(features), np.nan)
    by_second = cosines(table, table, torch.from_numpy(first.items)).cpu().numpy()
    found = mean_of_others(by_second, first.items, known)
    best = mean_of_others(second.values, second.items, known)
    unit = unit_rows(table)
    chance = ((unit @ unit.sum(0)).cpu().numpy() - known) / others  # without the item itself
    return np.clip((found - chance) / np.maximum(best - chance, 1e-6), 0, 1)


def mean_of_others(values: Array, items: Array, known: Array) -> Array:
    """Mean of the values [I, k] of those items [I, k] that are not the row itself and known [I]; else NaN."""
    counts = known[items] & (items != np.arange(len(items))[:, None])
    total, n = (values * counts).sum(1), counts.sum(1)
    return np.divide(total, n, out=np.full(len(items), np.nan), where=n > 0)


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
