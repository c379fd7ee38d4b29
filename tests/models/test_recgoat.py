"""RecGOAT's vectors, loss and training steps, compared with the paper's formulas over all items."""

import itertools
import math

import numpy as np
import pytest
import torch
from helpers import dataset_of
from model_helpers import CPU, NO_DROPOUT, SMALL, batch_of, build, gradients, repeating_batch, settings
from torch.nn import functional as F
from torch_geometric.nn import GATConv

from model import RecGOAT
from models.registry import checked
from parse import parse_args
from session import make_model
from utils import UserError

SUBSETS = [c for n in (1, 2, 3) for c in itertools.combinations(("text", "image", "audio"), n)]
ALL = ("text", "image", "audio")


# ---------------------------------------------------------------- vectors


@pytest.mark.parametrize("plan_from, same", [("batch", True), ("items", False)])
def test_cold_items_are_transported_by_the_plan_of_all_others(small_dataset, plan_from, same):
    model = build(small_dataset, plan_from=plan_from).eval()
    features = {m: torch.randn(2, size) for m, size in model.feature_sizes().items()}
    with torch.no_grad():
        before = model.cold_item_vectors(features)
        for m in model.fused:
            model.fusion.transport(m).plan.zero_()  # the stored plan
        assert torch.equal(model.cold_item_vectors(features), before) == same


def test_eta_mixes_user_vectors(small_dataset):
    model = build(small_dataset, user_text_feat="mean", eta=0.3).eval()
    with torch.no_grad():
        mixed = model.embeddings()[0]
        text = model.user_branch(model.user_graph, model.user_features)
        torch.testing.assert_close(mixed, 0.7 * model.backbone.embeddings()[0] + 0.3 * text)
    assert (text.abs().amax(1) > 0).float().mean() > 0.9


def test_user_vectors_without_user_text_are_those_of_lightgcn(small_dataset):
    model = build(small_dataset, eta=0.3)
    assert torch.equal(model.embeddings()[0], model.backbone.embeddings()[0])


def branch_by_hand(layers, x, edges):
    """Attention layers by GATConv over these edges, LeakyReLU after each."""
    for layer in layers:
        oracle = GATConv(x.shape[1], 4, 2, add_self_loops=False)
        theirs = oracle.lin.weight, oracle.att_src, oracle.att_dst, oracle.bias
        with torch.no_grad():
            for target, source in zip(theirs, (layer.weight, layer.a_src, layer.a_dst, layer.bias)):
                target.copy_(source.view_as(target))
        x = F.leaky_relu(oracle(x, torch.tensor(sorted(edges)).T), 0.2)
    return x


def cosine_edges(x, k):
    """{(source, target)} of the graph of the k nearest rows by cosine similarity, found by sorting."""
    unit, n = x / np.linalg.norm(x, axis=1, keepdims=True), len(x)
    edges = {(i, i) for i in range(n)}
    for i in range(n):
        nearest = sorted((j for j in range(n) if j != i), key=lambda j: -float(unit[i] @ unit[j]))[:k]
        edges |= {edge for j in nearest for edge in ((i, j), (j, i))}
    return edges


@torch.no_grad()
def test_item_branches_equal_gatconv_on_the_nearest_items(small_dataset):
    model = build(small_dataset).eval()
    for m in ("text", "image"):
        x = np.load(small_dataset / f"{m}_feat.npy").astype(np.float32)
        expected = branch_by_hand(model.branches[m].layers, torch.from_numpy(x), cosine_edges(x, 4))
        torch.testing.assert_close(model.represent()[2][m], expected, rtol=1e-4, atol=1e-5)


def test_settings_of_the_branches_reach_them(small_dataset):
    changes = dict(feat_proj=1, item_branch_layers=3, user_branch_layers=1, user_text_feat="mean")
    model = build(small_dataset, feat_dropout=0.3, branch_dropout=0.2, attn_dropout=0.4, **changes)
    for branch, d_in, layers in ((model.branches["text"], 12, 3), (model.user_branch, 12, 1)):
        assert branch.project.weight.shape == (8, d_in)
        assert [layer.weight.shape for layer in branch.layers] == [(8, 8)] * layers
        assert (branch.before.p, branch.after.p) == (0.3, 0.2)
        assert all(layer.attn_dropout.p == 0.4 and layer.heads == 2 for layer in branch.layers)
    assert not torch.equal(model.train().embeddings()[1], model.embeddings()[1])
    assert torch.equal(model.eval().embeddings()[1], model.embeddings()[1])


# ---------------------------------------------------------------- the loss


