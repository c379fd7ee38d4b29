"""Every model trained by one, two and four processes: the same loss, gradients and tables."""

import functools

import pytest
import torch
from helpers import dataset_of, write_small_dataset
from model_helpers import build
from parallel_helpers import in_processes

from dataloader import Sampler
from layers.columns import all_parts, share_of
from training.adam import Adam

STEPS = 10
DROPOUT = {"attn_dropout": 0.2, "feat_dropout": 0.2, "branch_dropout": 0.2, "fuse_drop": 0.2}
RECGOAT = {"model": "lgn_mm", "recdim": 8, "attn_heads": 4, "plan_every": 3, **DROPOUT}
CASES = {
    "mf": {"model": "mf"},
    "lgn": {"model": "lgn"},
    "vbpr": {"model": "vbpr"},
    "freedom": {"model": "freedom"},
    "oat": RECGOAT,
    "oat everything": {
        **RECGOAT,
        "user_text_feat": "mean",
        "w1_weight": 0.1,
        "modality_decay": 0.1,
        "modality_consistency_weight": 0.5,
        "contrastive_dedup": 0,
        "contrastive_items": "pos_neg",
        "fuse_input": "l2",
        "feat_proj": 1,
        "learn_fusion_weights": 1,
        "item_branch_layers": 1,
    },
    "oat squared": {
        **RECGOAT,
        "ot_cost": "squared",
        "transport": "plan",
        "sinkhorn": "exp",
        "ot_unit": "mean",
    },
    "oat residual": {**RECGOAT, "transport": "residual", "fuse_norm": "layer"},
    "sum": {**RECGOAT, "fusion": "sum", "fuse_norm": "l2"},
    "sum projected": {**RECGOAT, "fusion": "sum", "sum_proj": 1, "item_branch_layers": 3},
    "concat": {**RECGOAT, "fusion": "concat", "fuse_norm": "none"},
    "plan of the batch": {
        **RECGOAT,
        "plan_from": "batch",
        "knn_graph": "directed",
        "attn_bias": 0,
        "w1_weight": 0.1,
    },
    "plan of a forward pass": {
        **RECGOAT,
        "modalities": ("text",),
        "plan_from": "forward",
        "absent_modality": "id",
        "attn_init": "dgl",
        "contrastive_sign": "repel",
        "w1_weight": 0.1,
    },
}


# {number of processes: cases}; with four processes each model and each fusion once
CASES_OF = {2: list(CASES), 4: ["mf", "lgn", "vbpr", "freedom", "oat everything", "sum projected", "concat"]}
BF16 = {"oat bf16": {**RECGOAT, "precision": "bf16"}}


def train(folder, dtype, cases):
    """{case: (losses of ten steps, whole gradients of the first step, whole weights after the last)}."""
    return {case: train_case(folder, dtype, {**CASES, **BF16}[case]) for case in cases}


def train_case(folder, dtype, changes):
    model = build(folder, bpr_batch=77, **changes).to(dtype).train()
    optimizer = Adam(model.parameters(), lr=0.01, fused=True)
    sampler = Sampler(dataset_of(model.config).interactions.train, 30, 77, seed=3, device=torch.device("cpu"))
    batches = [batch for _ in range(3) for batch in sampler.epoch()][:STEPS]
    assert min(len(batch.users) for batch in batches) < 4  # some processes have no anchor of their own
    losses = []
    for step, batch in enumerate(batches):
        model.begin_step(step)
        terms = model.loss(batch)
        optimizer.zero_grad()
        terms["loss"].backward()
        if not step:
            gradients = whole(model, lambda parameter: parameter.grad)
        optimizer.step()
        losses.append({name: value.item() for name, value in terms.items()})
    figures = {name: value.item() for name, value in model.diagnostics().items()}
    return losses, gradients, whole(model, lambda parameter: parameter.data), figures


def whole(model, part):
    """{name: part(parameter)} of a model, assembled from all processes."""
    tensors = {}
    for name, parameter in model.named_parameters():
        tensor, share = part(parameter), share_of(parameter)
        if tensor is None:  # a residual that the transport does not use
            continue
        tensors[name] = tensor if share is None else all_parts(tensor, share.dim, size=share.size)
    return tensors


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_small_dataset(tmp_path_factory.mktemp("parallel"))


@pytest.fixture(scope="module")
def results(folder):
    """{number of processes: results of each process}."""
    found = {1: [train(folder, torch.float64, CASES)]}
    for p, cases in CASES_OF.items():
        found[p] = in_processes(p, train, folder, torch.float64, cases)
    return found


@pytest.mark.parametrize("p, case", [(p, case) for p, cases in CASES_OF.items() for case in cases])
def test_losses_gradients_and_tables_equal_those_of_one_process(results, p, case):
    expected, found = results[1][0][case], [result[case] for result in results[p]]
    for result in found:
        torch.testing.assert_close(result, expected, rtol=1e-10, atol=1e-10)
    for result in found[1:]:  # copies do not drift apart
        torch.testing.assert_close(result, found[0], rtol=0, atol=0)


def test_in_float32_losses_and_gradients_differ_by_rounding_alone(folder):
    """Adam divides a gradient by its own size, so weights whose gradient is almost zero differ more."""
    train_all = functools.partial(train, folder, torch.float32, ["oat everything", "sum projected"])
    expected = train_all()
    for found in in_processes(2, train_all):
        for case, (losses, gradients, weights, _) in found.items():
            torch.testing.assert_close((losses, gradients), expected[case][:2], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(weights, expected[case][2], rtol=1e-4, atol=1e-4)


def test_with_bf16_products_losses_differ_by_their_rounding_alone(folder):
    train_all = functools.partial(train, folder, torch.float32, list(BF16))
    [(expected, *_)], processes = train_all().values(), in_processes(2, train_all)
    for [(found, *_)] in (results.values() for results in processes):
        for step, terms in zip(found, expected):
            assert step == pytest.approx(terms, rel=5e-3)
