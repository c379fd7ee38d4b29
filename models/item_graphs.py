"""Item graphs of cosine similarities, and the user-item graph without its symmetric half."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from layers.sparse import csr_tensor, from_scipy


def similarity_graph(features: np.ndarray, neighbours: np.ndarray) -> sp.csr_matrix:
    """D^-1/2 S D^-1/2 [I, I] float32: S has the cosines of each item with itself and its nearest items.

    features: [I, d_m]; neighbours: [I, k] ids of the nearest others, where an item's own id stands for "no
    neighbour". Negative cosines count as 0, D are the sums of the rows of S, and S need not be symmetric.
    """
    n = len(features)
    own = np.arange(n)[:, None]
    columns = np.concatenate([own, neighbours], 1)
    values = cosines(features, columns).clip(min=0)
    values[:, 1:][neighbours == own] = 0
    degree = values.sum(1)
    scale = np.divide(1, np.sqrt(degree), out=np.zeros(n), where=degree > 0)
    values *= scale[:, None] * scale[columns]
    rows = np.repeat(np.arange(n), columns.shape[1])
    graph = sp.csr_matrix((values.ravel().astype(np.float32), (rows, columns.ravel())), (n, n))
    graph.eliminate_zeros()
    return graph


def cosines(features: np.ndarray, columns: np.ndarray, block: int = 256) -> np.ndarray:
    """Cosine of each row of features [n, d_m] with those of columns [n, c]: [n, c] float64; 0 for zeros."""
    length = np.sqrt(np.einsum("id,id->i", features, features, dtype=np.float64))
    length[length == 0] = 1
    values = np.empty(columns.shape)
    for start in range(0, len(features), block):  # the gathered rows of all items may not fit in memory
        rows = slice(start, start + block)
        x, others = features[rows].astype(np.float64), features[columns[rows]].astype(np.float64)
        values[rows] = np.einsum("id,icd->ic", x, others) / (length[rows, None] * length[columns[rows]])
    return values


def with_transpose(graph: sp.csr_matrix, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    """A graph and its transpose as sparse CSR tensors: what layers.kernels.sparse_product takes."""
    return from_scipy(graph, device), from_scipy(graph.T, device)


def bipartite_blocks(adjacency: torch.Tensor, n_users: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The blocks R [U, I] and R' [I, U] of the user-item graph [[0, R], [R', 0]], sparse CSR."""
    crow, col, values = adjacency.crow_indices(), adjacency.col_indices(), adjacency.values()
    n_items, edges = len(crow) - 1 - n_users, len(values) // 2
    users = csr_tensor(crow[: n_users + 1], col[:edges] - n_users, values[:edges], (n_users, n_items))
    items = csr_tensor(crow[n_users:] - edges, col[edges:], values[edges:], (n_items, n_users))
    return users, items
