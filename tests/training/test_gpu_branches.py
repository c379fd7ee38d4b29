"""The GPU branches of the code, run on the CPU, for every model: steps, evaluations, graphs, whole runs."""

import numpy as np
import pytest
import torch
from helpers import naive_neighbours, random_features
from model_helpers import (
    CPU,
    NO_DROPOUT,
    TRAINED,
    UNTRAINED,
    build,
    choose_gpu_branches,
    gradients,
    repeating_batch,
    settings,
)
from resume_helpers import STEPS, assert_same, command, interrupt
from small_runs import only, read_json, read_metrics

from data.formats import read_interactions
from data.graphs import nearest_neighbours
from main import main
from models.base import Recommender
from models.registry import MODELS, find_model
from training.evaluation import final_scorer, make_splits
from training.ranking import evaluate, rank_items


def on_both(monkeypatch, call):
    """Results of a call in the CPU branches and in the GPU branches."""
    first = call()
    with monkeypatch.context() as context:
        choose_gpu_branches(context)
        return first, call()


def test_the_cases_are_all_models_and_fusions():
    cases = [settings(**changes) for changes in (*TRAINED.values(), *UNTRAINED.values())]
    assert {config.model for config in cases} == {*MODELS}
    assert {config.fusion for config in cases} == {"oat", "concat", "sum"}


# ---------------------------------------------------------------- a training step


@pytest.mark.parametrize("changes", TRAINED.values(), ids=TRAINED)
def test_training_step(monkeypatch, small_dataset, changes):
    # Both make the step from one plan: Sinkhorn ends early on the CPU alone.
    model = build(small_dataset, **NO_DROPOUT, **changes).to(torch.float64).train()
    model.begin_step(0)

    def step():
        model.zero_grad()
        terms = model.loss(repeating_batch())
        terms["loss"].backward()
        return {name: value.detach() for name, value in terms.items()}, gradients(model)

    cpu, gpu = on_both(monkeypatch, step)
    assert cpu[0].keys() == gpu[0].keys()
    rounding = {"rtol": 1e-2, "atol": 1e-5} if "precision" in changes else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(gpu, cpu, **rounding)


@pytest.mark.parametrize("name", ["freedom", "oat", "users"])
def test_state_before_a_step(monkeypatch, small_dataset, name):
    def begin():
        model = build(small_dataset, sinkhorn_iters=1000, **NO_DROPOUT, **TRAINED[name]).to(torch.float64)
        model.train().begin_step(0)
        return {name: buffer for name, buffer in model.named_buffers() if buffer.is_floating_point()}

    cpu, gpu = on_both(monkeypatch, begin)
    torch.testing.assert_close(gpu, cpu, rtol=1e-2, atol=1e-4)


# ---------------------------------------------------------------- evaluation and graphs


@pytest.mark.parametrize("changes", [*TRAINED.values(), *UNTRAINED.values()], ids=[*TRAINED, *UNTRAINED])
def test_evaluation(monkeypatch, small_dataset, changes):
    data = read_interactions(small_dataset, min_items=30)
    config = settings(**changes)

    def score():
        model = build(small_dataset, **NO_DROPOUT, **changes)
        splits = make_splits(data, config, CPU)
        with final_scorer(model, data, config) as scorer:
            lists = [top for _, _, top, _ in rank_items(scorer, splits[1], 5)]
            return evaluate(scorer, splits, (3, 5)), torch.cat(lists).tolist()

    (metrics, lists), (gpu_metrics, gpu_lists) = on_both(monkeypatch, score)
    assert lists == gpu_lists
    assert [*map(pytest.approx, metrics)] == gpu_metrics
    assert 0 < metrics[0]["recall@5"] < 1


def test_nearest_neighbours(monkeypatch):
    features = random_features(50, 6)
    features[[3, 20]] = 0
    cpu, gpu = on_both(monkeypatch, lambda: nearest_neighbours(features, 4, CPU, block=16))
    np.testing.assert_array_equal(gpu, cpu)
    np.testing.assert_array_equal(gpu, naive_neighbours(features, 4))


# ---------------------------------------------------------------- runs


def train_whole(small_dataset, runs, **changes):
    """Run folder of a run of three epochs."""
    assert main(command(small_dataset, runs, **changes)) == 0
    return only(runs)


@pytest.mark.parametrize("model", MODELS)
def test_a_run_has_the_losses_of_the_cpu_branches_and_can_be_resumed(
    small_dataset, tmp_path, monkeypatch, model
):
    changes = {"model": model, "epochs": 3, "eval_every": 1, **NO_DROPOUT}
    cpu = read_metrics(train_whole(small_dataset, tmp_path / "cpu", **changes))
    choose_gpu_branches(monkeypatch)
    whole = train_whole(small_dataset, tmp_path / "gpu", **changes)
    for line, expected in zip(read_metrics(whole), cpu, strict=True):
        assert line["train"] == pytest.approx(expected["train"], rel=1e-3)
    if find_model(model).loss is Recommender.loss:  # nothing to interrupt
        assert read_json(whole)["test"] == read_json(only(tmp_path / "cpu"))["test"]
        return
    cut, code = interrupt(small_dataset, tmp_path / "cut", monkeypatch, STEPS + 3, **changes)
    assert code == 143 and main(["--resume", str(cut)]) == 0
    assert_same(whole, cut)
