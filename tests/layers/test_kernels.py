"""The autograd functions of layers/kernels.py, compared with plain references and finite differences."""

import numpy as np
import pytest
import torch
from model_helpers import randn, random_neighbours
from torch.nn import functional as F

import layers.kernels
from layers.attention import AttentionGraph
from layers.kernels import (
    attention,
    attention_reference,
    column_major,
    info_nce_reference,
    l1_cost,
    l1_cost_reference,
    mean_of_layers,
    product,
    product_reference,
    propagate,
    propagation_reference,
    sparse_product,
    unit_info_nce,
)


def assert_same_gradients(outputs, expected, inputs, rtol=1e-9, atol=1e-11):
    """The outputs are equal, and so are the gradients of a random weighted sum of them."""
    torch.testing.assert_close(outputs, expected, rtol=rtol, atol=atol)
    probes = [randn(*out.shape, seed=50 + i, dtype=out.dtype) for i, out in enumerate(outputs)]
    gradients = [
        torch.autograd.grad(sum((p * out).sum() for p, out in zip(probes, outs)), inputs, retain_graph=True)
        for outs in (outputs, expected)
    ]
    assert any(gradient.abs().max() > 0 for gradient in gradients[1])
    torch.testing.assert_close(*gradients, rtol=rtol, atol=atol)


def random_symmetric(n, seed=0):
    """A symmetric matrix [n, n] of which about half of the entries are not zero, dense and as sparse CSR."""
    rng = np.random.default_rng(seed)
    upper = np.triu(rng.standard_normal((n, n)) * (rng.random((n, n)) < 0.3))
    dense = torch.tensor(upper + np.triu(upper, 1).T)
    return dense, dense.to_sparse_csr()


# ---------------------------------------------------------------- matrix products in a narrower type


# The gradient of a is computed in parts of 1,024 columns.
@pytest.mark.parametrize("width", [3, 1024, 2500])
def test_product_equals_its_reference(width):
    a, b = randn(6, width, seed=1, grad=True), randn(width, 4, seed=2, grad=True)
    assert_same_gradients([product(a, b)], [product_reference(a, b)], (a, b))


def test_product_gradcheck():
    a, b = randn(4, 3, seed=1, grad=True), randn(3, 5, seed=2, grad=True)
    assert torch.autograd.gradcheck(product, (a, b))


def test_product_rounds_its_operands_and_keeps_the_types_of_gradients():
    a, b, probe = (
        randn(*shape, seed=s, dtype=torch.float32) for s, shape in enumerate([(6, 5), (5, 4), (6, 4)])
    )
    a.requires_grad_(), b.requires_grad_()

    def rounded(x):
        return x.detach().bfloat16().double()

    out = product(a, b, torch.bfloat16)
    (out * probe).sum().backward()
    assert out.dtype == a.grad.dtype == b.grad.dtype == torch.float32
    # Results are rounded to bfloat16 too, which has 8 bits.
    close = {"rtol": 2**-7, "atol": 2**-7}
    torch.testing.assert_close(out.double(), rounded(a) @ rounded(b), **close)
    torch.testing.assert_close(a.grad.double(), rounded(probe) @ rounded(b).T, **close)
    torch.testing.assert_close(b.grad.double(), rounded(a).T @ rounded(probe), **close)


def test_product_with_constant_features_has_a_gradient_for_the_weight_alone():
    a, b = randn(6, 5), randn(5, 4, grad=True)
    product(a, b).sum().backward()
    torch.testing.assert_close(b.grad, a.sum(0)[:, None].expand(5, 4))
    assert a.grad is None


