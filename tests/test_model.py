"""The models against naive loops, dense algebra, torch_geometric, POT and finite differences."""

import itertools
import math
import resource
from types import SimpleNamespace

import numpy as np
import ot
import pytest
import torch
from helpers import dataset_of
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode
from torch_geometric.nn import GATConv

from data.formats import Interactions
from data.graphs import normalised_adjacency
from dataloader import make_batches
from layers.attention import GraphAttention, attention_graph
from layers.dropout import Dropout
from layers.losses import bpr_loss, info_nce, squared_norm
from layers.transport import l1_cost, sinkhorn_exp, sinkhorn_log, squared_cost
from model import Fusion, RecGOAT, Transport, make_model
from models.lightgcn import LightGCN
from models.mf import MF
from parse import parse_args
from world import Config

CPU = torch.device("cpu")
SUBSETS = [c for n in (1, 2, 3) for c in itertools.combinations(("text", "image", "audio"), n)]


def randn(*shape, seed=0, dtype=torch.float64, grad=False):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype).requires_grad_(
        grad
    )


def settings(**changes):
    return Config(
        **{
            "model": "lgn_mm",
            "recdim": 8,
            "attn_heads": 2,
            "item_knn_k": 4,
            "user_knn_k": 4,
            "topks": (5,),
            **changes,
        }
    )


# ---------------------------------------------------------------- losses


def test_bpr_loss_equals_a_loop():
    user, pos, neg = randn(7, 5, seed=1), randn(7, 5, seed=2), randn(7, 5, seed=3)
    rows = [
        -math.log(1 / (1 + math.exp(-sum(float(u[c] * p[c] - u[c] * n[c]) for c in range(5)))))
        for u, p, n in zip(user, pos, neg)
    ]
    assert bpr_loss(user, pos, neg).item() == pytest.approx(sum(rows) / 7, rel=1e-12)


def test_bpr_loss_is_finite_for_huge_margins():
    user, item = torch.full((2, 1), 1e4), torch.tensor([[1e4], [-1e4]])
    assert bpr_loss(user, item, -item).item() == pytest.approx(1e8, rel=1e-6)


def test_squared_norm_equals_a_loop():
    vectors, at = (
        [randn(n, 3, seed=n) for n in (4, 9)],
        torch.tensor([[0, 3, 3, 1, 0, 2], [8, 8, 0, 1, 2, 5]]),
    )
    rows = [sum(float(x) ** 2 for v, where in zip(vectors, at) for x in v[where[r]]) for r in range(6)]
    assert squared_norm(*zip(vectors, at)).item() == pytest.approx(sum(rows) / 6, rel=1e-12)


def naive_info_nce(a, b, temperature, target):
    def cosine(x, y):
        return sum(p * q for p, q in zip(x, y)) / math.sqrt(sum(p * p for p in x) * sum(q * q for q in y))

    a, b, rows = a.tolist(), b.tolist(), []
    for r, t in enumerate(target):
        scores = [cosine(a[r], y) / temperature for y in b]
        rows.append(max(scores) + math.log(sum(math.exp(s - max(scores)) for s in scores)) - scores[t])
    return sum(rows) / len(rows)


@pytest.mark.parametrize("temperature", [0.02, 0.2, 1.0])
@pytest.mark.parametrize("n, m, target", [(6, 6, None), (4, 9, None), (7, 3, [2, 0, 1, 1, 2, 0, 0])])
def test_info_nce_equals_a_loop_for_every_block_size(n, m, target, temperature):
    a, b = randn(n, 5, seed=1), 3 * randn(m, 5, seed=2)
    expected = naive_info_nce(a, b, temperature, target or range(n))
    for block in (1, 2, 5, 512):
        value = info_nce(a, b, temperature, None if target is None else torch.tensor(target), block)
        assert value.item() == pytest.approx(expected, rel=1e-11)


@pytest.mark.parametrize(
    "n, m, target, block", [(4, 4, None, 512), (5, 3, [2, 0, 1, 1, 2], 2), (3, 6, None, 1)]
)
def test_info_nce_gradcheck(n, m, target, block):
    target = None if target is None else torch.tensor(target)
    inputs = randn(n, 4, seed=1, grad=True), randn(m, 4, seed=2, grad=True)
    assert torch.autograd.gradcheck(lambda a, b: info_nce(a, b, 0.2, target, block), inputs)


@pytest.mark.parametrize("temperature", [0.02, 0.2])
def test_info_nce_has_the_gradients_of_cross_entropy(temperature):
    target = torch.tensor([3, 1, 0, 3, 2, 2])
    a, b = randn(6, 5, seed=1, grad=True), randn(4, 5, seed=2, grad=True)
    ours = torch.autograd.grad(3 * info_nce(a, b, temperature, target, block=4), (a, b))
    theirs = torch.autograd.grad(
        3 * F.cross_entropy(F.normalize(a) @ F.normalize(b).T / temperature, target), (a, b)
    )
    for x, y in zip(ours, theirs):
        torch.testing.assert_close(x, y, rtol=1e-9, atol=1e-11)


def test_info_nce_is_finite_in_float32_at_low_temperature():
    a = randn(20, 4, dtype=torch.float32, grad=True)
    loss = info_nce(a, -a, 0.001)
    loss.backward()
    assert 1000 < loss.item() < 3000 and a.grad.isfinite().all()


def test_info_nce_leaves_its_inputs_as_they_were():
    a, b = randn(5, 4, seed=1), randn(5, 4, seed=2)
    before = a.clone(), b.clone()
    info_nce(a, b, 0.1)
    assert torch.equal(a, before[0]) and torch.equal(b, before[1])


