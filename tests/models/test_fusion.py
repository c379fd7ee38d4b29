"""Transport and fusion of RecGOAT (eq. 9-14), compared with POT and with formulas in NumPy."""

import itertools
import math

import numpy as np
import ot
import pytest
import torch
from model_helpers import randn, settings

from model import Fusion, Transport, fusion_weights
from models.registry import checked
from utils import UserError

SUBSETS = [c for n in (1, 2, 3) for c in itertools.combinations(("text", "image", "audio"), n)]


def pair_of_views(seed=0, n=30, d=8):
    """Modality vectors and ID vectors [n, d]."""
    return tuple(randn(n, d, seed=s, dtype=torch.float32, grad=True) for s in (seed, seed + 100))


def fresh_transport(**changes):
    """A Transport whose plan was computed from two views, and the views."""
    torch.manual_seed(0)
    transport = Transport(settings(**{"sinkhorn_iters": 2000, **changes}))
    views = pair_of_views()
    transport.refresh(*views)
    return transport, *views


# ---------------------------------------------------------------- the plan


@pytest.mark.parametrize("plan_scale, row_sum", [("barycentric", 1.0), ("mass", 1 / 8)])
def test_rows_of_the_scaled_plan_sum_to_one_or_to_one_over_d(plan_scale, row_sum):
    transport, *_ = fresh_transport(plan_scale=plan_scale, transport="plan")
    sums = transport(torch.eye(8)).sum(1)
    torch.testing.assert_close(sums, torch.full((8,), row_sum), rtol=1e-3, atol=0)


def unit_by_hand(cost, unit):
    """1, the mean, or the standard deviation of the cost without its row and column means."""
    rest = cost - cost.mean(1, keepdims=True) - cost.mean(0) + cost.mean()
    return {"absolute": 1.0, "mean": cost.mean(), "spread": np.std(rest)}[unit]


@pytest.mark.parametrize(
    "ot_cost, scale, unit, formula",
    [
        ("l1", 1.0, "spread", np.abs),
        ("squared", 7.0, "spread", np.square),
        ("l1", 3.0, "mean", np.abs),
        ("l1", 2.0, "absolute", np.abs),
    ],
)
def test_plan_equals_pot_with_the_cost_and_the_unit_of_the_config(ot_cost, scale, unit, formula):
    epsilon = 0.5 if unit == "spread" else 0.1
    transport, z_m, z_id = fresh_transport(ot_cost=ot_cost, ot_scale=scale, ot_unit=unit, ot_epsilon=epsilon)
    x, y = z_m.detach().double().numpy(), z_id.detach().double().numpy()
    cost, uniform = scale * formula(x[:, :, None] - y[:, None, :]).mean(0), np.full(8, 1 / 8)
    epsilon = epsilon * unit_by_hand(cost, unit)
    expected = ot.sinkhorn(uniform, uniform, cost, epsilon, numItermax=10000, stopThr=1e-12)
    np.testing.assert_allclose(transport.plan.numpy(), expected, rtol=1e-2, atol=2e-6)
    assert expected.max() > 1.5 * expected.min()


def test_plan_at_the_default_epsilon_does_not_depend_on_the_length_of_the_vectors():
    plans = []
    for factor in (1.0, 1000.0):
        transport, (z_m, z_id) = Transport(settings(sinkhorn_iters=2000)), pair_of_views()
        transport.refresh(factor * z_m, factor * z_id)
        plans.append(transport.plan)
    torch.testing.assert_close(plans[0], plans[1], rtol=1e-2, atol=1e-5)


@pytest.mark.parametrize("z", [torch.zeros(10, 8), torch.ones(10, 8)], ids=["zeros", "ones"])
def test_plan_has_mass_one_for_equal_or_constant_views(z):
    transport = Transport(settings())
    transport.refresh(z, z)
    assert transport(z).isfinite().all() and transport.plan.sum().item() == pytest.approx(1, abs=1e-4)


def test_a_new_plan_starts_from_the_potential_of_the_last():
    transport, z_m, z_id = fresh_transport(sinkhorn_iters=10)
    error = transport.diagnostics()["row_error"].item()
    for _ in range(20):
        transport.refresh(z_m, z_id)
    assert transport.potential.abs().max() > 0
    assert transport.diagnostics()["row_error"].item() < max(error / 2, 1e-4)


def test_plan_and_potential_survive_the_state_dict():
    transport, z_m, _ = fresh_transport()
    other = Transport(settings())
    assert not torch.equal(other(z_m), transport(z_m))
    other.load_state_dict(transport.state_dict())
    assert torch.equal(other(z_m), transport(z_m))
    assert other.state_dict().keys() == {"residual", "plan", "potential", "figures"}
    for a, b in zip(other.diagnostics().values(), transport.diagnostics().values()):
        assert torch.equal(a, b)