@pytest.mark.parametrize("n, dim", [(1, 3), (16, 1), (1030, 5), (7, 1100)])
def test_column_major_features_are_equal_and_aligned(n, dim):
    features = randn(n, dim, dtype=torch.float32)
    columns = column_major(features)
    assert torch.equal(columns, features) and columns.stride() == (1, -(-n // 16) * 16)


# ---------------------------------------------------------------- LightGCN's propagation


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_the_reference_of_propagation_is_the_mean_of_matrix_powers(layers):
    (dense, _), x = random_symmetric(12), randn(12, 35)
    powers = [torch.linalg.matrix_power(dense, k) @ x for k in range(layers + 1)]
    torch.testing.assert_close(propagation_reference(dense, layers, x), sum(powers) / (layers + 1))


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("width", [1, 16, 32, 2**20])
@pytest.mark.parametrize("sizes", [[12], [7, 5], [1, 0, 11]])
def test_mean_of_layers_equals_its_reference_for_every_block_of_columns(layers, width, sizes):
    (dense, matrix), x = random_symmetric(12), randn(12, 35)
    parts = mean_of_layers(matrix, layers, x.split(sizes), width=width)
    assert [len(part) for part in parts] == sizes
    torch.testing.assert_close(torch.cat(parts), propagation_reference(dense, layers, x))


def test_mean_of_layers_of_some_rows():
    (dense, matrix), x = random_symmetric(12), randn(12, 35)
    first, second = mean_of_layers(matrix, 2, x.split([7, 5]), [torch.tensor([6, 0]), None])
    expected = propagation_reference(dense, 2, x)
    torch.testing.assert_close(first, expected[[6, 0]])
    torch.testing.assert_close(second, expected[7:])


@pytest.mark.parametrize("layers", [0, 1, 3])
@pytest.mark.parametrize("d", [3, 35, 70])
def test_propagation_equals_its_reference(layers, d):
    (dense, matrix), user, item = random_symmetric(12), randn(7, d, grad=True), randn(5, d, seed=1, grad=True)
    expected = propagation_reference(dense, layers, torch.cat([user, item])).split([7, 5])
    assert_same_gradients(propagate(matrix, layers, user, item), expected, (user, item))


@pytest.mark.parametrize("layers", [0, 2])
@pytest.mark.parametrize(
    "users, items",
    [([0, 3, 6], [4, 1, 1]), ([5, 5, 5], []), (range(7), range(5)), (None, [2, 0]), ([1, 2], None)],
)
def test_propagation_of_some_rows_equals_rows_of_the_reference(layers, users, items):
    (dense, matrix), user, item = (
        random_symmetric(12),
        randn(7, 35, grad=True),
        randn(5, 35, seed=1, grad=True),
    )
    users, items = (
        rows if rows is None else torch.tensor(list(rows), dtype=torch.int64) for rows in (users, items)
    )
    whole = propagation_reference(dense, layers, torch.cat([user, item])).split([7, 5])
    expected = [part if rows is None else part[rows] for part, rows in zip(whole, (users, items))]
    outputs = propagate(matrix, layers, user, item, users, items)
    torch.testing.assert_close(outputs, tuple(expected))
    probes = [randn(*part.shape, seed=8 + i) for i, part in enumerate(expected)]
    # A loss may ignore the second output.
    for used in (2, 1):
        gradients = [
            torch.autograd.grad(
                sum((p * part).sum() for p, part in zip(probes[:used], parts)),
                (user, item),
                retain_graph=True,
            )
            for parts in (outputs, expected)
        ]
        torch.testing.assert_close(*gradients)


@pytest.mark.parametrize("rows", [None, [2, 0]])
def test_propagation_gradcheck(rows):
    _, matrix = random_symmetric(7)
    rows = None if rows is None else torch.tensor(rows)
    inputs = randn(4, 3, grad=True), randn(3, 3, seed=1, grad=True)
    assert torch.autograd.gradcheck(lambda user, item: propagate(matrix, 2, user, item, rows, rows), inputs)


def test_propagation_accepts_a_gradient_that_is_not_contiguous():
    (dense, matrix), user, item = random_symmetric(6), randn(4, 4, grad=True), randn(2, 4, seed=1, grad=True)
    weights = randn(4, 6, seed=2)
    (torch.cat(propagate(matrix, 1, user, item)).T * weights).sum().backward()
    expected = propagation_reference(dense, 1, weights.T)
    torch.testing.assert_close(torch.cat([user.grad, item.grad]), expected)


def test_sparse_product_equals_a_dense_product_and_passes_gradcheck():
    dense = torch.where(randn(6, 4, seed=1) > 0.3, randn(6, 4, seed=2), 0)
    matrices = dense.to_sparse_csr(), dense.T.contiguous().to_sparse_csr()
    x = randn(4, 3, seed=3, grad=True)
    assert_same_gradients([sparse_product(*matrices, x)], [dense @ x], (x,))
    assert torch.autograd.gradcheck(lambda x: sparse_product(*matrices, x), (x,))


# ---------------------------------------------------------------- graph attention


def attention_case(heads, nodes=None, n=12, c=3, scale=1.0):
    """A graph, of some targets if nodes are given, and the inputs h, s_dst, s_src of attention over it."""
    graph = AttentionGraph.from_neighbours(random_neighbours(n, 3), heads)
    if nodes is not None:
        graph = graph.select_targets(torch.tensor(nodes))
    m = n if nodes is None else len(nodes)
    inputs = randn(heads * n, c, seed=1), scale * randn(heads * m, seed=2), scale * randn(heads * n, seed=3)
    return graph, [x.requires_grad_() for x in inputs]


@pytest.mark.parametrize("heads", [1, 3])
@pytest.mark.parametrize("nodes", [None, [4], [7, 0, 11, 3]])
# With scores beyond 60, the maximum is subtracted before exp. At 1000 the scores of whole targets are so far
# below those of others that exp of the difference is 0.
@pytest.mark.parametrize("scale", [1.0, 40.0, 1000.0])
def test_attention_equals_its_reference(heads, nodes, scale):
    graph, inputs = attention_case(heads, nodes, scale=scale)
    outputs = attention(*inputs, graph, 0.2)
    expected = attention_reference(*inputs, graph, 0.2)
    assert_same_gradients([outputs], [expected], inputs, rtol=1e-8, atol=1e-10)


@pytest.mark.parametrize("nodes", [None, [5, 2]])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_attention_gradcheck_with_the_same_mask_every_time(nodes, dropout):
    graph, inputs = attention_case(2, nodes, n=6, c=2)

    def forward(*inputs):
        torch.manual_seed(9)
        return attention(*inputs, graph, 0.2, dropout)

    assert torch.autograd.gradcheck(forward, inputs)


# ---------------------------------------------------------------- InfoNCE


# Below a temperature of 1 / 60 the maximum of the scores is subtracted.
@pytest.mark.parametrize("temperature", [0.01, 0.2])
@pytest.mark.parametrize("block", [1, 4, 480])
@pytest.mark.parametrize("target", [[3, 1, 0, 3, 2, 2], [0, 0, 0, 0, 0, 0]])
def test_info_nce_equals_its_reference(temperature, block, target):
    inputs = randn(6, 5, seed=1, grad=True), randn(4, 5, seed=2, grad=True)
    a, b, target = F.normalize(inputs[0]), F.normalize(inputs[1]), torch.tensor(target)
    ours = unit_info_nce(a, b, temperature, target, block)
    assert_same_gradients([ours], [info_nce_reference(a, b, target, temperature)], inputs)


# ---------------------------------------------------------------- L1 cost


@pytest.mark.parametrize("n, p, q", [(9, 4, 6), (300, 50, 200)])
def test_l1_cost_equals_its_reference(n, p, q):
    # The larger case is computed in blocks of 128 rows and 40 columns.
    x, y = randn(n, p, seed=1, grad=True), randn(n, q, seed=2, grad=True)
    assert_same_gradients([l1_cost(x, y)], [l1_cost_reference(x, y)], (x, y))


def test_l1_cost_gradcheck():
    assert torch.autograd.gradcheck(l1_cost, (randn(5, 3, seed=1, grad=True), randn(5, 4, seed=2, grad=True)))


# ---------------------------------------------------------------- no second derivatives


def one_call_of_each():
    """{name: (outputs, inputs)} of one call of every autograd function."""
    (_, matrix), square = random_symmetric(6), randn(6, 6, seed=4, grad=True)
    parts = square.split([4, 2])
    graph, inputs = attention_case(2)
    a, b = F.normalize(randn(5, 4, seed=1, grad=True)), randn(5, 4, seed=2, grad=True)
    return {
        "Product": (product(a, b.T), b),
        "Propagation": (torch.cat(propagate(matrix, 2, *parts)), square),
        "SparseProduct": (sparse_product(matrix, matrix, square), square),
        "Attention": (attention(*inputs, graph, 0.2), inputs[0]),
        "InfoNCE": (unit_info_nce(a, b, 0.2), b),
        "L1Cost": (l1_cost(a, b), b),
    }


@pytest.mark.parametrize(
    "name", ["Product", "Propagation", "SparseProduct", "Attention", "InfoNCE", "L1Cost"]
)
def test_a_second_derivative_raises_instead_of_being_wrong(name):
    output, variable = one_call_of_each()[name]
    (gradient,) = torch.autograd.grad(output.square().sum(), variable, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()


def test_the_test_above_covers_every_function_of_the_module():
    functions = {
        name.strip("_")
        for name, value in vars(layers.kernels).items()
        if isinstance(value, type) and issubclass(value, torch.autograd.Function)
    }
    assert functions == one_call_of_each().keys()
