"""Graph attention, compared with torch_geometric's GATConv, dense matrices and sets built by loops."""

import math

import numpy as np
import pytest
import torch
from model_helpers import edges_of, gradients, randn, random_neighbours
from torch.nn import functional as F
from torch_geometric.nn import GATConv

from layers.attention import AttentionGraph, Branch, GraphAttention

# ---------------------------------------------------------------- the graph


@pytest.mark.parametrize("heads", [1, 2, 5])
@pytest.mark.parametrize(
    "neighbours",
    [random_neighbours(14, 3), np.array([[1, 2], [0, 2], [2, 2], [3, 3]]), np.array([[1], [1]])],
    ids=["random", "own ids", "two nodes"],
)
def test_pattern_of_a_graph_equals_a_set_built_by_loops(neighbours, heads):
    n, edges = len(neighbours), edges_of(neighbours)
    expected = sorted((h * n + i, h * n + j) for i, j in edges for h in range(heads))
    graph = AttentionGraph.from_neighbours(neighbours, heads)
    assert (graph.n, graph.heads, graph.nodes) == (n, heads, None)
    assert entries(graph) == expected
    assert list(zip(graph.target.tolist(), graph.source.tolist())) == sorted(edges)
    assert graph.crow.tolist() == [sum(row < i for row, _ in expected) for i in range(n * heads + 1)]
    indices = (graph.crow, graph.col, graph.transposed_crow, graph.transposed_col)
    assert {part.dtype for part in indices} == {torch.int32}


def test_a_directed_graph_has_the_edges_from_the_neighbours_alone():
    neighbours = random_neighbours(14, 3)
    expected = sorted((i, j) for i, row in enumerate(neighbours.tolist()) for j in row)
    graph = AttentionGraph.from_neighbours(neighbours, 2, directed=True)
    assert entries(graph) == [(h * 14 + i, h * 14 + j) for h in range(2) for i, j in expected]
    values, x = randn(len(graph.col)), randn(28, 5)
    torch.testing.assert_close(graph.transposed_product(values, x), graph.matrix(values).to_dense().T @ x)
    torch.testing.assert_close(graph.source_sums(values), graph.matrix(values).to_dense().sum(0))
    larger = graph.append_targets(torch.tensor([[7, 2], [0, 13]]))
    new = [(14, 2), (14, 7), (15, 0), (15, 13)]
    assert list(zip(larger.target.tolist(), larger.source.tolist())) == expected + new


@pytest.mark.parametrize(
    "init, deviations",
    [("xavier", (0.125, 0.354, 0.354)), ("dgl", (0.177, 0.236, 0.236))],  # of W, a_src, a_dst at d 64
)
def test_standard_deviations_of_the_initialisations(init, deviations):
    torch.manual_seed(0)
    layers = [GraphAttention(64, 64, 8, init=init) for _ in range(20)]
    for name, expected in zip(("weight", "a_src", "a_dst"), deviations):
        weights = torch.stack([getattr(layer, name).detach() for layer in layers])
        assert weights.std().item() == pytest.approx(expected, rel=0.06)
        assert weights.abs().max() > 2.5 * expected or init == "xavier"  # one is normal, the other uniform


def entries(graph):
    """(row, column) of every entry of an AttentionGraph, from its CSR pattern."""
    rows = torch.arange(len(graph.crow) - 1).repeat_interleave(graph.crow.diff())
    return list(zip(rows.tolist(), graph.col.tolist()))


def test_selected_targets_keep_their_edges_in_the_given_order():
    graph, chosen = AttentionGraph.from_neighbours(random_neighbours(14, 3), 2), [9, 0, 4]
    part = graph.select_targets(torch.tensor(chosen))
    pairs = list(zip(graph.target.tolist(), graph.source.tolist()))
    edges = [(row, j) for row, node in enumerate(chosen) for i, j in pairs if i == node]
    assert part.nodes.tolist() == chosen and part.n == 14
    assert entries(part) == [(h * 3 + i, h * 14 + j) for h in range(2) for i, j in edges]


def test_appended_targets_attend_to_their_neighbours_and_themselves():
    neighbours, new = random_neighbours(14, 3), [[7, 2], [0, 13]]
    graph = AttentionGraph.from_neighbours(neighbours, 2).append_targets(torch.tensor(new))
    edges = sorted(edges_of(neighbours) | {(14, 7), (14, 2), (14, 14), (15, 0), (15, 13), (15, 15)})
    assert (graph.n, graph.nodes) == (16, None)
    assert list(zip(graph.target.tolist(), graph.source.tolist())) == edges
    assert entries(graph) == [(h * 16 + i, h * 16 + j) for h in range(2) for i, j in edges]


