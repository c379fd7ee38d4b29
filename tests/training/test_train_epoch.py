"""One epoch of training, and scoring a model: what they compute, and what they leave unchanged."""

import dataclasses
import math

import pytest
import torch
from helpers import dataset_of
from small_runs import CPU, small_config, train

import procedure
from dataloader import Sampler
from models.mf import MF
from procedure import train_epoch
from session import make_model
from training.evaluation import make_splits, score
from training.run import Progress
from world import seed_everything


def after_one_epoch(folder, **changes):
    """(model after one epoch in training mode, its dataset and config)."""
    config = small_config(folder, **changes)
    seed_everything(0)
    dataset = dataset_of(config)
    model = make_model(config, dataset, CPU)
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), 0.01)
    train_epoch(model, optimizer, Sampler(dataset.interactions.train, 30, 64, 0, CPU), Progress())
    return model, dataset, config


def test_an_epoch_sums_the_loss_terms_and_keeps_the_last_gradient_norm(small_dataset):
    config = small_config(small_dataset, model="mf")
    seed_everything(0)
    dataset = dataset_of(config)
    model, twin = MF(config, dataset), MF(config, dataset)
    twin.load_state_dict(model.state_dict())

    def sampler():
        return Sampler(dataset.interactions.train, 30, 100, 0, CPU)

    progress, losses = Progress(), []
    assert train_epoch(model, torch.optim.SGD(model.parameters(), 0.5), sampler(), progress)
    for batch in sampler().epoch():
        loss = twin.loss(batch)["loss"]
        grads = torch.autograd.grad(loss, (twin.user, twin.item))
        losses.append(loss.item())
        with torch.no_grad():
            for p, g in zip((twin.user, twin.item), grads):
                p -= 0.5 * g
    assert len(losses) > 1 and progress.step == len(losses)
    assert float(progress.sums["loss"]) == pytest.approx(sum(losses), rel=1e-5)
    norm = math.sqrt(sum(float((g**2).sum()) for g in grads))
    assert float(progress.grad_norm) == pytest.approx(norm, rel=1e-5)
    torch.testing.assert_close(model.user, twin.user)


def test_begin_step_gets_the_number_of_the_step_before_each_loss(small_dataset, monkeypatch):
    calls, loss = [], MF.loss
    monkeypatch.setattr(MF, "begin_step", lambda self, step: calls.append(step))
    monkeypatch.setattr(MF, "loss", lambda self, batch: calls.append("loss") or loss(self, batch))
    train(small_dataset, model="mf", epochs=2)
    steps = 2 * math.ceil(39 * 6 / 64)
    assert calls == [call for step in range(steps) for call in (step, "loss")]


@pytest.mark.parametrize("mode", [True, False])
def test_scoring_is_deterministic_and_changes_nothing(small_dataset, mode):
    model, dataset, config = after_one_epoch(small_dataset, attn_dropout=0.5, fuse_drop=0.5)
    model.train(mode)
    data = dataset.interactions
    splits = list(make_splits(data, config, CPU))
    state, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    assert score(model, data, splits, config) == score(model, data, splits, config)
    assert all(module.training == mode for module in model.modules())
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), generator)


def test_eval_dropout_scores_with_dropout_and_changes_nothing(small_dataset):
    changes = dict(attn_dropout=0.5, fuse_drop=0.5, eval_dropout=1, plan_every=1)
    model, dataset, config = after_one_epoch(small_dataset, **changes)
    data = dataset.interactions
    splits = [make_splits(data, config, CPU)[0]]
    state, generator = {k: v.clone() for k, v in model.state_dict().items()}, torch.get_rng_state()
    noisy = score(model, data, splits, config)
    assert torch.equal(torch.get_rng_state(), generator) and model.training
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert noisy != score(model, data, splits, dataclasses.replace(config, eval_dropout=0))


def test_each_part_of_the_users_is_scored_with_masks_of_its_own(small_dataset, monkeypatch):
    changes = dict(fuse_drop=0.5, eval_dropout=1, topks=(5,))
    model, dataset, config = after_one_epoch(small_dataset, **changes)
    data, items, embeddings = dataset.interactions, [], type(model).embeddings

    def spy(self, *rows):
        items.append(embeddings(self, *rows))
        return items[-1]

    monkeypatch.setattr(type(model), "embeddings", spy)
    parts = dataclasses.replace(config, eval_dropout_users=15)
    split = make_splits(data, config, CPU)[1]
    [metrics] = score(model, data, [split], parts)
    assert len(split.users) == 40 and len(items) == 3
    assert not torch.equal(items[0][1], items[1][1]) and torch.equal(items[0][0], items[1][0])
    hits = []
    for number, user in enumerate(split.users.tolist()):
        scores = items[number // 15][0][user] @ items[number // 15][1].T
        scores[[item for owner, item in data.train.tolist() if owner == user]] = -torch.inf
        [relevant] = [item for owner, item in data.test.tolist() if owner == user]
        hits.append(relevant in scores.topk(5).indices.tolist())
    assert metrics["recall@5"] == pytest.approx(sum(hits) / 40)
    items.clear()
    score(model, data, [split], dataclasses.replace(parts, eval_dropout=0))
    assert len(items) == 1


@pytest.mark.parametrize("eval_dropout", [0, 1])
def test_scoring_on_the_cpu_saves_the_random_state_of_no_gpu(small_dataset, monkeypatch, eval_dropout):
    """By default, fork_rng saves and restores the state of every GPU of the machine."""
    model, dataset, config = after_one_epoch(small_dataset, eval_dropout=eval_dropout)
    saved, original = [], torch.random.fork_rng

    def fork_rng(devices=None, *arguments, **named):
        saved.append(devices)
        return original(devices, *arguments, **named)

    monkeypatch.setattr(torch.random, "fork_rng", fork_rng)
    score(model, dataset.interactions, [make_splits(dataset.interactions, config, CPU)[1]], config)
    assert saved == [[]]


def test_an_interrupted_evaluation_leaves_the_log_and_the_checkpoint_of_the_one_before(
    small_dataset, monkeypatch
):
    original, calls = procedure.score, []

    def fail_at_the_second(*arguments):
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return original(*arguments)

    monkeypatch.setattr(procedure, "score", fail_at_the_second)
    with pytest.raises(KeyboardInterrupt):
        train(small_dataset)
    (folder,) = (small_dataset.parent.parent / "runs").iterdir()
    assert len((folder / "metrics.jsonl").read_text().splitlines()) == 1
    assert torch.load(folder / "best.pt", weights_only=True)["progress"]["epoch"] == 1
    assert not (folder / "result.json").exists() and not list(folder.glob(".*tmp"))
