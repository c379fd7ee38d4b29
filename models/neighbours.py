"""The neighbourhood term: item-to-item weights from TRAIN co-purchases and content, for any model's scores.

    score(u, i) += lambda * sum over j in train(u) of W[j, i]
    W = offdiag(D_i^-b X' D_u^-1/2 X) + alpha (A + A')

X is the TRAIN matrix [U, I] of zeros and ones, D_u and D_i are its degrees, A is the weighted mean of the
modalities' kNN graphs with cosine similarities as values. A factor model beside an item-neighbourhood model
is an old idea (Koren 2008): the factors have a low rank and W a high one, so that they find different items.
The popularity of the target i is not normalised, which would halve the accuracy of the term.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

import numpy as np
import scipy.sparse as sp
import torch
from torch.nn import functional as F

from dataloader import Dataset
from world import Config


def neighbour_weights(config: Config, dataset: Dataset) -> sp.csr_matrix:
    """W of the config and the dataset: [I, I] float32, zero diagonal. Without features, co-purchases only."""
    data = dataset.interactions
    weights = co_purchases(data.train, data.n_users, data.n_items, config.neighbour_power)
    if config.neighbour_content and dataset.neighbours:
        shares = graph_shares(dataset.neighbours, config.item_graph_image)
        content = cosine_graph(dataset.neighbours, dataset.features, shares)
        weights = weights + config.neighbour_content * (content + content.T)
    return weights.astype(np.float32).tocsr()


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
    block: int = 256,
) -> sp.csr_matrix:
    """Sum over modalities of share * the cosines of items and their neighbours: [I, I], zero diagonal.

    neighbours: {m: [I, k]}, where an item's own id stands for "no neighbour"; features: {m: [I, d_m]}.
    """
    total: sp.csr_matrix | None = None
    for m, table in neighbours.items():
        n, k = table.shape
        cosines = np.empty((n, k), np.float32)
        for start in range(0, n, block):
            rows = slice(start, start + block)
            ids = torch.from_numpy(table[rows].astype(np.int64)).to(features[m].device)
            own = F.normalize(features[m][rows].float(), dim=1)
            others = F.normalize(features[m][ids.flatten()].float(), dim=1).view(*ids.shape, -1)
            cosines[rows] = torch.einsum("nd,nkd->nk", own, others).cpu().numpy()
        source, target = np.repeat(np.arange(n), k), table.ravel()
        kept = source != target
        values = (shares[m] * cosines.ravel()[kept], (source[kept], target[kept]))
        graph = sp.csr_matrix(values, (n, n))
        total = graph if total is None else total + graph
    assert total is not None  # there is a modality
    return total


def graph_shares(modalities: Collection[str], image: float) -> dict[str, float]:
    """{modality: weight}: `image` for the image graph if there are others, which share the rest equally."""
    if "image" not in modalities or len(modalities) == 1:
        return {m: 1 / len(modalities) for m in modalities}
    return {m: image if m == "image" else (1 - image) / (len(modalities) - 1) for m in modalities}
