"""The textbook that the benchmarks compare with: the same loss, gradients and metrics as the program."""

import sys
from pathlib import Path

import pytest
import torch

sys.path.append(str(Path(__file__).resolve().parents[1] / "benchmarks"))

import bench
import step
import textbook

from data.graphs import nearest_neighbours
from dataloader import Sampler
from model import make_model
from procedure import make_splits
from training.ranking import evaluate

CPU = torch.device("cpu")


def model_and_graphs(**changes):
    """A RecGOAT of the tiny shape in eval mode with a new plan, its dataset, and the textbook's graphs."""
    config = bench.baby_command(recdim=16, item_knn_k=5, **changes)
    dataset = bench.make_dataset(
        bench.SHAPES["tiny"], config, CPU, neighbours=lambda matrix: nearest_neighbours(matrix, 5, CPU)
    )
    torch.manual_seed(0)
    model = make_model(config, dataset, CPU).eval()
    _, z_id, z = model.represent()
    for m in model.modalities:
        model.fusion.transports[m].refresh(z[m], z_id)
    return (
        model,
        dataset,
        {
            "adjacency": textbook.coo_adjacency(dataset.adjacency),
            **{m: textbook.edge_index(g) for m, g in dataset.graphs.items()},
        },
    )


@pytest.mark.parametrize("ot_cost", ["l1", "squared"])
def test_loss_and_gradients_are_those_of_the_textbook(ot_cost):
    model, dataset, graphs = model_and_graphs(ot_cost=ot_cost, sinkhorn_iters=1000)
    batch = next(Sampler(dataset.interactions.train, dataset.interactions.n_items, 512, 0, CPU).epoch())
    ours, theirs = model.loss(batch)["loss"], textbook.loss(model, graphs, *batch[:3])
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    for a, b in zip(
        *(torch.autograd.grad(loss, weights, allow_unused=True) for loss in (ours, theirs)), strict=True
    ):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()) + 1e-9)


def test_the_step_benchmark_times_training_with_dropout_and_plans_and_compares_the_same_loss(
    monkeypatch, tmp_path
):
    monkeypatch.setattr(bench, "CACHE", tmp_path)
    monkeypatch.setattr(step, "keep_freed_memory", lambda: None)
    config = bench.baby_command(recdim=16, item_knn_k=5, bpr_batch=512, sinkhorn_iters=1000)
    sides = [kind(bench.SHAPES["tiny"], config, "", CPU) for kind in (step.Ours, step.Textbook)]
    losses = [side.loss() for side in sides]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)
    assert all(module.training for side in sides for module in side.model.modules())
    ours = sides[0]
    plans, refresh = [], type(ours.model.fusion.transports["text"]).refresh
    monkeypatch.setattr(
        type(ours.model.fusion.transports["text"]),
        "refresh",
        lambda *parts: plans.append(1) or refresh(*parts),
    )
    ours.seconds()
    assert len(plans) == len(ours.model.modalities)  # one of its steps takes new plans


def test_bf16_changes_the_loss_by_little_and_the_gradient_direction_hardly():
    model, dataset, _ = model_and_graphs()
    narrow, _, _ = model_and_graphs(precision="bf16")
    assert narrow.text_features.dtype == torch.bfloat16
    narrow.load_state_dict(model.state_dict())
    batch = next(Sampler(dataset.interactions.train, dataset.interactions.n_items, 512, 0, CPU).epoch())
    grads = []
    for each in (model, narrow):
        loss = each.loss(batch)["loss"]
        loss.backward()
        grads.append(
            (loss.item(), torch.cat([p.grad.flatten() for p in each.parameters() if p.grad is not None]))
        )
    assert grads[0][0] == pytest.approx(grads[1][0], rel=1e-3) and grads[0][0] != grads[1][0]
    assert torch.nn.functional.cosine_similarity(grads[0][1], grads[1][1], dim=0) > 0.999


def test_metrics_are_those_of_the_textbook():
    model, dataset, _ = model_and_graphs()
    with torch.no_grad():
        user, item = model.embeddings()
    data, lists = dataset.interactions, {}
    for split in ("train", "valid", "test"):
        lists[split] = {}
        for u, i in getattr(data, split).tolist():
            lists[split].setdefault(u, []).append(i)
    results = evaluate(user, item, make_splits(data, model.config, CPU), (5, 20))
    for split, result in zip(("valid", "test"), results, strict=True):
        assert result == pytest.approx(
            textbook.evaluate(user, item, lists["train"], lists[split], (5, 20)), rel=1e-9
        )
