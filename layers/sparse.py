"""Sparse products and LightGCN's propagation."""

import warnings

import numpy as np
import scipy.sparse as sp
import torch
from torch.nn import functional as F


def csr_product(crow, col, values, dense):
    """Sparse CSR [n, m] times dense [m, d] -> [n, d], rows summed in the order of their entries. Knows no gradients.

    On a CPU this is a weighted embedding bag: its kernel takes a third of the time of torch's CSR product or less.
    """
    if dense.device.type == "cpu":
        return F.embedding_bag(
            col, dense, crow, mode="sum", per_sample_weights=values, include_last_offset=True
        )
    return csr_tensor(crow, col, values, (len(crow) - 1, len(dense))) @ dense


class _Propagation(torch.autograd.Function):
    @staticmethod
    def forward(ctx, matrix, layers, rows, *parts):
        ctx.matrix, ctx.layers, ctx.rows, ctx.sizes = matrix, layers, rows, [len(part) for part in parts]
        means = mean_of_powers(matrix, parts, layers, rows)
        return (
            means if rows is None else (*means, *(part.index_select(0, at) for part, at in zip(parts, rows)))
        )

    @staticmethod
    def backward(ctx, *grads):
        if ctx.rows is None:
            return None, None, None, *mean_of_powers(ctx.matrix, grads, ctx.layers)
        x = grads[0].new_zeros(sum(ctx.sizes), grads[0].shape[1])
        for part, at, grad in zip(x.split(ctx.sizes), ctx.rows, grads):
            part.index_add_(0, at, grad)
        (out,) = mean_of_powers(ctx.matrix, (x,), ctx.layers)
        out = out.split(ctx.sizes)
        for part, at, grad in zip(out, ctx.rows, grads[len(ctx.rows) :]):
            part.index_add_(0, at, grad)
        return None, None, None, *out


def mean_of_powers(matrix, parts, layers, rows=None, width=32):
    """(x + A x + ... + A^L x) / (L + 1) for a sparse CSR A [n, n] and a dense x [n, d], as x + A (x + A (x + ...)).

    parts: x as matrices of some of its rows each, one after the other; the result is a tuple of such.
    rows: for each part, which of its rows are wanted; None: all.
    width: on a CPU, columns go through all layers in blocks of so many: the rows that the next layer gathers are then more
    likely to be in the cache still. At d = 800 this takes half of the time or less.
    """
    crow, col, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    sizes, d = [len(part) for part in parts], parts[0].shape[1]
    out = tuple(parts[0].new_empty(n, d) for n in (sizes if rows is None else map(len, rows)))
    width = width if matrix.device.type == "cpu" else d
    for start in range(0, d, width):
        columns = slice(start, start + width)
        x = torch.cat([part[:, columns] for part in parts]).div_(layers + 1)
        total = x
        for _ in range(layers):
            total = csr_product(crow, col, values, total).add_(x)
        found = total.split(sizes)
        if rows is not None:
            found = [part.index_select(0, at) for part, at in zip(found, rows)]
        for target, part in zip(out, found):
            target[:, columns] = part
    return out


def propagate(matrix, layers, *parts):
    """mean_of_powers with a gradient, for a symmetric constant matrix: its transpose is itself, so backward is the same."""
    return _Propagation.apply(matrix, layers, None, *parts)


def propagate_rows(matrix, layers, rows, *parts):
    """Some rows of propagate's result, and the same rows of x: (mean of each part..., x of each part...), [len(rows[i]), d].

    What a training step takes: no gradient of all rows is made on the way to A. rows: [r] int64 for each part.
    """
    return _Propagation.apply(matrix, layers, rows, *parts)


def csr_tensor(crow, col, values, size):
    """A torch CSR matrix from arrays that are known to be well formed, without the checks and beta warnings."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Sparse")
        return torch.sparse_csr_tensor(crow, col, values, size, check_invariants=False)


def bipartite_adjacency(pairs, n_users, n_items, device, weight=1.0):
    """Normalised graph of these (user, item) pairs [n, 2] alone: sparse CSR [U + I, U + I] of weight / sqrt(deg u deg i)."""
    user, item = pairs.T
    n = n_users + n_items
    degree_u, degree_i = np.bincount(user, minlength=n_users), np.bincount(item, minlength=n_items)
    weight = (weight / np.sqrt(degree_u[user] * degree_i[item])).astype(np.float32)
    rows, cols = np.concatenate([user, item + n_users]), np.concatenate([item + n_users, user])
    return to_csr_tensor(sp.csr_matrix((np.concatenate([weight, weight]), (rows, cols)), (n, n)), device)


def to_csr_tensor(matrix, device):
    """scipy CSR -> torch CSR on device, its columns in order."""
    matrix.sort_indices()
    return csr_tensor(
        torch.from_numpy(matrix.indptr.astype(np.int32)),
        torch.from_numpy(matrix.indices.astype(np.int32)),
        torch.from_numpy(matrix.data),
        matrix.shape,
    ).to(device)