# ---------------------------------------------------------------- LightGCN


def bipartite(seed=0, n_users=9, n_items=7):
    """Interactions (user 8 and item 6 have no train pair) and the dense normalised adjacency."""
    hit = np.random.default_rng(seed).random((n_users, n_items)) < 0.4
    hit[0, 0], hit[-1], hit[:, -1] = True, False, False
    train = np.argwhere(hit)
    dense = np.zeros((n_users + n_items,) * 2)
    for u, i in train:
        dense[u, n_users + i] = dense[n_users + i, u] = 1 / math.sqrt(hit[u].sum() * hit[:, i].sum())
    other = np.array([[0, 1]])
    return Interactions(n_users, n_items, train, other, other, None, {}, "test"), dense


def id_model(kind, layers):
    interactions, dense = bipartite()
    dataset = SimpleNamespace(
        interactions=interactions, adjacency=normalised_adjacency(interactions, "one", CPU)
    )
    return kind(settings(layer=layers, decay=0.3), dataset), dense


@pytest.mark.parametrize("layers", [0, 1, 3])
def test_lightgcn_embeddings_and_gradients_equal_dense_algebra(layers):
    model, dense = id_model(LightGCN, layers)
    power = sum(np.linalg.matrix_power(dense, k) for k in range(layers + 1)) / (layers + 1)
    start = torch.cat([model.user, model.item]).detach().double().requires_grad_()
    expected = torch.from_numpy(power) @ start
    probe = randn(*expected.shape, seed=4)
    user, item = model.embeddings()
    assert user.shape == (9, 8) and item.shape == (7, 8)
    torch.testing.assert_close(torch.cat([user, item]).double(), expected, rtol=1e-5, atol=1e-6)
    (torch.cat([user, item]) * probe.float()).sum().backward()
    (expected * probe).sum().backward()
    torch.testing.assert_close(
        torch.cat([model.user.grad, model.item.grad]).double(), start.grad, rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("kind", [MF, LightGCN])
def test_id_model_loss_is_bpr_plus_weighted_layer0_norm(kind):
    model, _ = id_model(kind, 2)
    users, pos, neg = ids = torch.tensor([[0, 1, 1], [0, 2, 3], [5, 6, 5]])
    user, item = (vectors.detach() for vectors in model.embeddings())
    margin = [float(user[u] @ item[p] - user[u] @ item[n]) for u, p, n in zip(users, pos, neg)]
    bpr = sum(math.log(1 + math.exp(-x)) for x in margin) / 3
    norm = (
        sum(
            float((torch.stack([model.user[u], model.item[p], model.item[n]]) ** 2).sum().detach())
            for u, p, n in zip(users, pos, neg)
        )
        / 3
    )
    terms = {name: value.item() for name, value in model.loss(*make_batches(*ids, 3)).items()}
    assert terms == pytest.approx({"loss": bpr + 0.3 * norm, "bpr": bpr, "norm": norm}, rel=1e-5)


def test_embeddings_start_from_a_normal_of_deviation_a_tenth():
    model = MF(settings(recdim=64), SimpleNamespace(interactions=SimpleNamespace(n_users=500, n_items=400)))
    for vectors in (model.user, model.item):
        assert abs(vectors.mean().item()) < 0.003 and vectors.std().item() == pytest.approx(0.1, rel=0.03)


# ---------------------------------------------------------------- graph attention


def attention_case(heads, n=12, d_in=5, d=8, k=3, dropout=0.0):
    """Layer and graph in float64, x, and the edges (source, target) as a set made without the program."""
    rng = np.random.default_rng(3)
    neighbours = np.array(
        [rng.permutation([j for j in range(n - 1) if j != i])[:k] for i in range(n)]
    )  # nobody chooses n - 1
    edges = {(i, i) for i in range(n)} | {
        e for i in range(n) for j in neighbours[i].tolist() for e in ((i, j), (j, i))
    }
    torch.manual_seed(1)
    layer = GraphAttention(d_in, d, heads, dropout).double()
    with torch.no_grad():
        layer.bias.normal_()
    return layer, attention_graph(neighbours, heads, CPU), randn(n, d_in, seed=5, grad=True), edges


@pytest.mark.parametrize("heads", [1, 4, 8])
def test_graph_attention_equals_gatconv_forward_and_backward(heads):
    layer, graph, x, edges = attention_case(heads)
    oracle = GATConv(5, 8 // heads, heads, negative_slope=0.2, add_self_loops=False).double()
    pairs = [
        (layer.weight, oracle.lin.weight),
        (layer.a_src, oracle.att_src),
        (layer.a_dst, oracle.att_dst),
        (layer.bias, oracle.bias),
    ]
    with torch.no_grad():
        for mine, theirs in pairs:
            theirs.copy_(mine.view_as(theirs))
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
def test_graph_attention_gradcheck_with_the_same_mask_each_time(dropout):
    layer, graph, x, _ = attention_case(2, n=6, d=4, k=2, dropout=dropout)
    names, values = zip(*((name, p.detach().requires_grad_()) for name, p in layer.named_parameters()))

    def forward(x, *values):
        torch.manual_seed(9)
        return torch.func.functional_call(layer, dict(zip(names, values)), (graph, x))

    assert torch.autograd.gradcheck(forward, (x, *values))


def test_attention_dropout_is_random_unbiased_and_off_in_eval_mode():
    layer, graph, x, _ = attention_case(4, dropout=0.4)
    layer.bias.data.zero_()
    with torch.no_grad():
        expected = layer.eval()(graph, x)
        assert torch.equal(expected, layer(graph, x))
        layer.attn_dropout.p = 0.0
        assert torch.equal(expected, layer.train()(graph, x))
        layer.attn_dropout.p = 0.4
        draws = torch.stack([layer(graph, x) for _ in range(3000)])
    assert not torch.equal(draws[0], draws[1])
    error = (draws.mean(0) - expected).abs() / (draws.std(0) / math.sqrt(3000) + 1e-12)
    assert error.max() < 5


@pytest.mark.parametrize("rows", [[4], [7, 0, 11, 3]])
def test_attention_at_some_rows_equals_those_of_all(rows):
    layer, graph, x, _ = attention_case(4)
    y, rows = x.detach().clone().requires_grad_(), torch.tensor(rows)
    whole, part = layer(graph, x)[rows], layer(graph.select_targets(rows), y)
    torch.testing.assert_close(part, whole)
    probe = randn(*part.shape, seed=6)
    (whole * probe).sum().backward()
    expected = {name: p.grad.clone() for name, p in layer.named_parameters()}
    layer.zero_grad()
    (part * probe).sum().backward()
    torch.testing.assert_close(y.grad, x.grad)
    torch.testing.assert_close({name: p.grad for name, p in layer.named_parameters()}, expected)


def test_attention_at_some_rows_gradcheck_with_dropout():
    layer, graph, x, _ = attention_case(2, n=6, d=4, k=2, dropout=0.4)
    graph = graph.select_targets(torch.tensor([5, 2]))

    def forward(x):
        torch.manual_seed(9)
        return layer(graph, x)

    assert torch.autograd.gradcheck(forward, (x,))


def test_attention_is_stable_for_huge_scores():
    layer, graph, x, _ = attention_case(2)
    out = layer(graph, x * 1e5)
    out.sum().backward()
    assert out.isfinite().all() and all(p.grad.isfinite().all() for p in layer.parameters())


# ---------------------------------------------------------------- costs and plans


@pytest.mark.parametrize("cost, elementwise", [(l1_cost, torch.abs), (squared_cost, torch.square)])
def test_cost_equals_the_broadcast_formula_and_passes_gradcheck(cost, elementwise):
    x, y = randn(9, 4, seed=1, grad=True), randn(9, 6, seed=2, grad=True)
    expected = elementwise(x[:, :, None] - y[:, None, :]).mean(0)
    torch.testing.assert_close(cost(x, y), expected, rtol=1e-11, atol=1e-12)
    assert torch.autograd.gradcheck(cost, (x, y))
    probe = randn(4, 6, seed=3)
    for mine, theirs in zip(
        torch.autograd.grad((cost(x, y) * probe).sum(), (x, y)),
        torch.autograd.grad((expected * probe).sum(), (x, y)),
    ):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-11)


def test_l1_cost_of_more_rows_and_columns_than_a_block_holds():
    x, y = randn(300, 50, seed=1), randn(300, 200, seed=2)  # 128 rows of 40 columns at a time
    torch.testing.assert_close(
        l1_cost(x, y), (x[:, :, None] - y[:, None, :]).abs().mean(0), rtol=1e-12, atol=1e-12
    )


@pytest.mark.parametrize("cost", [l1_cost, squared_cost])
def test_cost_never_makes_a_cube(cost):
    n, d, sizes = 2000, 400, []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(
                t.numel()
                for t in (out if isinstance(out, (tuple, list)) else [out])
                if isinstance(t, torch.Tensor)
            )
            return out

    x, y = (randn(n, d, seed=s, dtype=torch.float32, grad=True) for s in (1, 2))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with Watch():
        cost(x, y).sum().backward()
    grown_mb = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert (
        len(sizes) > 3 and max(sizes) <= 4 * n * d and grown_mb < 300
    )  # the cube: 320 million elements, 1220 MB


def uniform(n):
    return np.full(n, 1 / n)


def random_cost(p=6, q=9, seed=0):
    return np.random.default_rng(seed).random((p, q))


def test_sinkhorn_log_equals_pot_at_moderate_epsilon():
    cost = random_cost()
    expected = ot.sinkhorn(uniform(6), uniform(9), cost, 0.1, stopThr=1e-13, numItermax=10000)
    plan, _ = sinkhorn_log(torch.from_numpy(cost), 0.1, 10000, tolerance=1e-12)
    np.testing.assert_allclose(plan.numpy(), expected, rtol=1e-8, atol=1e-12)


def test_sinkhorn_log_equals_pot_at_small_epsilon():
    cost = random_cost()
    expected = ot.bregman.sinkhorn_log(uniform(6), uniform(9), cost, 0.02, stopThr=1e-10, numItermax=20000)
    plan, _ = sinkhorn_log(torch.from_numpy(cost), 0.02, 20000, tolerance=1e-10)
    np.testing.assert_allclose(plan.numpy(), expected, rtol=1e-5, atol=1e-9)


def test_sinkhorn_log_marginals():
    plan, _ = sinkhorn_log(torch.from_numpy(random_cost()), 0.05, 5000, tolerance=1e-6)
    assert (plan >= 0).all()
    np.testing.assert_allclose(plan.sum(0).numpy(), uniform(9), rtol=1e-10)
    assert (plan.sum(1) - 1 / 6).abs().sum() <= 1e-6
    loose, _ = sinkhorn_log(torch.from_numpy(random_cost()), 0.05, 5000, tolerance=1e-2)
    assert 1e-6 < (loose.sum(1) - 1 / 6).abs().sum() <= 1e-2


@pytest.mark.parametrize("scale", [1e-6, 1e-3, 1.0, 1e3, 1e6])
def test_sinkhorn_log_keeps_mass_one_at_every_cost_scale(scale):
    cost = torch.from_numpy(random_cost()).float()
    plan, _ = sinkhorn_log(cost * scale, 0.02 * scale, 500)
    reference, _ = sinkhorn_log(cost, 0.02, 500)
    assert plan.sum().item() == pytest.approx(1, abs=1e-5)
    torch.testing.assert_close(plan, reference, rtol=0.01, atol=1e-5)


def test_sinkhorn_log_warm_start_gives_the_same_plan_in_fewer_iterations(monkeypatch):
    calls, original = [], torch.logsumexp
    monkeypatch.setattr(
        torch, "logsumexp", lambda *args, **kwargs: calls.append(1) or original(*args, **kwargs)
    )
    cost = torch.from_numpy(random_cost())
    cold, potential = sinkhorn_log(cost, 0.05, 5000, tolerance=1e-10)
    cold_calls = len(calls)
    warm, again = sinkhorn_log(cost, 0.05, 5000, start=potential, tolerance=1e-10)
    assert len(calls) - cold_calls < cold_calls / 2
    torch.testing.assert_close(warm, cold, rtol=1e-6, atol=1e-10)
    torch.testing.assert_close(again, potential, rtol=1e-6, atol=1e-8)


def test_sinkhorn_log_nears_the_exact_transport_at_tiny_epsilon():
    cost = random_cost(7, 7)
    exact = ot.emd2(uniform(7), uniform(7), cost)
    plan, _ = sinkhorn_log(torch.from_numpy(cost), 0.002, 20000, tolerance=1e-7)
    assert exact - 1e-6 <= float((plan.numpy() * cost).sum()) <= exact * 1.03


def test_sinkhorn_exp_equals_pot_where_nothing_underflows():
    cost = random_cost()
    expected = ot.sinkhorn(uniform(6), uniform(9), cost, 0.2, stopThr=1e-13, numItermax=10000)
    np.testing.assert_allclose(sinkhorn_exp(torch.from_numpy(cost), 0.2, 2000).numpy(), expected, rtol=1e-5)


def test_sinkhorn_exp_underflows_where_sinkhorn_log_keeps_mass_one():
    cost = 10 + 100 * torch.from_numpy(random_cost()).float()
    assert sinkhorn_exp(cost, 0.01, 50).sum() < 1e-6
    assert sinkhorn_log(cost, 0.01, 50)[0].sum().item() == pytest.approx(1, abs=1e-4)


# ---------------------------------------------------------------- transport and fusion


def pair_of_views(seed=0, n=30, d=8):
    return randn(n, d, seed=seed, dtype=torch.float32, grad=True), randn(
        n, d, seed=seed + 100, dtype=torch.float32, grad=True
    )


def trained_transport(**changes):
    """A Transport after one training step, with the views it saw."""
    torch.manual_seed(0)
    transport = Transport(settings(**{"sinkhorn_iters": 2000, **changes})).train()
    views = pair_of_views()
    transport.advance(*views)
    return transport, *views


@pytest.mark.parametrize("plan_scale, row_sum", [("barycentric", 1.0), ("mass", 1 / 8)])
def test_transport_scales_the_plan_so_thselect_targets_sum_to_one_or_one_over_d(plan_scale, row_sum):
    transport, *_ = trained_transport(plan_scale=plan_scale, transport="plan")
    ones = transport(torch.eye(8)).sum(1)
    torch.testing.assert_close(ones, torch.full((8,), row_sum), rtol=1e-3, atol=0)


def unit_by_hand(cost, unit):
    """1, the mean, or the deviation of what is left of the cost without its row and column effects."""
    rows, columns = cost.mean(1) - cost.mean(), cost.mean(0) - cost.mean()
    left = [
        cost[i, j] - cost.mean() - rows[i] - columns[j]
        for i in range(len(cost))
        for j in range(cost.shape[1])
    ]
    return {"absolute": 1.0, "mean": cost.mean(), "spread": np.std(left)}[unit]


@pytest.mark.parametrize(
    "ot_cost, scale, unit, formula",
    [
        ("l1", 1.0, "spread", np.abs),
        ("squared", 7.0, "spread", np.square),
        ("l1", 3.0, "mean", np.abs),
        ("l1", 2.0, "absolute", np.abs),
    ],
)
def test_transport_plan_equals_pot_on_the_cost_and_unit_of_the_config(ot_cost, scale, unit, formula):
    epsilon = 0.5 if unit == "spread" else 0.1
    transport, z_m, z_id = trained_transport(
        ot_cost=ot_cost, ot_scale=scale, ot_unit=unit, ot_epsilon=epsilon
    )
    x, y = z_m.detach().double().numpy(), z_id.detach().double().numpy()
    cost = scale * formula(x[:, :, None] - y[:, None, :]).mean(0)
    expected = ot.sinkhorn(
        uniform(8), uniform(8), cost, epsilon * unit_by_hand(cost, unit), numItermax=10000, stopThr=1e-12
    )
    np.testing.assert_allclose(transport.plan.numpy(), expected, rtol=1e-2, atol=2e-6)
    assert expected.max() > 1.5 * expected.min()


def test_plan_at_the_default_epsilon_does_not_depend_on_scale_or_on_row_and_column_offsets_of_the_cost():
    plans = []
    for factor in (1.0, 1000.0):
        transport, (z_m, z_id) = Transport(settings(sinkhorn_iters=2000)).train(), pair_of_views()
        transport.advance(factor * z_m, factor * z_id)
        plans.append(transport.plan)
    torch.testing.assert_close(plans[0], plans[1], rtol=1e-2, atol=1e-5)


def test_plan_stays_alive_when_the_views_are_equal_or_constant():
    for z in (torch.zeros(10, 8), torch.ones(10, 8)):
        transport = Transport(settings()).train()
        transport.advance(z, z)
        assert transport(z).isfinite().all() and transport.plan.sum().item() == pytest.approx(1, abs=1e-4)


@pytest.mark.parametrize("kind", ["plan", "residual", "none", "full"])
@pytest.mark.parametrize("plan_scale, factor", [("barycentric", 8), ("mass", 1)])
def test_transport_kinds_by_hand(kind, plan_scale, factor):
    transport, z_m, z_id = trained_transport(transport=kind, plan_scale=plan_scale)
    matrix = {
        "plan": factor * transport.plan,
        "residual": transport.residual,
        "none": torch.eye(8),
        "full": factor * transport.plan + transport.residual,
    }[kind].detach()
    out = transport(z_m)
    torch.testing.assert_close(out, z_m @ matrix)
    probe = randn(*out.shape, seed=2, dtype=torch.float32)
    grad_m, grad_id = torch.autograd.grad((out * probe).sum(), (z_m, z_id), allow_unused=True)
    torch.testing.assert_close(grad_m, probe @ matrix.T)
    assert grad_id is None and not transport.plan.requires_grad


def test_transport_refreshes_the_plan_every_n_training_steps():
    transport = Transport(settings(plan_every=3))
    plans = [transport.plan.clone()]
    for step in range(7):
        transport.advance(*pair_of_views(seed=step))
        plans.append(transport.plan.clone())
    assert [not torch.equal(a, b) for a, b in zip(plans, plans[1:])] == [
        True,
        False,
        False,
        True,
        False,
        False,
        True,
    ]


def test_only_training_losses_count_as_steps_of_the_plan(small_dataset):
    model, batch = make(small_dataset, plan_every=2)
    transport, ages = model.fusion.transports["text"], []
    for mode in (True, False, True):
        model.train(mode).loss(batch)
        model.embeddings()
        ages.append(transport.age)
    assert ages == [1, 1, 2]


def test_transport_plan_survives_the_state_dict():
    transport, z_m, z_id = trained_transport()
    other = Transport(settings())
    other.load_state_dict(transport.state_dict())
    assert torch.equal(other(z_m), transport(z_m)) and other.age == transport.age == 1


def test_residual_init():
    assert not Transport(settings(residual_init="zeros")).residual.any()
    bound = math.sqrt(6 / 16)
    residual = Transport(settings()).residual
    assert residual.abs().max() <= bound and residual.abs().max() > 0.8 * bound


@pytest.mark.parametrize("ot_cost, formula", [("l1", torch.abs), ("squared", torch.square)])
def test_w1_is_the_plan_times_the_cost_with_gradients_through_the_cost(ot_cost, formula):
    transport, z_m, z_id = trained_transport(ot_cost=ot_cost, ot_scale=3.0)
    cost = 3 * formula(z_m[:, :, None] - z_id[:, None, :]).mean(0)
    expected = sum(transport.plan[i, j] * cost[i, j] for i in range(8) for j in range(8))
    w1 = transport.w1(z_m, z_id)
    torch.testing.assert_close(w1, expected, rtol=1e-5, atol=0)
    for mine, theirs in zip(torch.autograd.grad(w1, (z_m, z_id)), torch.autograd.grad(expected, (z_m, z_id))):
        assert theirs.abs().max() > 1e-4
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_transport_diagnostics_by_hand():
    transport, z_m, z_id = trained_transport()
    with torch.no_grad():
        numbers = {name: float(value) for name, value in transport.diagnostics(z_m, z_id).items()}
    plan, x = transport.plan.double().numpy(), z_m.detach().double().numpy()
    entropy = -sum(t * math.log(t) for t in plan.ravel()) / math.log(64)
    assert numbers["mass"] == pytest.approx(1, abs=1e-4) and numbers["entropy"] == pytest.approx(
        entropy, rel=1e-4
    )
    assert numbers["w1"] == pytest.approx(transport.w1(z_m, z_id).item(), rel=1e-5)
    assert numbers["row_error"] == pytest.approx(np.abs(plan.sum(1) - 1 / 8).sum(), abs=1e-5)
    assert numbers["ratio"] == pytest.approx(np.linalg.norm(8 * x @ plan) / np.linalg.norm(x), rel=1e-4)


def views_of(modalities):
    return randn(20, 8, seed=9, dtype=torch.float32), {
        m: randn(20, 8, seed=s, dtype=torch.float32) for s, m in enumerate(modalities)
    }


def normed(matrix, layer, l2):
    """Rows of a numpy matrix, standardised (layer norm at its start), then of length 1."""
    if layer:
        matrix = (matrix - matrix.mean(1, keepdims=True)) / np.sqrt(matrix.var(1, keepdims=True) + 1e-5)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True) if l2 else matrix


