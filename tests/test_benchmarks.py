"""The benchmarks time the program, and their textbook has its loss, gradients and metrics."""

import argparse
import json
import typing
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from benchmarks import bench, evaluate, item_weights, profile_step, step, textbook
from data.graphs import nearest_neighbours
from dataloader import Batch, Dataset, Sampler
from model import RecGOAT, Transport
from training import ranking
from training.evaluation import make_splits
from training.scoring import Scorer

CPU = torch.device("cpu")
TINY = bench.SHAPES["tiny"]


def make_model(**changes: typing.Any) -> tuple[RecGOAT, Dataset]:
    """A RecGOAT of the tiny shape in eval mode with fresh transport plans, and its dataset."""
    config = bench.baby_config(recdim=16, item_knn_k=5, **changes)
    dataset = bench.make_dataset(
        TINY, config, CPU, find_neighbours=lambda matrix: nearest_neighbours(matrix, 5, CPU)
    )
    torch.manual_seed(0)
    model = RecGOAT(config, dataset).eval()
    model.begin_step(0)
    return model, dataset


@pytest.mark.parametrize("text", ["5x5x100", "5x5x22", "0x5x5"])
def test_a_shape_of_more_interactions_than_pairs_is_refused(text):
    with pytest.raises(argparse.ArgumentTypeError, match="interactions, with validation and test"):
        bench.parse_shape(text)
    assert bench.parse_shape("5x5x21").splits == (21, 2, 2)


def first_batch(dataset: Dataset) -> Batch:
    """A batch of 512 training triples."""
    data = dataset.interactions
    return next(Sampler(data.train, data.n_items, 512, 0, CPU).epoch())


@pytest.mark.parametrize("ot_cost", ["l1", "squared"])
def test_textbook_has_the_same_loss_and_gradients(ot_cost):
    model, dataset = make_model(ot_cost=ot_cost, sinkhorn_iters=1000)
    batch, graphs = first_batch(dataset), textbook.graphs_of(model)
    ours = model.loss(batch)["loss"]
    theirs = textbook.loss(model, graphs, batch.users, batch.pos, batch.neg)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=0)
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    gradients = [torch.autograd.grad(loss, weights, allow_unused=True) for loss in (ours, theirs)]
    for a, b in zip(*gradients, strict=True):
        assert (a is None) == (b is None)
        if a is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3 * float(b.abs().max()) + 1e-9)


def test_step_benchmark_times_training_and_compares_the_same_loss(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "CACHE", tmp_path)
    monkeypatch.setattr(step, "keep_freed_memory", lambda: None)
    config = bench.baby_config(recdim=16, item_knn_k=5, bpr_batch=512, sinkhorn_iters=1000)
    ours, theirs = step.Ours(TINY, config, "", CPU), step.Textbook(TINY, config, "", CPU)
    assert ours.loss() == pytest.approx(theirs.loss(), rel=1e-5)
    # Dropout is on again after the comparison.
    assert all(module.training for side in (ours, theirs) for module in side.model.modules())
    refreshed, refresh = [], Transport.refresh
    monkeypatch.setattr(Transport, "refresh", lambda *args: refreshed.append(1) or refresh(*args))
    before = [weight.clone() for weight in ours.model.parameters()]
    for _ in range(2):
        refreshed.clear()
        ours.seconds()
        # One of the plan_every steps refreshes the plan of each modality.
        assert len(refreshed) == len(ours.model.modalities)
    assert not any(torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True))


def test_phases_of_a_step_leave_the_weights_unchanged(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "CACHE", tmp_path)
    monkeypatch.setattr(step, "keep_freed_memory", lambda: None)
    config = bench.baby_config(recdim=16, item_knn_k=5, bpr_batch=512)
    ours = step.Ours(TINY, config, "", CPU)
    before = [weight.clone() for weight in ours.model.parameters()]
    phases = step.make_phases(ours.model, ours.batches[0])
    assert list(phases) == [
        "LightGCN",
        "attention, text",
        "attention, image",
        "transport and fusion",
        "InfoNCE",
        "plan refresh",
    ]
    for phase in phases.values():
        phase.call()
        assert phase.nbytes > 0 and phase.operations > 0
    assert all(torch.equal(a, b) for a, b in zip(before, ours.model.parameters(), strict=True))
    # Together the phases reach every weight that a step trains.
    assert all(weight.grad is not None for weight in ours.model.parameters() if weight.requires_grad)


