"""Sparse matrices and their products, compared with dense algebra."""

import math

import numpy as np
import pytest
import scipy.sparse as sp
import torch
from model_helpers import CPU, randn

from layers.sparse import bipartite_adjacency, csr_product, csr_tensor, from_scipy
from utils import UserError


def test_csr_tensor_contains_the_given_entries():
    crow, col, values = torch.tensor([0, 2, 2, 3]), torch.tensor([0, 2, 1]), torch.tensor([1.0, 2.0, 3.0])
    assert csr_tensor(crow, col, values, (3, 3)).to_dense().tolist() == [[1, 0, 2], [0, 0, 0], [0, 3, 0]]


def test_from_scipy_keeps_type_and_values_and_sorts_columns():
    dense = np.array([[0, 2.5, 1], [0, 0, 0], [3, 0, -1]])
    # Entries of a row in descending order of their columns.
    matrix = sp.csr_matrix(
        (np.array([1, 2.5, -1, 3]), np.array([2, 1, 2, 0]), np.array([0, 2, 2, 4])), (3, 3)
    )
    for dtype in (np.float32, np.float64):
        tensor = from_scipy(matrix.astype(dtype), CPU)
        assert tensor.layout == torch.sparse_csr
        assert tensor.crow_indices().dtype == tensor.col_indices().dtype == torch.int32
        assert tensor.col_indices().tolist() == [1, 2, 0, 2]
        np.testing.assert_array_equal(tensor.to_dense().numpy(), dense.astype(dtype), strict=True)


def test_csr_product_equals_a_dense_product_with_empty_rows():
    dense = torch.tensor([[0, 2.0, 0], [0, 0, 0], [1, 0, 3], [0, 0, 0]], dtype=torch.float64)
    matrix, x = dense.to_sparse_csr(), randn(3, 5)
    product = csr_product(matrix.crow_indices(), matrix.col_indices(), matrix.values(), x)
    torch.testing.assert_close(product, dense @ x)


@pytest.mark.parametrize("weighted", [False, True])
def test_bipartite_adjacency_equals_dense_numpy(weighted):
    rng = np.random.default_rng(0)
    hit = rng.random((9, 7)) < 0.4
    # A user and an item without edges.
    hit[-1], hit[:, -1] = False, False
    pairs = np.argwhere(hit)
    weight = rng.random(len(pairs)) if weighted else 1.0
    expected = np.zeros((16, 16))
    for (u, i), w in zip(pairs, np.broadcast_to(weight, len(pairs))):
        expected[u, 9 + i] = expected[9 + i, u] = w / math.sqrt(hit[u].sum() * hit[:, i].sum())
    matrix = bipartite_adjacency(pairs, 9, 7, CPU, weight)
    assert matrix.layout == torch.sparse_csr and matrix.dtype == torch.float32
    assert matrix._nnz() == 2 * len(pairs)
    np.testing.assert_allclose(matrix.to_dense().numpy(), expected, rtol=1e-6)


def test_more_entries_than_int32_can_count_are_refused():
    class Huge:
        nnz, shape = 2**31, (10, 10)

        def tocsr(self):
            return self

    with pytest.raises(UserError, match="2,147,483,648 entries: 2,147,483,647 are the limit"):
        from_scipy(Huge(), CPU)