@pytest.mark.parametrize("modalities", SUBSETS)
@pytest.mark.parametrize("mode", ["oat", "concat", "sum", "sum_proj"])
def test_fusion_by_hand(mode, modalities):
    torch.manual_seed(0)
    config = settings(
        fusion=mode.removesuffix("_proj"),
        sum_proj=int(mode == "sum_proj"),
        fuse_drop=0.5,
        beta=0.6,
        alpha=0.1,
        audio_weight=0.2,
    )
    fusion = Fusion(config, list(modalities)).train()
    z_id, z = views_of(modalities)
    fusion(z_id, z)
    out = fusion.eval()(z_id, z).detach().numpy()
    x_id, x = z_id.numpy(), {m: v.numpy() for m, v in z.items()}
    if mode == "oat":
        share = {m: {"text": 0.6, "image": 0.1, "audio": 0.2}[m] for m in modalities}
        matrices = {m: (8 * t.plan + t.residual).detach().numpy() for m, t in fusion.transports.items()}
        expected = (1 - sum(share.values())) * x_id + sum(share[m] * x[m] @ matrices[m] for m in modalities)
    else:
        expected = np.concatenate([x_id, *x.values()], 1) if mode == "concat" else x_id + sum(x.values())
        if mode != "sum":
            expected = (
                expected @ fusion.project.weight.detach().numpy().T + fusion.project.bias.detach().numpy()
            )
    np.testing.assert_allclose(out, normed(expected, True, True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fuse_norm, layer, l2", [("layer", True, False), ("l2", False, True), ("none", False, False)]
)
def test_fuse_norm_by_hand(fuse_norm, layer, l2):
    z_id, z = views_of(["text"])
    out = Fusion(settings(fusion="sum", fuse_norm=fuse_norm), ["text"]).eval()(z_id, z)
    np.testing.assert_allclose(
        out.detach().numpy(), normed((z_id + z["text"]).numpy(), layer, l2), rtol=1e-4, atol=1e-5
    )


def test_dropout_scales_what_it_keeps_and_is_off_in_eval_mode():
    torch.manual_seed(0)
    x = torch.ones(300, 50, requires_grad=True)
    out = Dropout(0.25)(x)
    out.sum().backward()
    assert out.unique().tolist() == [0.0, pytest.approx(4 / 3)] and out.mean().item() == pytest.approx(
        1, abs=0.02
    )
    assert torch.equal(x.grad, out.detach())
    assert Dropout(0.25).eval()(x) is x and Dropout(0.0)(x) is x


def test_fusion_dropout_acts_in_training_only():
    z_id, z = views_of(["text"])
    fusion = Fusion(settings(fuse_drop=0.5), ["text"])
    assert (fusion.train()(z_id, z) == 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert (fusion.eval()(z_id, z) == 0).sum() == 0


@pytest.mark.parametrize("learn", [0, 1])
def test_fusion_weights_get_gradients_only_when_they_are_learned(learn):
    z_id, z = views_of(["text", "image"])
    fusion = Fusion(settings(learn_fusion_weights=learn), ["text", "image"])
    (fusion(z_id, z) * randn(20, 8, seed=7, dtype=torch.float32)).sum().backward()
    assert fusion.weights.grad is None if not learn else (fusion.weights.grad.abs() > 1e-6).all()


# ---------------------------------------------------------------- RecGOAT


def make(folder, modalities=("text", "image"), seed=0, **changes):
    """A RecGOAT model on the small dataset with these modalities, and a batch in which users and items repeat."""
    if not (folder / "audio_feat.npy").exists():
        np.save(
            folder / "audio_feat.npy", np.random.default_rng(2).standard_normal((30, 7)).astype(np.float32)
        )
    paths = {f"{m}_feat": str(folder / f"{m}_feat.npy") for m in modalities}
    config = settings(dataset=folder.name, data_root=str(folder.parent), **{**paths, **changes})
    torch.manual_seed(seed)
    model = make_model(config, dataset_of(config), CPU)
    return model, batch_of([0, 1, 1, 2, 5, 0], [3, 3, 4, 9, 9, 8], [10, 11, 3, 12, 11, 13])


def batch_of(users, pos, neg):
    """One Batch of these triples."""
    return make_batches(*map(torch.tensor, (users, pos, neg)), len(users))[0]


STILL = {"attn_dropout": 0.0, "fuse_drop": 0.0}


@pytest.mark.parametrize("user_text", ["", "mean"])
@pytest.mark.parametrize("fusion", ["oat", "concat", "sum"])
@pytest.mark.parametrize("modalities", SUBSETS)
def test_loss_is_finite_and_gradients_reach_every_parameter(small_dataset, fusion, modalities, user_text):
    if user_text and "text" not in modalities:
        modalities = ("text", *modalities)
    model, batch = make(
        small_dataset,
        modalities,
        fusion=fusion,
        user_text_feat=user_text,
        learn_fusion_weights=1,
        w1_weight=0.1,
        modality_consistency_weight=0.5,
        sum_proj=1,
    )
    terms = model.train().loss(batch)
    assert all(value.isfinite() and value.ndim == 0 for value in terms.values())
    terms["loss"].backward()
    names = {name for name, _ in model.named_parameters()}
    dead = {
        name
        for name, p in model.named_parameters()
        if p.grad is None or not p.grad.any() or not p.grad.isfinite().all()
    }
    assert not dead
    assert {"backbone.user", "backbone.item"} <= names and any(
        name.startswith("user_branch") for name in names
    ) == bool(user_text)
    for m in modalities:
        assert any(name.startswith(f"branches.{m}.") for name in names)
        assert (f"fusion.transports.{m}.residual" in names) == (fusion == "oat")


def oracle_terms(model, users, pos, neg, modalities):
    """Terms of the loss in eval mode out of represent() and embeddings(), by cross_entropy over explicit matrices."""
    config = model.config
    user, z_id, z = model.represent()
    item = model.embeddings()[1]
    margin = (user[users] * (item[pos] - item[neg])).sum(1)

    def nce(a, b, target):
        return F.cross_entropy(F.normalize(a) @ F.normalize(b).T / config.temperature, torch.tensor(target))

    def pairs(ids):
        ids = sorted(set(ids)) if config.contrastive_dedup else ids
        views = [z_id[ids], *(z[m][ids] for m in modalities)]
        return [nce(a, b, list(range(len(ids)))) for a, b in itertools.combinations(views, 2)]

    losses = pairs(pos.tolist()) + (pairs(neg.tolist()) if config.contrastive_items == "pos_neg" else [])
    candidates = sorted(set(pos.tolist())) if config.contrastive_dedup else pos.tolist()
    target = (
        [candidates.index(p) for p in pos.tolist()] if config.contrastive_dedup else list(range(len(pos)))
    )
    ids = model.backbone
    return {
        "bpr": -F.logsigmoid(margin).mean(),
        "norm": (
            ids.user[users].norm(dim=1) ** 2 + ids.item[pos].norm(dim=1) ** 2 + ids.item[neg].norm(dim=1) ** 2
        ).mean(),
        "modality_nce": sum(losses) / (len(losses) if config.contrastive_reduction == "mean" else 1),
        "user_item_nce": nce(user[users], item[candidates], target),
        "w1": sum(
            (model.fusion.transports[m].plan * (z[m][:, :, None] - z_id[:, None, :]).abs().mean(0)).sum()
            for m in modalities
        ),
    }


@pytest.mark.parametrize(
    "dedup, reduction, items, sign",
    [
        (1, "sum", "pos", "attract"),
        (0, "mean", "pos_neg", "repel"),
        (1, "mean", "pos_neg", "attract"),
        (0, "sum", "pos", "repel"),
    ],
)
def test_loss_is_the_weighted_sum_of_its_terms_and_each_term_is_right(
    small_dataset, dedup, reduction, items, sign
):
    modalities = ("text", "image", "audio")
    model, batch = make(
        small_dataset,
        modalities,
        contrastive_dedup=dedup,
        contrastive_reduction=reduction,
        contrastive_items=items,
        contrastive_sign=sign,
        contrastive_weight=0.7,
        modality_consistency_weight=0.3,
        w1_weight=0.4,
        decay=0.2,
        user_text_feat="mean",
    )
    model.train().loss(batch)
    with torch.no_grad():
        terms, expected = model.eval().loss(batch), oracle_terms(model, *batch[:3], modalities)
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)
    contrastive = (1 if sign == "attract" else -1) * 0.3 * expected["modality_nce"] + 0.7 * expected[
        "user_item_nce"
    ]
    torch.testing.assert_close(terms["contrastive"], contrastive, rtol=1e-4, atol=1e-6)
    total = expected["bpr"] + 0.2 * expected["norm"] + 0.7 * contrastive + 0.4 * expected["w1"]
    torch.testing.assert_close(terms["loss"], total, rtol=1e-4, atol=1e-6)


def test_paper_default_contrastive_term_is_the_sum_over_modality_pairs_alone(small_dataset):
    model, batch = make(small_dataset)
    terms = model.loss(batch)
    assert (
        "user_item_nce" not in terms
        and "w1" not in terms
        and torch.equal(terms["contrastive"], terms["modality_nce"])
    )
    silent, _ = make(small_dataset, contrastive_weight=0.0)
    assert set(silent.loss(batch)) == {"loss", "bpr", "norm"}


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"item_branch_layers": 2, "feat_proj": 1},
        {"fusion": "concat", "user_text_feat": "mean"},
        {"transport": "residual", "modality_decay": 0.3, "modality_consistency_weight": 0.4},
    ],
)
def test_a_step_on_the_items_of_the_batch_equals_one_on_all_items(small_dataset, monkeypatch, changes):
    results = []
    for everything in (True, False):
        model, batch = make(small_dataset, **STILL, **changes)
        model.train().loss(batch)  # the step with a plan
        assert not model.takes_all()  # the one after it takes no other items, unless told to
        if everything:
            monkeypatch.setattr(model, "takes_all", lambda: True)
        terms = model.loss(batch)
        terms["loss"].backward()
        results.append(
            (
                {name: value.detach() for name, value in terms.items()},
                {name: p.grad for name, p in model.named_parameters()},
            )
        )
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_a_step_takes_all_items_when_a_plan_is_due_or_w1_is_asked_for(small_dataset):
    model, batch = make(small_dataset, plan_every=2)
    assert model.train().takes_all() and not model.eval().takes_all()
    took = []
    for _ in range(4):
        took.append(model.train().takes_all())
        model.loss(batch)
    assert took == [True, False, True, False]
    assert make(small_dataset, w1_weight=0.1)[0].eval().takes_all()