@pytest.mark.parametrize("user_text", ["", "mean"])
@pytest.mark.parametrize("fusion", ["oat", "concat", "sum"])
@pytest.mark.parametrize("modalities", SUBSETS)
def test_loss_is_finite_and_gradients_reach_every_parameter(small_dataset, fusion, modalities, user_text):
    if user_text and "text" not in modalities:
        modalities = ("text", *modalities)
    model = build(
        small_dataset,
        modalities,
        fusion=fusion,
        user_text_feat=user_text,
        learn_fusion_weights=1,
        w1_weight=0.1,
        modality_consistency_weight=0.5,
        sum_proj=1,
    )
    model.train().begin_step(0)
    terms = model.loss(repeating_batch())
    assert all(value.isfinite() and value.ndim == 0 for value in terms.values())
    terms["loss"].backward()
    dead = {
        name
        for name, gradient in gradients(model).items()
        if gradient is None or not gradient.any() or not gradient.isfinite().all()
    }
    assert not dead
    names = gradients(model).keys()
    assert {"backbone.user", "backbone.item"} <= names
    assert any(name.startswith("user_branch") for name in names) == bool(user_text)
    for m in modalities:
        assert any(name.startswith(f"branches.{m}.") for name in names)
        assert (f"fusion.transports.{m}.residual" in names) == (fusion == "oat")


def terms_by_hand(model, batch):
    """Loss terms from the vectors of ALL users and items, indexed by the ids of the triples."""
    config, (users, pos, neg) = model.config, batch[:3]
    user, z_id, z = model.represent()
    item = model.embeddings()[1]
    transports = model.fusion.transports if config.fusion == "oat" else {}

    def nce(a, b, target):
        scores = F.normalize(a) @ F.normalize(b).T / config.temperature
        return F.cross_entropy(scores, torch.tensor(target))

    def pairs(ids):
        ids = sorted(set(ids)) if config.contrastive_dedup else ids
        views = [z_id[ids], *(v[ids] for v in z.values())]
        return [nce(a, b, list(range(len(ids)))) for a, b in itertools.combinations(views, 2)]

    def squared(*vectors):
        return sum((v**2).sum(1) for v in vectors).mean()

    modality_nces = pairs(pos.tolist())
    if config.contrastive_items == "pos_neg":
        modality_nces += pairs(neg.tolist())
    candidates = sorted(set(pos.tolist())) if config.contrastive_dedup else pos.tolist()
    target = (
        [candidates.index(p) for p in pos.tolist()] if config.contrastive_dedup else list(range(len(pos)))
    )
    ids, seen = model.backbone, sorted({*pos.tolist(), *neg.tolist()})
    return {
        "bpr": -F.logsigmoid((user[users] * (item[pos] - item[neg])).sum(1)).mean(),
        "norm": squared(ids.user[users], ids.item[pos], ids.item[neg]),
        "modality_norm": sum(squared(v[pos], v[neg]) for v in z.values()),
        "modality_nce": sum(modality_nces)
        / (len(modality_nces) if config.contrastive_reduction == "mean" else 1),
        "user_item_nce": nce(user[users], item[candidates], target),
        # W1 is over the unique items of the batch.
        "w1": sum(
            (t.plan * (z[m][seen][:, :, None] - z_id[seen][:, None, :]).abs().mean(0)).sum()
            for m, t in transports.items()
        ),
    }


def loss_by_hand(model, batch):
    """Weighted sum of terms_by_hand, and the contrastive term among them."""
    config, terms = model.config, terms_by_hand(model, batch)
    w = config.modality_consistency_weight
    attract = config.contrastive_sign == "attract"
    modality = terms["modality_nce"] if attract else 1 - terms["modality_nce"]
    terms["contrastive"] = w * modality + (1 - w) * terms["user_item_nce"]
    weights = {
        "bpr": 1,
        "norm": config.decay,
        "modality_norm": config.modality_decay,
        "contrastive": config.contrastive_weight,
        "w1": config.w1_weight,
    }
    return {"loss": sum(weight * terms[name] for name, weight in weights.items()), **terms}


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
    model = build(
        small_dataset,
        ALL,
        contrastive_dedup=dedup,
        contrastive_reduction=reduction,
        contrastive_items=items,
        contrastive_sign=sign,
        contrastive_weight=0.7,
        modality_consistency_weight=0.3,
        modality_decay=0.05,
        w1_weight=0.4,
        decay=0.2,
        user_text_feat="mean",
    )
    model.begin_step(0)
    batch = repeating_batch()
    with torch.no_grad():
        terms, expected = model.eval().loss(batch), loss_by_hand(model, batch)
    assert terms.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(terms[name], value, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"item_branch_layers": 2, "feat_proj": 1, "user_text_feat": "mean"},
        {"fusion": "concat", "user_text_feat": "mean", "layer": 0},
        {"transport": "residual", "modality_decay": 0.3, "modality_consistency_weight": 0.4},
        {"w1_weight": 0.5, "ot_scale": 1.0, "learn_fusion_weights": 1},
    ],
)
def test_a_step_on_the_rows_of_a_batch_has_the_loss_and_gradients_of_all_rows(small_dataset, changes):
    results = []
    for loss in (lambda model, batch: model.loss(batch), loss_by_hand):
        model = build(small_dataset, **NO_DROPOUT, **changes).train()
        model.begin_step(0)
        terms = loss(model, repeating_batch())
        terms["loss"].backward()
        results.append((terms["loss"].detach(), gradients(model)))
    torch.testing.assert_close(*results, rtol=1e-4, atol=1e-6)


