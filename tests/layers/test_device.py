"""The GPU branches of the code, run on the CPU, give the values and gradients of its CPU branches."""

import re
from pathlib import Path

import pytest
import torch
from model_helpers import (
    NO_DROPOUT,
    build,
    choose_gpu_branches,
    gradients,
    randn,
    random_neighbours,
    repeating_batch,
    settings,
)

import training.scoring
from layers import kernels, transport
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
    assert not kernels.on_cpu(inputs[0])
    torch.testing.assert_close(value_and_gradients(function, *inputs), on_this_device, rtol=1e-10, atol=1e-12)


# ---------------------------------------------------------------- the predicate


def test_on_cpu_looks_at_the_device_of_a_tensor():
    assert on_cpu(torch.zeros(1)) and not on_cpu(torch.zeros(1, device="meta"))


def test_all_modules_switch_to_their_gpu_branches_and_back(monkeypatch):
    with monkeypatch.context() as context:
        choose_gpu_branches(context)
        modules = (kernels, transport, training.scoring)
        assert not any(module.on_cpu(torch.zeros(1)) for module in modules)
    assert all(module.on_cpu is on_cpu for module in modules)


def test_layers_and_models_ask_for_the_kind_of_device_in_one_place_alone():
    paths = [ROOT / "model.py", ROOT / "dataloader.py", *ROOT.glob("layers/*.py"), *ROOT.glob("models/*.py")]
    asking = [path.name for path in paths if re.search(r"device\.type|is_cuda|is_cpu", path.read_text())]
    assert len(paths) > 15 and asking == ["device.py"]


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


# ---------------------------------------------------------------- a training step


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"user_text_feat": "mean", "feat_proj": 1, "item_branch_layers": 1},
        {"w1_weight": 0.3, "modality_consistency_weight": 0.4, "contrastive_items": "pos_neg"},
        {"fusion": "concat", "temperature": 0.01},
    ],
)
def test_training_step_of_recgoat(monkeypatch, small_dataset, changes):
    results = []
    for switch in (lambda: None, lambda: choose_gpu_branches(monkeypatch)):
        switch()
        model = build(small_dataset, sinkhorn_iters=1000, **NO_DROPOUT, **changes).to(torch.float64).train()
        # Iteration ends early on the CPU alone, so both steps use the plan of the first model.
        model.begin_step(0)
        if results:
            model.load_state_dict(results[0][0])
        terms = model.loss(repeating_batch())
        terms["loss"].backward()
        results.append((model.state_dict(), terms, gradients(model)))
    for first, second in zip(results[0][1:], results[1][1:]):
        assert first.keys() == second.keys()
        torch.testing.assert_close(
            {name: value.detach() for name, value in first.items()},
            {name: value.detach() for name, value in second.items()},
            rtol=1e-9,
            atol=1e-11,
        )


@pytest.mark.parametrize("model", ["mf", "lgn", "vbpr", "freedom"])
def test_training_step_of_the_baselines(monkeypatch, small_dataset, model):
    results = []
    for switch in (lambda: None, lambda: choose_gpu_branches(monkeypatch)):
        switch()
        built = build(small_dataset, model=model).to(torch.float64).train()
        built.begin_step(0)
        loss = built.loss(repeating_batch())["loss"]
        loss.backward()
        results.append((loss.detach(), gradients(built)))
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)
