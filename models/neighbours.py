"""The neighbourhood term: item-to-item weights from TRAIN co-purchases and content, for any model's scores.

    score(u, i) += lambda * sum over j in train(u) of W[j, i]
    C = offdiag(D_i^-b X' D_u^-1/2 X)                       items bought together
    B = A + A'                                              items with similar content
    W = C + alpha B + gamma (C o B) + sigma (M C where C + B is not 0),    M = B with rows that sum to 1

X is the TRAIN matrix [U, I] of zeros and ones, D_u and D_i are its degrees, A is the weighted mean of the
modalities' kNN graphs with cosine similarities as values, and o is the product entry by entry. M C lets an
item speak with the co-purchases of the items that resemble it. A factor model beside an item-neighbourhood
model is an old idea (Koren 2008): the factors have a low rank and W a high one, so that they find different
items. The popularity of the target i is not normalised, which would halve the accuracy of the term.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import scipy.sparse as sp
import torch

from dataloader import Dataset
from layers.cosine import cosines, nearest_rows
from world import Config


def neighbour_weights(config: Config, dataset: Dataset) -> sp.csr_matrix:
    """W of the config and the dataset: [I, I] float32, zero diagonal. Without features, co-purchases only."""
    data = dataset.interactions
    weights = co_purchases(data.train, data.n_users, data.n_items, config.neighbour_power)
    if uses_content(config) and dataset.neighbours:
        shares = graph_shares(dataset.neighbours, config.item_graph_image)
        content = cosine_graph(dataset.neighbours, dataset.features, shares)
        weights = with_content(weights, (content + content.T).tocsr(), config)
    weights = weights.astype(np.float32).tocsr()
    return keep_largest(weights, config.neighbour_keep) if config.neighbour_keep else weights


def uses_content(config: Config) -> bool:
    """Whether W has parts that the content graphs are needed for."""
    return bool(config.neighbour_content or config.neighbour_agreement or config.neighbour_smoothing)


def with_content(together: sp.csr_matrix, content: sp.csr_matrix, config: Config) -> sp.csr_matrix:
    """W of the formula above, of C = together and B = content: [I, I]."""
    weights = (
        together
        + config.neighbour_content * content
        + config.neighbour_agreement * together.multiply(content)
    )
    if config.neighbour_smoothing:
        sums = np.asarray(abs(content).sum(1)).ravel()
        mean = sp.diags(1 / np.where(sums > 0, sums, 1)) @ content
        weights = weights + config.neighbour_smoothing * product_at(
            mean.tocsr(), together, together + content
        )
    return weights.tocsr()


def product_at(
    left: sp.csr_matrix, right: sp.csr_matrix, pattern: sp.csr_matrix, block: int = 1024
) -> sp.csr_matrix:
    """Entries of the product left @ right where the pattern has entries; all sparse [n, n].

    The product as a whole may have twenty times the entries, so it is made in blocks of rows.
    """
    ones = sp.csr_matrix((np.ones(pattern.nnz, right.dtype), pattern.indices, pattern.indptr), pattern.shape)
    blocks = [
        (left[start : start + block] @ right).multiply(ones[start : start + block])
        for start in range(0, left.shape[0], block)
    ]
    return sp.vstack(blocks, format="csr")


def keep_largest(matrix: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """The k entries of largest magnitude in each row of a sparse matrix; of equal ones, the lower columns."""
    matrix.sort_indices()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -np.abs(matrix.data), rows))
    rank = np.arange(matrix.nnz) - matrix.indptr[rows[order]]
    kept = np.sort(order[rank < k])
    pointers = np.concatenate([[0], np.cumsum(np.minimum(np.diff(matrix.indptr), k))])
    return sp.csr_matrix((matrix.data[kept], matrix.indices[kept], pointers), matrix.shape)


def co_purchases(train: np.ndarray, n_users: int, n_items: int, power: float) -> sp.csr_matrix:
    """offdiag(D_i^-power X' D_u^-1/2 X) of the (user, item) pairs [n, 2]: [I, I]."""
    user, item = train.T
    matrix = sp.csr_matrix((np.ones(len(train), np.float32), (user, item)), (n_users, n_items))
    degree_u, degree_i = (np.maximum(matrix.sum(axis).A1, 1) for axis in (1, 0))
    together = (matrix.T @ sp.diags((degree_u**-0.5).astype(np.float32)) @ matrix).tocsr()
    together.setdiag(0)
    together.eliminate_zeros()
    return (sp.diags((degree_i**-power).astype(np.float32)) @ together).tocsr()


def cosine_graph(
    neighbours: Mapping[str, np.ndarray],
    features: Mapping[str, torch.Tensor],
    shares: Mapping[str, float],
) -> sp.csr_matrix:
    """Sum over modalities of share * the cosines of items and their neighbours: [I, I], zero diagonal.

    neighbours: {m: [I, k]}, where an item's own id stands for "no neighbour"; features: {m: [I, d_m]}.
    """
    total: sp.csr_matrix | None = None
    for m, table in neighbours.items():
        n, k = table.shape
        near = cosines(features[m], features[m], torch.from_numpy(table.astype(np.int64))).cpu().numpy()
        source, target = np.repeat(np.arange(n), k), table.ravel()
        kept = source != target
        values = (shares[m] * near.ravel()[kept], (source[kept], target[kept]))
        graph = sp.csr_matrix(values, (n, n))
        total = graph if total is None else total + graph
    assert total is not None  # there is a modality
    return total


def new_item_weights(
    config: Config,
    features: Mapping[str, torch.Tensor],
    new: Mapping[str, torch.Tensor],
    allowed: Mapping[str, torch.Tensor],
) -> sp.csr_matrix:
    """The weights W[j, i] of known items j for items i that are known by their features alone: [I, n].

    Nothing was bought together with them, and the known items' neighbours are fixed, so alpha A[i, j] is all
    that is left of W. features: {m: [I, d_m]} of the known items; new: {m: [n, d_m]}; allowed: {m: [I] bool},
    the known items that may be their neighbours.
    """
    shares = graph_shares(new, config.item_graph_image)
    total = sp.csr_matrix(
        (len(next(iter(features.values()))), len(next(iter(new.values())))), dtype=np.float32
    )
    for m, share in shares.items():
        nearest = nearest_rows(new[m], features[m], config.item_knn_k, allowed[m])  # [n, k]
        values = config.neighbour_content * share * cosines(new[m], features[m], nearest)
        column = np.repeat(np.arange(len(nearest)), nearest.shape[1])
        entries = values.flatten().cpu().numpy(), (nearest.flatten().cpu().numpy(), column)
        total = total + sp.csr_matrix(entries, total.shape, dtype=np.float32)
    return total


def graph_shares(modalities: Collection[str], image: float) -> dict[str, float]:
    """{modality: weight}: `image` for the image graph if there are others, which share the rest equally."""
    if "image" not in modalities or len(modalities) == 1:
        return {m: 1 / len(modalities) for m in modalities}
    return {m: image if m == "image" else (1 - image) / (len(modalities) - 1) for m in modalities}
