"""CPU and GPU compute the same: losses, gradients, plans, rankings, kNN graphs, and the quality of a run."""

import numpy as np
import pytest
import torch
from gpu_helpers import GPU, NEEDS_GPU, on_gpu, pair_of_models
from helpers import naive_neighbours, random_features, random_pairs
from model_helpers import (
    CPU,
    NO_DROPOUT,
    TRAINED,
    UNTRAINED,
    build,
    gradients,
    randn,
    repeating_batch,
    settings,
)
from small_runs import command_line, only, read_json

from data.formats import read_interactions
from data.graphs import nearest_neighbours
from data.synthetic import main as make_synthetic
from dataloader import Sampler
from layers.dropout import keep_mask
from layers.transport import sinkhorn_log
from main import main
from training.evaluation import final_scorer, make_splits
from training.ranking import evaluate, rank_items

pytestmark = NEEDS_GPU
EXACT = {name: changes for name, changes in TRAINED.items() if "precision" not in changes}


# ---------------------------------------------------------------- training


@pytest.mark.parametrize("changes", EXACT.values(), ids=EXACT)
def test_loss_and_gradients_in_float64(small_dataset, changes):
    results = []
    for model, batch in zip(
        pair_of_models(small_dataset, torch.float64, **NO_DROPOUT, **changes),
        (repeating_batch(), on_gpu(repeating_batch())),
    ):
        terms = model.loss(batch)
        terms["loss"].backward()
        grads = {name: grad for name, grad in gradients(model).items() if grad is not None}
        results.append([{name: x.detach().cpu() for name, x in part.items()} for part in (terms, grads)])
    torch.testing.assert_close(results[1], results[0], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("changes", EXACT.values(), ids=EXACT)
def test_losses_of_ten_steps(small_dataset, changes):
    """The models make their own plans and take the same batches."""
    data = read_interactions(small_dataset, min_items=30)
    batches = [batch for _ in range(3) for batch in Sampler(data.train, 30, 64, 5, CPU).epoch()][:10]
    losses = {CPU: [], GPU: []}
    models = pair_of_models(small_dataset, **NO_DROPOUT, **changes)
    for device, model in zip(losses, models):
        optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
        for step, batch in enumerate(batches):
            model.begin_step(step)
            loss = model.loss(batch if device == CPU else on_gpu(batch))["loss"]
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[device].append(float(loss))
    assert len(batches) == 10 and losses[GPU] == pytest.approx(losses[CPU], rel=1e-4)


def test_transport_plan():
    cost = randn(60, 60).abs()
    plans = [sinkhorn_log(cost.to(device), 0.05, 3000)[0].cpu() for device in (CPU, GPU)]
    torch.testing.assert_close(*plans, rtol=1e-2, atol=1e-6)


def test_sampler():
    train = random_pairs(0, 40, 30, 6)["train"]
    first, again = (list(Sampler(train, 30, 50, 7, GPU).epoch()) for _ in range(2))
    assert all(torch.equal(a, b) for x, y in zip(first, again) for a, b in zip(x, y))
    users, pos, neg = (torch.cat(parts).tolist() for parts in list(zip(*first))[:3])
    assert sorted(zip(users, pos)) == sorted(map(tuple, train.tolist()))
    assert not {*zip(users, neg)} & {*map(tuple, train.tolist())}


@pytest.mark.parametrize("p", [0.1, 0.5])
def test_dropout_masks(p):
    mask = keep_mask(torch.zeros(1000, 1001, device=GPU), p)
    assert {*mask.unique().tolist()} == {0.0, 1.0}
    assert float(mask.mean()) == pytest.approx(1 - p, abs=2e-3)
    assert float(mask.mean(1).std()) == pytest.approx((p * (1 - p) / 1001) ** 0.5, rel=0.15)


# ---------------------------------------------------------------- evaluation and graphs


ALL = {**TRAINED, **UNTRAINED}


@pytest.mark.parametrize("changes", ALL.values(), ids=ALL)
def test_evaluation(small_dataset, changes):
    data, config = read_interactions(small_dataset, min_items=30), settings(**changes)
    results = []
    for device in (CPU, GPU):
        model = build(small_dataset, **changes).to(device)
        splits = make_splits(data, config, device)
        with final_scorer(model, data, config) as scorer:
            lists = [top.cpu() for _, _, top, _ in rank_items(scorer, splits[1], 5)]
            results.append((evaluate(scorer, splits, (3, 5)), torch.cat(lists)))
    (metrics, lists), (gpu_metrics, gpu_lists) = results
    # Where two scores differ by rounding alone, their order may differ.
    assert gpu_metrics[0] == pytest.approx(metrics[0], abs=0.02)
    assert (lists == gpu_lists).double().mean() > 0.97


def test_nearest_neighbours():
    features = random_features(300, 6)
    features[[3, 20]] = 0
    np.testing.assert_array_equal(nearest_neighbours(features, 4, GPU, 128), naive_neighbours(features, 4))


# ---------------------------------------------------------------- runs


@pytest.mark.parametrize("model", ["lgn", "lgn_mm"])
def test_quality_after_three_epochs(tmp_path, model):
    """The means over seeds differ by less than four standard errors: the two draw other random numbers."""
    make_synthetic(["small", "--data_root", str(tmp_path), "--users", "1500", "--items", "700"])
    metrics = {0: [], 1: []}
    for cuda, found in metrics.items():
        for seed in range(5):
            runs = tmp_path / f"{cuda}_{seed}"
            changes = dict(
                model=model, recdim=32, attn_heads=4, epochs=3, lr=5e-3, topks=(20,), bpr_batch=512
            )
            assert main(command_line(tmp_path / "small", runs, cuda=cuda, seed=seed, **changes)) == 0
            result = read_json(only(runs))
            assert result["device"].startswith("cuda") == bool(cuda)
            found.append(result["test"]["recall@20"])
    cpu, gpu = (np.array(values) for values in metrics.values())
    error = ((cpu.var(ddof=1) + gpu.var(ddof=1)) / 5) ** 0.5
    assert abs(cpu.mean() - gpu.mean()) < 4 * error + 1e-3