# ---------------------------------------------------------------- transport


@pytest.mark.parametrize("kind", ["plan", "residual", "none", "full"])
@pytest.mark.parametrize("plan_scale, factor", [("barycentric", 8), ("mass", 1)])
def test_kinds_of_transport_by_hand(kind, plan_scale, factor):
    transport, z_m, z_id = fresh_transport(transport=kind, plan_scale=plan_scale)
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


def test_initial_residual():
    assert not Transport(settings(residual_init="zeros")).residual.any()
    bound = math.sqrt(6 / 16)
    residual = Transport(settings()).residual
    assert residual.abs().max() <= bound and residual.abs().max() > 0.8 * bound


@pytest.mark.parametrize("ot_cost, formula", [("l1", torch.abs), ("squared", torch.square)])
def test_w1_is_the_plan_times_the_cost_with_gradients_through_the_cost(ot_cost, formula):
    transport, z_m, z_id = fresh_transport(ot_cost=ot_cost, ot_scale=3.0)
    cost = 3 * formula(z_m[:, :, None] - z_id[:, None, :]).mean(0)
    expected = sum(transport.plan[i, j] * cost[i, j] for i in range(8) for j in range(8))
    w1 = transport.w1(z_m, z_id)
    torch.testing.assert_close(w1, expected, rtol=1e-5, atol=0)
    for mine, theirs in zip(torch.autograd.grad(w1, (z_m, z_id)), torch.autograd.grad(expected, (z_m, z_id))):
        assert theirs.abs().max() > 1e-4
        torch.testing.assert_close(mine, theirs, rtol=1e-4, atol=1e-6)


def test_diagnostics_of_a_transport_by_hand():
    transport, z_m, z_id = fresh_transport()
    with torch.no_grad():
        numbers = {name: float(value) for name, value in transport.diagnostics().items()}
    plan, x = transport.plan.double().numpy(), z_m.detach().double().numpy()
    residual = transport.residual.detach().double().numpy()
    entropy = -sum(t * math.log(t) for t in plan.ravel()) / math.log(64)
    assert numbers["mass"] == pytest.approx(1, abs=1e-4)
    assert numbers["entropy"] == pytest.approx(entropy, rel=1e-4)
    assert numbers["w1"] == pytest.approx(transport.w1(z_m, z_id).item(), rel=1e-5)
    assert numbers["row_error"] == pytest.approx(np.abs(plan.sum(1) - 1 / 8).sum(), abs=1e-5)
    assert numbers["ratio"] == pytest.approx(np.linalg.norm(8 * x @ plan) / np.linalg.norm(x), rel=1e-4)
    residual_ratio = np.linalg.norm(x @ residual) / np.linalg.norm(x)
    assert numbers["residual_ratio"] == pytest.approx(residual_ratio, rel=1e-4)


def test_diagnostics_of_many_items_come_from_every_nth():
    transport, (z_m, z_id) = Transport(settings()), pair_of_views(n=3000)
    transport.refresh(z_m, z_id)
    sample = z_m.detach()[::2]
    expected = (8 * sample @ transport.plan).norm() / sample.norm()
    torch.testing.assert_close(transport.diagnostics()["ratio"], expected)
    torch.testing.assert_close(transport.diagnostics()["w1"], transport.w1(z_m, z_id).detach())


def test_entropy_of_a_plan_of_one_dimension_is_finite():
    transport = Transport(settings(recdim=1, attn_heads=1))
    transport.refresh(*pair_of_views(d=1))
    assert transport.diagnostics()["entropy"].isfinite()


# ---------------------------------------------------------------- fusion


@pytest.mark.parametrize("fuse_norm", ["layer", "layer_l2"])
def test_a_layer_norm_of_one_number_is_refused(fuse_norm):
    one = dict(recdim=1, attn_heads=1)
    with pytest.raises(UserError, match=rf"--recdim 1 with --fuse_norm {fuse_norm}.*--fuse_norm none"):
        checked(settings(**one, fuse_norm=fuse_norm))
    assert checked(settings(**one, fuse_norm="none")).recdim == 1
    assert checked(settings(**one, model="lgn", fuse_norm=fuse_norm)).recdim == 1


def views_of(modalities):
    """ID vectors [20, 8] and {modality: vectors [20, 8]}."""
    views = {m: randn(20, 8, seed=s, dtype=torch.float32) for s, m in enumerate(modalities)}
    return randn(20, 8, seed=9, dtype=torch.float32), views


def normed(matrix, layer, l2):
    """Rows of a NumPy matrix, standardised (LayerNorm as initialised), then scaled to length 1."""
    if layer:
        matrix = (matrix - matrix.mean(1, keepdims=True)) / np.sqrt(matrix.var(1, keepdims=True) + 1e-5)
    return matrix / np.linalg.norm(matrix, axis=1, keepdims=True) if l2 else matrix