def test_profile_of_a_step_names_its_operations(monkeypatch, tmp_path):
    monkeypatch.setattr(bench, "CACHE", tmp_path)
    monkeypatch.setattr(step, "keep_freed_memory", lambda: None)
    args = SimpleNamespace(shape=TINY, data="", recdim=16, batch=512, precision="fp32")
    figures = profile_step.measure(args, CPU)
    seconds = [operation["seconds"] for operation in figures["operations"].values()]
    assert seconds == sorted(seconds, reverse=True) and 0 < figures["busy"] < 10
    # Forward and backward pass: a sampled product of each modality.
    assert figures["operations"]["aten::sparse_sampled_addmm"]["calls"] == 2
    lines = profile_step.table(figures, 3).splitlines()
    assert len(lines) == 4 and lines[1].split()[0] == next(iter(figures["operations"]))


def test_bf16_changes_loss_and_gradient_direction_slightly():
    model, dataset = make_model()
    narrow, _ = make_model(precision="bf16")
    assert narrow.text_features.dtype == torch.bfloat16
    narrow.load_state_dict(model.state_dict())
    batch, losses, gradients = first_batch(dataset), [], []
    for candidate in (model, narrow):
        loss = candidate.loss(batch)["loss"]
        loss.backward()
        losses.append(loss.item())
        gradients.append(torch.cat([p.grad.flatten() for p in candidate.parameters() if p.grad is not None]))
    assert losses[0] == pytest.approx(losses[1], rel=1e-3)
    assert losses[0] != losses[1]
    assert torch.nn.functional.cosine_similarity(*gradients, dim=0) > 0.999


def test_textbook_has_the_same_metrics():
    model, dataset = make_model()
    with torch.no_grad():
        user, item = model.embeddings()
    data = dataset.interactions
    train, *held_out = (
        evaluate.items_by_user(pairs, data.n_users) for pairs in (data.train, data.valid, data.test)
    )
    results = ranking.evaluate(Scorer(user, item), make_splits(data, model.config, CPU), (5, 20))
    for relevant, result in zip(held_out, results, strict=True):
        assert result == pytest.approx(textbook.evaluate(user, item, train, relevant, (5, 20)), rel=1e-9)


def test_evaluation_benchmark_can_rank_without_the_prefilter(monkeypatch):
    rng = np.random.default_rng(0)
    data = bench.make_interactions(bench.parse_shape("200x6000x4000"))
    # So many items that the prefilter has an effect.
    user, item = (
        torch.from_numpy(rng.standard_normal((rows, 8), dtype=np.float32))
        for rows in (data.n_users, data.n_items)
    )
    splits = make_splits(data, bench.baby_config(), CPU)
    misses, original = [], ranking.certain_misses

    def spy(*args):
        misses.append(original(*args))
        return misses[-1]

    monkeypatch.setattr(ranking, "certain_misses", spy)
    with evaluate.prefilter(True):
        filtered = ranking.evaluate(Scorer(user, item), splits, (5, 20))
    assert misses and all(found.any() for found in misses)
    misses.clear()
    with evaluate.prefilter(False):
        assert ranking.evaluate(Scorer(user, item), splits, (5, 20)) == filtered
    assert not misses
    assert ranking.certain_misses is spy


def test_item_weights_counts_the_weights_and_times_the_evaluation(tmp_path, monkeypatch, capsys):
    path = tmp_path / "figures.json"
    flags = "--shape tiny --train_steps 2 --repeats 1 --cuda 0 --keep 0 5 --json"
    monkeypatch.setattr("sys.argv", ["item_weights.py", *flags.split(), str(path)])
    assert item_weights.main() == 0
    figures = json.loads(path.read_text())
    every, kept = (found["entries"] for found in figures["weights"])
    assert kept == 5 * TINY.items < every
    assert figures["evaluation"].keys() == {"without", "keep all", "keep 5"}
    assert "times as long as without" in capsys.readouterr().out