def test_contrastive_term_of_the_paper_is_the_sum_over_modality_pairs_alone(small_dataset):
    terms = build(small_dataset).loss(repeating_batch())
    assert "user_item_nce" not in terms and "w1" not in terms
    assert torch.equal(terms["contrastive"], terms["modality_nce"])
    without = build(small_dataset, contrastive_weight=0.0)
    assert set(without.loss(repeating_batch())) == {"loss", "bpr", "norm"}


def test_repeated_items_count_once_in_the_modality_term(small_dataset):
    positives = [9, 3, 3, 4, 9, 9], [3, 4, 9]
    batches = [batch_of([0] * len(pos), pos, [1] * len(pos)) for pos in positives]
    for dedup in (1, 0):
        model = build(small_dataset, contrastive_dedup=dedup).eval()
        with torch.no_grad():
            a, b = (model.loss(batch)["modality_nce"] for batch in batches)
        assert torch.isclose(a, b, rtol=1e-5) == bool(dedup)


def test_repel_reverses_the_gradient_of_the_modality_term(small_dataset):
    found = {}
    for sign in ("attract", "repel"):
        model = build(small_dataset, contrastive_sign=sign, **NO_DROPOUT)
        model.loss(repeating_batch())["contrastive"].backward()
        found[sign] = {name: grad for name, grad in gradients(model).items() if grad is not None}
    assert found["attract"].keys() == found["repel"].keys() and len(found["attract"]) > 8
    for name, grad in found["attract"].items():
        torch.testing.assert_close(found["repel"][name], -grad)


def test_attract_aligns_the_modalities_and_repel_does_not(small_dataset):
    changes = {}
    for sign in ("attract", "repel"):
        model = build(small_dataset, contrastive_sign=sign, contrastive_weight=1.0, **NO_DROPOUT)
        optimizer, losses = torch.optim.Adam(model.parameters(), 0.01), []
        for step in range(20):
            model.begin_step(step)
            terms = model.loss(repeating_batch())
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            losses.append(terms["modality_nce"].item())
        changes[sign] = losses[-1] - losses[0]
    assert changes["attract"] < -0.5 < 0 < changes["repel"]


# ---------------------------------------------------------------- the transport plans


def plans_of(model):
    """Copies of the plans of a model, by modality."""
    return {m: transport.plan.clone() for m, transport in model.fusion.transports.items()}


def test_plans_are_refreshed_every_plan_every_steps(small_dataset):
    model, changed = build(small_dataset, plan_every=3), []
    for step in range(7):
        before = plans_of(model)
        with torch.no_grad():
            model.backbone.item += torch.randn_like(model.backbone.item)
        model.begin_step(step)
        changed.append({m for m, plan in plans_of(model).items() if not torch.equal(plan, before[m])})
    assert changed == [{"text", "image"}, set(), set(), {"text", "image"}, set(), set(), {"text", "image"}]


@torch.no_grad()
def test_plans_come_from_the_vectors_of_all_items_without_dropout(small_dataset):
    dropout = dict(attn_dropout=0.5, feat_dropout=0.5, branch_dropout=0.5)
    model, plain = (build(small_dataset, **changes) for changes in (dropout, {}))
    _, z_id, z = plain.eval().represent()
    for m, transport in plain.fusion.transports.items():
        transport.refresh(z[m], z_id)
    state = torch.get_rng_state()
    model.train().begin_step(0)
    # Neither the mode nor the random numbers of training depend on a refresh.
    assert model.training and all(module.training for module in model.modules())
    assert torch.equal(torch.get_rng_state(), state)
    torch.testing.assert_close(plans_of(model), plans_of(plain))
    torch.testing.assert_close(
        model.fusion.transports["text"].figures, plain.fusion.transports["text"].figures
    )
    model.eval().begin_step(10)
    assert not model.training


@pytest.mark.parametrize("changes", [{"transport": "residual"}, {"transport": "none"}, {"fusion": "sum"}])
def test_a_config_without_plans_computes_and_logs_none(small_dataset, changes):
    model = build(small_dataset, **changes)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    model.begin_step(0)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.images() == {} and not any(name.startswith("plan/") for name in model.diagnostics())