@pytest.mark.parametrize("nodes", [None, [2, 3, 5, 13], [11, 0], range(14)])
@pytest.mark.parametrize("heads", [1, 3])
def test_products_of_a_graph_equal_those_of_the_dense_matrix(heads, nodes):
    graph = AttentionGraph.from_neighbours(random_neighbours(14, 3), heads)
    if nodes is not None:
        graph = graph.select_targets(torch.tensor(nodes))
    m, index = 14 if nodes is None else len(nodes), torch.tensor(entries(graph)).T
    values, x, y = randn(len(graph.col)).abs(), randn(heads * 14, 5, seed=1), randn(heads * m, 5, seed=2)
    dense = torch.zeros(heads * m, heads * 14, dtype=torch.float64).index_put_(tuple(index), values)
    torch.testing.assert_close(graph.matrix(values).to_dense(), dense)
    torch.testing.assert_close(graph.product(values, x), dense @ x)
    torch.testing.assert_close(graph.transposed_product(values, y), dense.T @ y)
    torch.testing.assert_close(graph.target_sums(values), dense.sum(1))
    torch.testing.assert_close(graph.source_sums(values), dense.sum(0))
    torch.testing.assert_close(graph.sampled_product(y, x), (y @ x.T)[tuple(index)])
    assert torch.equal(graph.gather_target(y[:, 0]), y[index[0], 0])
    assert torch.equal(graph.gather_source(x[:, 0]), x[index[1], 0])


def test_graph_is_no_part_of_the_state_and_all_of_its_tensors_are_buffers():
    graph = AttentionGraph.from_neighbours(random_neighbours(14, 3), 2).select_targets(torch.tensor([3, 1]))
    assert not graph.state_dict() and not list(graph.parameters())
    assert {name for name, _ in graph.named_buffers()} == {
        "crow", "col", "target", "source", "transposed_crow", "transposed_col", "transposed_edge", "nodes"
    }  # fmt: skip
    assert all(buffer.is_meta for buffer in graph.to("meta").buffers())


# ---------------------------------------------------------------- one layer


def layer_case(heads, n=12, d_in=5, d=8, k=3, dropout=0.0):
    """Layer in float64, graph, x, and the edges (source, target) as a set built by loops."""
    neighbours = random_neighbours(n, k)
    torch.manual_seed(1)
    layer = GraphAttention(d_in, d, heads, dropout).double()
    with torch.no_grad():
        layer.bias.normal_()
    x = randn(n, d_in, seed=5, grad=True)
    return layer, AttentionGraph.from_neighbours(neighbours, heads), x, edges_of(neighbours)


def oracle_of(layer):
    """GATConv with the weights of a layer, and the pairs (weight of the layer, weight of GATConv)."""
    d, d_in = layer.weight.shape
    oracle = GATConv(d_in, d // layer.heads, layer.heads, negative_slope=0.2, add_self_loops=False)
    oracle = oracle.to(layer.weight.dtype)
    ours = (layer.weight, layer.a_src, layer.a_dst, layer.bias)
    pairs = list(zip(ours, (oracle.lin.weight, oracle.att_src, oracle.att_dst, oracle.bias)))
    with torch.no_grad():
        for mine, theirs in pairs:
            theirs.copy_(mine.view_as(theirs))
    return oracle, pairs


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_graph_attention_equals_gatconv_forward_and_backward(heads):
    layer, graph, x, edges = layer_case(heads)
    oracle, pairs = oracle_of(layer)
    y = x.detach().clone().requires_grad_()
    out, expected = layer(graph, x), oracle(y, torch.tensor(sorted(edges)).T)
    torch.testing.assert_close(out, expected, rtol=1e-10, atol=1e-12)
    probe = randn(*out.shape, seed=6)
    (out * probe).sum().backward()
    (expected * probe).sum().backward()
    for mine, theirs in [*pairs, (x, y)]:
        assert mine.grad.abs().max() > 1e-3
        torch.testing.assert_close(mine.grad, theirs.grad.view_as(mine), rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_graph_attention_gradcheck_with_the_same_mask_every_time(dropout):
    layer, graph, x, _ = layer_case(2, n=6, d=4, k=2, dropout=dropout)
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in layer.named_parameters()))

    def forward(x, *values):
        torch.manual_seed(9)
        return torch.func.functional_call(layer, dict(zip(names, values)), (graph, x))

    assert torch.autograd.gradcheck(forward, (x, *values))


def test_attention_dropout_is_random_unbiased_and_off_in_eval_mode():
    layer, graph, x, _ = layer_case(4, dropout=0.4)
    layer.bias.data.zero_()
    with torch.no_grad():
        expected = layer.eval()(graph, x)
        assert torch.equal(expected, layer(graph, x))
        layer.attn_dropout.p = 0.0
        assert torch.equal(expected, layer.train()(graph, x))
        layer.attn_dropout.p = 0.4
        draws = torch.stack([layer(graph, x) for _ in range(1000)])
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - expected).abs() / (draws.std(0) / math.sqrt(1000) + 1e-12)
    assert error.max() < 5