@pytest.mark.parametrize("fuse_input", ["raw", "l2"])
@pytest.mark.parametrize("modalities", SUBSETS)
@pytest.mark.parametrize("mode", ["oat", "concat", "sum", "sum_proj"])
def test_fusion_by_hand(mode, modalities, fuse_input):
    torch.manual_seed(0)
    kind, weights = mode.removesuffix("_proj"), {"beta": 0.6, "alpha": 0.1, "audio_weight": 0.2}
    config = settings(
        fusion=kind, sum_proj=int(mode == "sum_proj"), fuse_input=fuse_input, fuse_drop=0.5, **weights
    )
    fusion, (z_id, z) = Fusion(config, list(modalities)).eval(), views_of(modalities)
    if mode == "oat":
        for m in modalities:
            fusion.transports[m].refresh(z[m], z_id)
    out = fusion(z_id, z).detach().numpy()
    parts = [z_id.numpy(), *(z[m].numpy() for m in modalities)]
    if mode == "oat":
        matrices = [(8 * t.plan + t.residual).detach().numpy() for t in fusion.transports.values()]
        parts[1:] = [part @ matrix for part, matrix in zip(parts[1:], matrices)]
    if fuse_input == "l2":
        parts = [normed(part, False, True) for part in parts]
    if mode == "oat":
        shares = [{"text": 0.6, "image": 0.1, "audio": 0.2}[m] for m in modalities]
        expected = sum(share * part for share, part in zip([1 - sum(shares), *shares], parts))
    else:
        expected = np.concatenate(parts, 1) if mode == "concat" else sum(parts)
    if mode in ("concat", "sum_proj"):
        weight, bias = (p.detach().numpy() for p in fusion.project.parameters())
        expected = expected @ weight.T + bias
    np.testing.assert_allclose(out, normed(expected, True, True), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    "fuse_norm, layer, l2",
    [("layer_l2", True, True), ("layer", True, False), ("l2", False, True), ("none", False, False)],
)
def test_fuse_norm_by_hand(fuse_norm, layer, l2):
    z_id, z = views_of(["text"])
    out = Fusion(settings(fusion="sum", fuse_norm=fuse_norm), ["text"]).eval()(z_id, z)
    expected = normed((z_id + z["text"]).numpy(), layer, l2)
    np.testing.assert_allclose(out.detach().numpy(), expected, rtol=1e-4, atol=1e-5)


def test_fusion_dropout_acts_in_training_alone():
    z_id, z = views_of(["text"])
    torch.manual_seed(0)
    fusion = Fusion(settings(fuse_drop=0.5), ["text"])
    assert (fusion.train()(z_id, z) == 0).float().mean().item() == pytest.approx(0.5, abs=0.15)
    assert (fusion.eval()(z_id, z) == 0).sum() == 0


# ---------------------------------------------------------------- fusion weights


@pytest.mark.parametrize("learn", [0, 1])
def test_fusion_weights_have_gradients_only_if_they_are_learned(learn):
    z_id, z = views_of(["text", "image"])
    fusion = Fusion(settings(learn_fusion_weights=learn), ["text", "image"])
    (fusion(z_id, z) * randn(20, 8, seed=7, dtype=torch.float32)).sum().backward()
    assert fusion.weights.grad is None if not learn else (fusion.weights.grad.abs() > 1e-6).all()
    assert ("weights" in fusion.state_dict()) == bool(learn)


def test_fusion_weights_above_one_are_refused_with_the_names_of_their_flags():
    config = settings(beta=0.7, alpha=0.25, audio_weight=0.1)
    assert fusion_weights(config, ["text", "image"]) == [0.7, 0.25]
    assert fusion_weights(config, ["text", "audio"]) == [0.7, 0.1]
    message = r"--beta 0\.7 \+ --alpha 0\.25 \+ --audio_weight 0\.1 is more than 1"
    with pytest.raises(UserError, match=message):
        Fusion(config, ["text", "image", "audio"])


def test_fusion_weights_of_exactly_one_are_accepted():
    config = settings(beta=0.7, alpha=0.2, audio_weight=0.1)
    fusion = Fusion(config, ["text", "image", "audio"])
    assert fusion.weights.sum().item() == pytest.approx(1)


def test_fusion_weights_do_not_matter_for_other_kinds_of_fusion():
    fusion = Fusion(settings(beta=1.0, alpha=1.0, fusion="sum", fuse_norm="none"), ["text", "image"]).eval()
    z_id, z = torch.ones(2, 8), {"text": torch.full((2, 8), 2.0), "image": torch.full((2, 8), 4.0)}
    assert torch.equal(fusion(z_id, z), torch.full((2, 8), 7.0))