def test_repeated_items_count_once_in_the_modality_term(small_dataset):
    batches = [batch_of([0] * len(pos), pos, [1] * len(pos)) for pos in ([9, 3, 3, 4, 9, 9], [3, 4, 9])]
    for dedup in (1, 0):
        model, _ = make(small_dataset, contrastive_dedup=dedup)
        with torch.no_grad():
            a, b = (model.eval().loss(batch)["modality_nce"] for batch in batches)
        assert torch.isclose(a, b, rtol=1e-5) == bool(dedup)


def test_eta_mixes_user_vectors(small_dataset):
    model, _ = make(small_dataset, user_text_feat="mean", eta=0.3)
    model.eval()
    with torch.no_grad():
        mixed = model.embeddings()[0]
        text = model.user_branch(model.user_graph, model.user_features)
        torch.testing.assert_close(mixed, 0.7 * model.backbone.embeddings()[0] + 0.3 * text)
    assert (text.abs().amax(1) > 0).float().mean() > 0.9


def test_user_vectors_without_user_text_are_those_of_lightgcn(small_dataset):
    model, _ = make(small_dataset, eta=0.3)
    assert torch.equal(model.embeddings()[0], model.backbone.embeddings()[0])


def branch_by_hand(model, m, features, pairs):
    """Two attention layers by GATConv over these edges, LeakyReLU after each."""
    x = features
    for layer in model.branches[m].layers:
        oracle = GATConv(x.shape[1], 4, 2, add_self_loops=False)
        with torch.no_grad():
            for theirs, mine in zip(
                (oracle.lin.weight, oracle.att_src, oracle.att_dst, oracle.bias),
                (layer.weight, layer.a_src, layer.a_dst, layer.bias),
            ):
                theirs.copy_(mine.view_as(theirs))
        x = F.leaky_relu(oracle(x, pairs), 0.2)
    return x


