"""How a model is scored on a split: its final vectors, the splits with their masks, and all metrics.

valid, test = make_splits(dataset.interactions, config, device)
[metrics] = score(model, dataset.interactions, [valid], config)      # {"recall@20": 0.11, ...}
"""

from __future__ import annotations

import contextlib
import typing
from collections.abc import Iterator, Mapping

import numpy as np
import torch

from data.formats import Interactions
from dataloader import HeldOut, held_out, pairs_to_rows
from layers.columns import all_parts
from layers.device import on_cpu
from models.base import Recommender
from training.beyond import beyond_accuracy
from training.cold import warm_and_cold
from training.parallel import all_columns_of_own_users
from training.ranking import evaluate, top_items
from training.scoring import Scorer
from world import Config

Metrics = dict[str, float]
Result = dict[str, typing.Any]  # the content of result.json


def make_splits(data: Interactions, config: Config, device: torch.device) -> tuple[HeldOut, HeldOut]:
    """The split that selects the best epoch, and the test split, each with its masks."""
    masked = [data.train, data.valid] if config.mask_valid_at_test else [data.train]
    test = held_out(data.test, masked, device)
    return (test if config.select_on == "test" else held_out(data.valid, [data.train], device)), test


@contextlib.contextmanager
def scoring_mode(model: Recommender, config: Config) -> Iterator[None]:
    """Eval and inference mode; with --eval_dropout 1, dropout stays on.

    Restores the mode of the model, and leaves the random numbers of training as they are.
    """
    training, device = model.training, next((t.device for t in model.parameters()), torch.device("cpu"))
    model.eval()
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.train(bool(config.eval_dropout))
    devices = [] if on_cpu(device) else [device]
    try:
        with torch.inference_mode(), torch.random.fork_rng(devices, enabled=bool(config.eval_dropout)):
            yield
    finally:
        model.train(training)


def make_scorer(model: Recommender, data: Interactions) -> Scorer:
    """Scorer of the model's vectors in its present mode; of several processes each scores its own users."""
    user, item = model.final_vectors()
    user, users = all_columns_of_own_users(user)
    weights, history = model.item_weights(), None
    if weights is not None:
        crow, items = pairs_to_rows(data.train, data.n_users, weights.matrix.device)
        history = (crow if users is None else crow[users.start : users.stop + 1]), items
    return Scorer(user, all_parts(item, 1), weights, history, users)


@contextlib.contextmanager
def final_scorer(model: Recommender, data: Interactions, config: Config) -> Iterator[Scorer]:
    """Scorer of the model's final vectors, in scoring mode."""
    with scoring_mode(model, config):
        yield make_scorer(model, data)


def scored_parts(
    model: Recommender, data: Interactions, split: HeldOut, config: Config
) -> Iterator[tuple[Scorer, HeldOut]]:
    """The users of a split and their scorer; with --eval_dropout_users n, n users after n users.

    Each part then has dropout masks of its own. To be used in scoring mode.
    """
    size = config.eval_dropout_users if config.eval_dropout else 0
    for rows in torch.arange(len(split.users), device=split.users.device).split(size or len(split.users)):
        yield make_scorer(model, data), split.select(rows)


def score(model: Recommender, data: Interactions, splits: list[HeldOut], config: Config) -> list[Metrics]:
    """Metrics of a model on each split. With --eval_dropout 1 all have the same dropout masks."""
    if not (config.eval_dropout and config.eval_dropout_users):
        with scoring_mode(model, config):
            return evaluate(make_scorer(model, data), splits, config.topks, config.eval_chunk)
    found = []
    for split in splits:
        with scoring_mode(model, config):
            found.append(score_parts(model, data, split, config)[0])
    return found


def ranked_lists(model: Recommender, data: Interactions, split: HeldOut, config: Config) -> torch.Tensor:
    """The best items of the users of a split, as many as the largest K: [n, K]."""
    with scoring_mode(model, config):
        parts = scored_parts(model, data, split, config)
        return torch.cat(
            [top_items(scorer, part, max(config.topks), config.eval_chunk) for scorer, part in parts]
        )


def score_parts(
    model: Recommender, data: Interactions, split: HeldOut, config: Config, k: int = 0
) -> tuple[Metrics, list[torch.Tensor]]:
    """Metrics over all parts of a split, and the best k items of its users [rows, k], part after part."""
    sums: Metrics = {}
    lists: list[torch.Tensor] = []
    for scorer, part in scored_parts(model, data, split, config):
        [metrics] = evaluate(scorer, [part], config.topks, config.eval_chunk)
        sums = {name: sums.get(name, 0.0) + len(part.users) * value for name, value in metrics.items()}
        if k:
            lists.append(top_items(scorer, part, k, config.eval_chunk))
    # Divided once, so that a mean of ones is 1.
    return {name: total / len(split.users) for name, total in sums.items()}, lists


def beyond(lists: torch.Tensor, data: Interactions, config: Config) -> Metrics:
    """Metrics beyond accuracy of the best items of users [n, k]."""
    users, items = data.train.T
    popularity = np.bincount(items, minlength=data.n_items)
    return beyond_accuracy(lists.cpu().numpy(), popularity, len(np.unique(users)), config.topks)


def cold_results(
    model: Recommender, data: Interactions, splits: Mapping[str, HeldOut], config: Config
) -> Result:
    """The entry "cold_items" of result.json, for data with items that are held out entirely; else {}."""
    if not len(data.cold_items):
        return {}
    entry: Result = {
        "items": len(data.cold_items),
        "vectors": "features" if model.replaces_cold_items() else "model",
    }
    with scoring_mode(model, config):
        scorer = make_scorer(model, data)
        for name, split in splits.items():
            entry[name] = warm_and_cold(scorer, split, data.cold_items, config.topks, config.eval_chunk)
    return {"cold_items": entry}