def test_a_resumed_run_continues_with_its_plan(small_dataset):
    """A plan in the state dict is used until the next step at which plans are refreshed."""
    model, resumed = build(small_dataset, plan_every=4), build(small_dataset, seed=1, plan_every=4)
    model.begin_step(0)
    with torch.no_grad():
        model.backbone.item += 1
    resumed.load_state_dict(model.state_dict())
    for step in (1, 4):
        results = []
        for each in (model, resumed):
            torch.manual_seed(5)
            each.train().begin_step(step)
            results.append(each.loss(repeating_batch())["loss"])
        assert torch.equal(*results)


# ---------------------------------------------------------------- recipes, settings, state


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_training_step_of_the_released_recipe(small_dataset, precision):
    flags = {
        "recipe": "released",
        "dataset": "small",
        "data_root": small_dataset.parent,
        "precision": precision,
        "user_text_feat": "mean",
        **SMALL,
        "topks": 5,
    }
    config, _ = parse_args([str(word) for name, value in flags.items() for word in (f"--{name}", value)])
    torch.manual_seed(0)
    model = make_model(config, dataset_of(config), CPU)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    model.train().begin_step(0)
    terms = model.loss(repeating_batch())
    contrastive = 0.5 * terms["user_item_nce"].item() + 0.5 * (1 - terms["modality_nce"].item())
    assert terms["contrastive"].item() == pytest.approx(contrastive, abs=1e-5)
    terms["loss"].backward()
    torch.optim.Adam(model.parameters(), 0.01).step()
    for name, parameter in model.named_parameters():
        assert parameter.isfinite().all() and not torch.equal(parameter, before[name])


def test_heads_that_do_not_divide_the_embedding_size_are_refused():
    with pytest.raises(UserError, match=r"--recdim 10 is not divisible by --attn_heads 4"):
        checked(settings(recdim=10, attn_heads=4))
    assert checked(settings(recdim=12, attn_heads=4)).recdim == 12


@pytest.mark.parametrize("changes", [{"fusion": "sum"}, {"transport": "none"}, {"transport": "residual"}])
def test_w1_needs_a_plan(changes):
    with pytest.raises(UserError, match=r"--w1_weight 0\.1 needs a transport plan"):
        checked(settings(w1_weight=0.1, **changes))
    assert checked(settings(**changes)) and checked(settings(w1_weight=0.1))


def test_other_models_take_settings_that_do_not_fit_recgoat():
    # Other models have no attention heads.
    assert checked(settings(model="lgn", recdim=10, attn_heads=4)).recdim == 10


@pytest.mark.parametrize("fusion", ["oat", "concat"])
def test_diagnostics_are_finite_numbers(small_dataset, fusion):
    model = build(small_dataset, fusion=fusion)
    model.begin_step(0)
    with torch.no_grad():
        numbers = {name: float(value) for name, value in model.eval().diagnostics().items()}
    assert all(map(math.isfinite, numbers.values()))
    lengths = np.linalg.norm(model.backbone.user.detach().numpy(), axis=1)
    assert numbers["norm/user"] == pytest.approx(lengths.mean(), rel=1e-5)
    assert ("plan/text/w1" in numbers) == (fusion == "oat")
    if fusion == "oat":
        assert numbers["plan/text/w1"] > 0
        shares = [numbers[f"fusion/{view}"] for view in ("text", "image", "id")]
        assert shares == pytest.approx([0.8, 0.05, 0.15], rel=1e-5)


def test_images_are_the_plans(small_dataset):
    model = build(small_dataset)
    model.begin_step(0)
    images = model.images()
    assert images.keys() == {"plan/text", "plan/image"}
    for m, transport in model.fusion.transports.items():
        assert torch.equal(images[f"plan/{m}"].matrix, transport.plan)
        assert images[f"plan/{m}"][1:] == (f"dimension of {m}", "dimension of ID")
    assert build(small_dataset, fusion="sum").images() == {}


def test_features_and_graphs_are_not_in_the_state_dict_and_plans_are(small_dataset):
    names = set(build(small_dataset, user_text_feat="mean").state_dict())
    assert not {name for name in names if "features" in name or "graph" in name or "adjacency" in name}
    plans = {f"fusion.transports.{m}.{name}" for m in ("text", "image") for name in ("plan", "residual")}
    assert {*plans, "user_branch.layers.0.weight", "backbone.user"} <= names


def test_search_space_omits_settings_without_effect(small_dataset):
    space = RecGOAT.search_space(settings(), ["text"])
    assert "beta=0.02..0.6:log" in space and not any(entry.startswith("alpha") for entry in space)
    space = RecGOAT.search_space(settings(contrastive_weight=0.0, fusion="sum"), ["text"])
    assert not any(entry.startswith(("beta", "modality_consistency_weight")) for entry in space)
