"""Constant sparse matrices: construction, products, and the normalised user-item graph."""

import warnings

import numpy as np
import scipy.sparse as sp
import torch
from torch.nn import functional as F

from layers.device import on_cpu
from utils import UserError

# torch announces once a process that CSR tensors are in beta.
warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta state")


def csr_tensor(
    crow: torch.Tensor, col: torch.Tensor, values: torch.Tensor, size: tuple[int, ...]
) -> torch.Tensor:
    """Sparse CSR tensor from arrays that are known to be valid: skips torch's checks."""
    return torch.sparse_csr_tensor(crow, col, values, size, check_invariants=False)


def from_scipy(matrix: sp.sparray | sp.spmatrix, device: torch.device) -> torch.Tensor:
    """Sparse CSR tensor of a scipy matrix, int32 indices, columns of each row in ascending order.

    Raises UserError for more entries than int32 can count.
    """
    matrix = matrix.tocsr()
    if max(matrix.nnz, *matrix.shape) >= 2**31:
        raise UserError(
            f"a sparse matrix of {matrix.nnz:,} entries: {2**31 - 1:,} are the limit; lower --item_knn_k or "
            "--neighbour_keep, or take fewer interactions"
        )
    matrix.sort_indices()
    crow, col = (torch.from_numpy(part.astype(np.int32)) for part in (matrix.indptr, matrix.indices))
    return csr_tensor(crow, col, torch.from_numpy(matrix.data), matrix.shape).to(device)


def to_scipy(matrix: torch.Tensor) -> sp.csr_matrix:
    """The scipy matrix of a sparse CSR tensor, of the same type; it may share the tensor's memory."""
    parts = matrix.values(), matrix.col_indices(), matrix.crow_indices()
    return sp.csr_matrix(tuple(part.cpu().numpy() for part in parts), tuple(matrix.shape))


def csr_product(
    crow: torch.Tensor, col: torch.Tensor, values: torch.Tensor, dense: torch.Tensor
) -> torch.Tensor:
    """Product of a sparse CSR matrix [n, m] and a dense one [m, d] -> [n, d], without gradients.

    On a CPU it is computed as a weighted embedding bag, which takes at most a third of the time of torch's
    own CSR product. Entries of a row are added in their stored order.
    """
    if on_cpu(dense):
        return F.embedding_bag(
            col, dense, crow, mode="sum", per_sample_weights=values, include_last_offset=True
        )
    return csr_tensor(crow, col, values, (len(crow) - 1, len(dense))) @ dense


def bipartite_adjacency(
    pairs: np.ndarray, n_users: int, n_items: int, device: torch.device, weight: float | np.ndarray = 1.0
) -> torch.Tensor:
    """Symmetrically normalised user-item graph of (user, item) pairs [n, 2] (eq. 4-5).

    Returns a sparse CSR tensor [U + I, U + I]; the entry of user u and item i is weight / sqrt(deg u deg i),
    where degrees count edges.
    """
    user, item = pairs.T
    n = n_users + n_items
    degree_u, degree_i = np.bincount(user, minlength=n_users), np.bincount(item, minlength=n_items)
    values = (weight / np.sqrt(degree_u[user] * degree_i[item])).astype(np.float32)
    rows, cols = np.concatenate([user, item + n_users]), np.concatenate([item + n_users, user])
    return from_scipy(sp.csr_matrix((np.concatenate([values, values]), (rows, cols)), (n, n)), device)
