"""The GPU branches of the code, run on the CPU, give the values and gradients of its CPU branches."""

import re
from pathlib import Path

import pytest
import torch
from model_helpers import (
    CPU,
    choose_gpu_branches,
    gradients,
    randn,
    random_neighbours,
    settings,
)

from layers.attention import AttentionGraph, Branch
from layers.device import on_cpu
from layers.kernels import attention, column_major, l1_cost, product, propagate, sparse_product
from layers.losses import info_nce
from layers.sparse import csr_product
from layers.transport import sinkhorn_log
from model import Transport

ROOT = Path(__file__).resolve().parents[2]


def value_and_gradients(function, *inputs):
    """The outputs of a function, and the gradients of a random weighted sum of them."""
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    loss = sum((randn(*out.shape, seed=70 + i, dtype=out.dtype) * out).sum() for i, out in enumerate(outputs))
    return [out.detach() for out in outputs], torch.autograd.grad(loss, inputs)


def assert_same_on_both(monkeypatch, function, *inputs):
    """A function has the same values and gradients in the CPU and in the GPU branch."""
    on_this_device = value_and_gradients(function, *inputs)
    choose_gpu_branches(monkeypatch)
    assert not on_cpu(inputs[0])
    torch.testing.assert_close(value_and_gradients(function, *inputs), on_this_device, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- the predicate


def test_on_cpu_looks_at_the_device_of_a_tensor():
    assert on_cpu(torch.zeros(1)) and not on_cpu(torch.zeros(1, device="meta"))


def test_on_cpu_answers_for_a_device():
    assert on_cpu(torch.device("cpu")) and not on_cpu(torch.device("cuda", 1))


def test_all_code_switches_to_its_gpu_branches_and_back(monkeypatch):
    with monkeypatch.context() as context:
        choose_gpu_branches(context)
        assert not on_cpu(torch.zeros(1)) and not on_cpu(CPU)
    assert on_cpu(torch.zeros(1)) and on_cpu(CPU)


def test_the_program_asks_for_the_kind_of_device_in_one_place_alone():
    """The exceptions name, refuse or choose something for a device; no computation branches there."""
    allowed = {
        "world.py": 1,  # bf16 on a processor that has no instructions for it
        "training/checkpoint.py": 1,  # a checkpoint is read onto the CPU
        "training/run.py": 3,  # the name of the device in a checkpoint
        "training/final.py": 1,  # likewise
        "data/encoders.py": 2,  # its name in the output
    }
    folders = ("", "benchmarks/", "data/", "layers/", "models/", "reporting/", "training/")
    paths = [path for folder in folders for path in ROOT.glob(f"{folder}*.py")]
    pattern = re.compile(r"device\.type|\.is_cuda\b|\.is_cpu\b")
    asking = {path.relative_to(ROOT).as_posix(): len(pattern.findall(path.read_text())) for path in paths}
    assert len(paths) > 60
    assert {name: n for name, n in asking.items() if n} == {**allowed, "layers/device.py": 1}


# ---------------------------------------------------------------- functions


@pytest.mark.parametrize("nodes", [None, [7, 0, 11]])
@pytest.mark.parametrize("scale", [1.0, 40.0])
@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_attention(monkeypatch, nodes, scale, dropout):
    graph = AttentionGraph.from_neighbours(random_neighbours(12, 3), 2)
    if nodes is not None:
        graph = graph.select_targets(torch.tensor(nodes))
    m = 12 if nodes is None else len(nodes)
    shapes = (24, 3), (2 * m,), (24,)
    inputs = [(randn(*shape, seed=s) * scale).requires_grad_() for s, shape in enumerate(shapes)]

    def forward(*inputs):
        torch.manual_seed(9)
        return attention(*inputs, graph, 0.2, dropout)

    assert_same_on_both(monkeypatch, forward, *inputs)


@pytest.mark.parametrize("nodes", [None, [7, 0, 11]])
def test_sums_over_the_edges_of_a_source(monkeypatch, nodes):
    graph = AttentionGraph.from_neighbours(random_neighbours(12, 3), 2)
    if nodes is not None:
        graph = graph.select_targets(torch.tensor(nodes))
    values = randn(len(graph.col))
    expected = graph.source_sums(values)
    choose_gpu_branches(monkeypatch)
    torch.testing.assert_close(graph.source_sums(values), expected)


@pytest.mark.parametrize("layers", [1, 2])
@pytest.mark.parametrize("nodes", [None, [7, 0, 11]])
def test_branch(monkeypatch, layers, nodes):
    graph, results = AttentionGraph.from_neighbours(random_neighbours(12, 3), 2), []
    torch.manual_seed(0)
    branch = Branch(5, 8, layers, 2, feat_proj=True).double()
    nodes = None if nodes is None else torch.tensor(nodes)
    for switch in (lambda: None, lambda: choose_gpu_branches(monkeypatch)):
        switch()
        branch.zero_grad()
        out = branch(graph, randn(12, 5), nodes)
        (out * randn(*out.shape, seed=1)).sum().backward()
        results.append((out.detach(), {name: grad.clone() for name, grad in gradients(branch).items()}))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("temperature", [0.01, 0.2])
def test_info_nce(monkeypatch, temperature):
    inputs = randn(6, 5, seed=1, grad=True), randn(9, 5, seed=2, grad=True)
    assert_same_on_both(monkeypatch, lambda a, b: info_nce(a, b, temperature), *inputs)


def test_l1_cost(monkeypatch):
    inputs = randn(30, 5, seed=1, grad=True), randn(30, 7, seed=2, grad=True)
    assert_same_on_both(monkeypatch, l1_cost, *inputs)


def test_product(monkeypatch):
    inputs = randn(6, 2500, seed=1, grad=True), randn(2500, 4, seed=2, grad=True)
    assert_same_on_both(monkeypatch, product, *inputs)


@pytest.mark.parametrize("rows", [None, [3, 1]])
def test_propagation(monkeypatch, rows):
    dense = torch.where(randn(9, 9) > 0.5, randn(9, 9, seed=1), 0)
    matrix, rows = (dense + dense.T).to_sparse_csr(), None if rows is None else torch.tensor(rows)
    inputs = randn(5, 70, seed=2, grad=True), randn(4, 70, seed=3, grad=True)
    assert_same_on_both(monkeypatch, lambda u, i: propagate(matrix, 3, u, i, rows, rows), *inputs)


def test_sparse_products(monkeypatch):
    dense, x = torch.where(randn(9, 6) > 0.5, randn(9, 6, seed=1), 0), randn(6, 4, seed=2, grad=True)
    matrix, transposed = dense.to_sparse_csr(), dense.T.contiguous().to_sparse_csr()
    assert_same_on_both(monkeypatch, lambda x: sparse_product(matrix, transposed, x), x)
    torch.testing.assert_close(
        csr_product(matrix.crow_indices(), matrix.col_indices(), matrix.values(), x.detach()), dense @ x
    )


def test_features_keep_their_layout_on_a_gpu(monkeypatch):
    features = randn(7, 5)
    choose_gpu_branches(monkeypatch)
    assert column_major(features) is features


def test_sinkhorn_makes_all_iterations_on_a_gpu(monkeypatch):
    cost = randn(6, 9).abs()
    expected, potential = sinkhorn_log(cost, 0.05, 5000, tolerance=1e-12)
    loose, _ = sinkhorn_log(cost, 0.05, 5000, tolerance=0.1)
    choose_gpu_branches(monkeypatch)
    plan, again = sinkhorn_log(cost, 0.05, 5000, tolerance=0.1)
    torch.testing.assert_close(plan, expected)
    torch.testing.assert_close(again, potential)
    assert not torch.allclose(loose, expected)


def test_transport_plan(monkeypatch):
    plans = []
    for switch in (lambda: None, lambda: choose_gpu_branches(monkeypatch)):
        switch()
        torch.manual_seed(0)
        module = Transport(settings(sinkhorn_iters=500)).double()
        module.refresh(randn(30, 8, seed=1), randn(30, 8, seed=2))
        plans.append((module.plan, module.figures))
    # On the CPU, iteration ends once the marginals are within 1e-4.
    torch.testing.assert_close(*plans, rtol=1e-3, atol=1e-5)