def test_item_branch_equals_gatconv_on_the_cosine_neighbours_of_the_features(small_dataset):
    model, _ = make(small_dataset)
    for m in ("text", "image"):
        x = np.load(small_dataset / f"{m}_feat.npy").astype(np.float32)
        unit = x / np.linalg.norm(x, axis=1, keepdims=True)
        edges = {(i, i) for i in range(30)}
        for i in range(30):
            similar = sorted((j for j in range(30) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:4]
            edges |= {e for j in similar for e in ((i, j), (j, i))}
        with torch.no_grad():
            expected = branch_by_hand(model, m, torch.from_numpy(x), torch.tensor(sorted(edges)).T)
            torch.testing.assert_close(model.eval().represent()[2][m], expected, rtol=1e-4, atol=1e-5)


def test_feat_proj_and_branch_layers_shape_the_branch(small_dataset):
    model, batch = make(
        small_dataset, feat_proj=1, item_branch_layers=3, feat_dropout=0.3, branch_dropout=0.3
    )
    branch = model.branches["text"]
    assert branch.project.weight.shape == (8, 12) and [layer.weight.shape[1] for layer in branch.layers] == [
        8,
        8,
        8,
    ]
    assert not torch.equal(model.train().embeddings()[1], model.embeddings()[1])
    assert torch.equal(model.eval().embeddings()[1], model.embeddings()[1])


def test_repel_turns_the_gradient_of_the_modality_term_round(small_dataset):
    grads = {}
    for sign in ("attract", "repel"):
        model, batch = make(small_dataset, contrastive_sign=sign, **STILL)
        model.loss(batch)["contrastive"].backward()
        grads[sign] = {name: p.grad for name, p in model.named_parameters() if p.grad is not None}
    assert grads["attract"].keys() == grads["repel"].keys() and len(grads["attract"]) > 8
    for name, grad in grads["attract"].items():
        torch.testing.assert_close(grads["repel"][name], -grad)


def test_attract_aligns_the_modalities_and_repel_does_not(small_dataset):
    finals = {}
    for sign in ("attract", "repel"):
        model, batch = make(small_dataset, contrastive_sign=sign, contrastive_weight=1.0, **STILL)
        optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 0.01)
        losses = []
        for _ in range(20):
            terms = model.loss(batch)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            losses.append(terms["modality_nce"].item())
        finals[sign] = losses[-1] - losses[0]
    assert finals["attract"] < -0.5 < 0 < finals["repel"]


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_released_recipe_builds_and_trains_a_step(small_dataset, precision):
    config, _ = parse_args(
        [
            "--recipe",
            "released",
            "--dataset",
            "small",
            "--data_root",
            str(small_dataset.parent),
            "--model",
            "lgn_mm",
            "--recdim",
            "8",
            "--item_knn_k",
            "4",
            "--topks",
            "5",
            "--user_text_feat",
            "mean",
            "--user_knn_k",
            "4",
            "--precision",
            precision,
        ]
    )
    torch.manual_seed(0)
    model = RecGOAT(config, dataset_of(config))
    _, batch = make(small_dataset)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    terms = model.train().loss(batch)
    assert {"modality_nce", "user_item_nce"} <= terms.keys()
    assert terms["contrastive"].item() == pytest.approx(
        0.5 * terms["user_item_nce"].item() - 0.5 * terms["modality_nce"].item(), abs=1e-5
    )
    terms["loss"].backward()
    torch.optim.Adam(model.parameters(), 0.01).step()
    unmoved = {
        name for name, p in model.named_parameters() if torch.equal(p, before[name]) or not p.isfinite().all()
    }
    assert not unmoved


@pytest.mark.parametrize("fusion", ["oat", "concat"])
def test_diagnostics_are_finite_numbers(small_dataset, fusion):
    model, batch = make(small_dataset, fusion=fusion)
    model.loss(batch)
    with torch.no_grad():
        numbers = {name: float(value) for name, value in model.eval().diagnostics().items()}
    assert all(map(math.isfinite, numbers.values()))
    assert numbers["norm/user"] == pytest.approx(
        np.linalg.norm(model.backbone.user.detach().numpy(), axis=1).mean(), rel=1e-5
    )
    assert ("plan/text/w1" in numbers) == (fusion == "oat")
    if fusion == "oat":
        assert [numbers[f"fusion/{v}"] for v in ("text", "image", "id")] == pytest.approx(
            [0.8, 0.05, 0.15], rel=1e-5
        )


def test_features_stay_out_of_the_state_dict_and_plans_are_in_it(small_dataset):
    model, _ = make(small_dataset, user_text_feat="mean")
    names = set(model.state_dict())
    assert not {name for name in names if "features" in name or "graph" in name}
    assert {
        "fusion.transports.text.plan",
        "fusion.transports.image.residual",
        "user_branch.layers.0.weight",
    } <= names