@pytest.mark.parametrize("nodes", [[4], [7, 0, 11, 3]])
def test_attention_of_some_targets_equals_that_of_all(nodes):
    layer, graph, x, _ = layer_case(4)
    y, nodes = x.detach().clone().requires_grad_(), torch.tensor(nodes)
    whole, part = layer(graph, x)[nodes], layer(graph.select_targets(nodes), y)
    torch.testing.assert_close(part, whole)
    probe = randn(*part.shape, seed=6)
    (whole * probe).sum().backward()
    expected = {name: grad.clone() for name, grad in gradients(layer).items()}
    layer.zero_grad()
    (part * probe).sum().backward()
    torch.testing.assert_close(y.grad, x.grad)
    torch.testing.assert_close(gradients(layer), expected)


def test_attention_of_some_targets_gradcheck_with_dropout():
    layer, graph, x, _ = layer_case(2, n=6, d=4, k=2, dropout=0.4)
    graph = graph.select_targets(torch.tensor([5, 2]))

    def forward(x):
        torch.manual_seed(9)
        return layer(graph, x)

    assert torch.autograd.gradcheck(forward, (x,))


def test_attention_is_finite_for_huge_scores():
    layer, graph, x, _ = layer_case(2)
    out = layer(graph, x * 1e5)
    out.sum().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in layer.parameters())


# ---------------------------------------------------------------- a branch


def branch_case(layers=2, **changes):
    """A branch in float64 in eval mode, a graph of 12 nodes, features [12, 5] and the edges as a set."""
    neighbours = random_neighbours(12, 3)
    torch.manual_seed(2)
    branch = Branch(5, 8, layers, 2, **changes).double().eval()
    return branch, AttentionGraph.from_neighbours(neighbours, 2), randn(12, 5, seed=5), edges_of(neighbours)


def branch_by_gatconv(branch, x, edges):
    """Vectors [n, d] of a branch by GATConv and LeakyReLU, layer after layer."""
    x, pairs = branch.project(x), torch.tensor(sorted(edges)).T
    for layer in branch.layers:
        x = F.leaky_relu(oracle_of(layer)[0](x, pairs), 0.2)
    return x


@pytest.mark.parametrize("layers", [1, 2, 3])
@pytest.mark.parametrize("feat_proj", [False, True])
def test_branch_equals_layers_of_gatconv(layers, feat_proj):
    branch, graph, x, edges = branch_case(layers, feat_proj=feat_proj)
    inputs = [5, 8, 8] if not feat_proj else [8, 8, 8]
    assert [layer.weight.shape[1] for layer in branch.layers] == inputs[:layers]
    torch.testing.assert_close(branch(graph, x), branch_by_gatconv(branch, x, edges))


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("nodes", [[4], [7, 0, 11, 3], range(12)])
def test_branch_of_some_nodes_equals_that_of_all_forward_and_backward(layers, nodes):
    branch, graph, x, _ = branch_case(layers, feat_proj=True)
    nodes, results = torch.tensor(nodes), []
    for part in (branch(graph, x)[nodes], branch(graph, x, nodes)):
        branch.zero_grad()
        (part * randn(*part.shape, seed=6)).sum().backward()
        results.append((part.detach(), {name: grad.clone() for name, grad in gradients(branch).items()}))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("kind", ["feat_dropout", "branch_dropout", "attn_dropout"])
def test_dropout_of_a_branch_acts_in_training_alone(kind):
    branch, graph, x, _ = branch_case(**{kind: 0.4})
    without, *_ = branch_case()
    assert torch.equal(branch(graph, x), without(graph, x))
    assert not torch.equal(branch.train()(graph, x), branch(graph, x))
    assert torch.equal(without.train()(graph, x), without(graph, x))


def test_new_nodes_attend_to_their_nearest_nodes_without_changing_the_old():
    branch, graph, x, edges = branch_case()
    new = randn(3, 5, seed=9)
    vectors, neighbours = branch.attend(graph, x, new, 2)
    cosines = F.normalize(new) @ F.normalize(x).T
    assert neighbours.tolist() == cosines.sort(descending=True).indices[:, :2].tolist()
    # An edge leads from its source to its target: a new node is a target, and a source for itself alone.
    more = {(j, 12 + i) for i, row in enumerate(neighbours.tolist()) for j in (*row, 12 + i)}
    expected = branch_by_gatconv(branch, torch.cat([x, new]), edges | more)
    torch.testing.assert_close(expected[:12], branch(graph, x))
    torch.testing.assert_close(vectors, expected[12:])
