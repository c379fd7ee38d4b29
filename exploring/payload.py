"""All data of the page as one JSON value. page.js reads it; names there and here are the same."""

from __future__ import annotations

import typing
from collections.abc import Sequence

import numpy as np
import torch

from data.feature_files import feature_paths, load_features, open_features
from data.folders import dataset_folder
from data.formats import Interactions
from exploring.items import Near, agreement, item_map, near_by_cosine, near_by_users, on_grid
from exploring.packing import Packed, pack, pack_ids, pack_rows
from exploring.runs import LoadedRun, lists_of

MAX_USERS = 20_000
NEIGHBOURS = 8  # of an item that are shown, by each similarity
AGREEMENT_NEIGHBOURS = 10  # of an item by a modality, with which modalities are compared
UNKNOWN = 255  # the agreement of an item without features

Array = np.ndarray


def shown_users(data: Interactions) -> list[int]:
    """Users with held-out items; of more than MAX_USERS an even sample."""
    users = np.unique(np.concatenate([data.valid[:, 0], data.test[:, 0]]))
    if len(users) > MAX_USERS:
        users = users[np.linspace(0, len(users) - 1, MAX_USERS).round().astype(int)]
    return users.tolist()


def rows_of(pairs: Array, users: Sequence[int]) -> list[list[int]]:
    """The items of each of these users in pairs [n, 2]."""
    items: dict[int, list[int]] = {user: [] for user in users}
    for user, item in pairs.tolist():
        if user in items:
            items[user].append(item)
    return list(items.values())


def users_payload(run: LoadedRun, users: Sequence[int]) -> dict[str, typing.Any]:
    """Names and items of the users that are shown."""
    data, largest = run.dataset.interactions, len(run.vectors.item)
    splits = {name: rows_of(getattr(data, name), users) for name in ("train", "valid", "test")}
    names = {"ids": [run.vectors.user_ids[user] for user in users]}
    return names | {name: pack_rows(rows, largest) for name, rows in splits.items()}


def features_of(run: LoadedRun) -> dict[str, Array]:
    """Features of the items by modality, also of a run whose model does not use them."""
    if run.dataset.features:
        return {m: matrix.float().cpu().numpy() for m, matrix in run.dataset.features.items()}
    paths = feature_paths(run.config, dataset_folder(run.config)[0])
    return {m: load_features(open_features(path), path, len(run.vectors.item)) for m, path in paths.items()}


def similarities(run: LoadedRun, features: dict[str, Array], device: torch.device) -> dict[str, Near]:
    """The nearest items of each item by each modality, by ID vector, and by the users that have both."""
    kinds = {m: near_by_cosine(matrix, AGREEMENT_NEIGHBOURS, device) for m, matrix in features.items()}
    own = run.explainer.parts.get("id", run.explainer.parts.get("vectors"))
    if own is not None:
        kinds["id"] = near_by_cosine(own.astype(np.float32), NEIGHBOURS, device)
    return kinds | {"together": near_by_users(run.explainer.history, NEIGHBOURS)}


def pack_near(near: Near, n_items: int) -> dict[str, Packed]:
    """The first NEIGHBOURS of each item and their values; counts of users are exact."""
    items, values = near.items[:, :NEIGHBOURS], near.values[:, :NEIGHBOURS]
    counts = np.issubdtype(values.dtype, np.integer)
    packed = pack_ids(values, int(values.max(initial=0))) if counts else pack(values, "bf16")
    return {"items": pack_ids(items, n_items), "values": packed}


def pack_agreement(agrees: Array) -> Packed:
    """Numbers from 0 to 1 in 254 steps, and UNKNOWN for NaN; agrees: [I]."""
    return pack(np.where(np.isnan(agrees), UNKNOWN, np.round((UNKNOWN - 1) * agrees)), "u8")


def items_payload(run: LoadedRun, method: str) -> dict[str, typing.Any]:
    """Names, popularity, places and neighbours of all items."""
    data, vectors, features = run.dataset.interactions, run.vectors, features_of(run)
    n_items, device = len(vectors.item), vectors.item.device
    count = np.bincount(data.train[:, 1], minlength=n_items)
    on_map = run.explainer.item if run.explainer.parts else next(iter(features.values()), None)
    near, agrees = similarities(run, features, device), None
    if len(features) > 1:
        first, second = list(features)[:2]
        agrees = pack_agreement(agreement(near[first], near[second], features[second], device))
    return {
        "ids": vectors.item_ids,
        "titles": vectors.titles,
        "count": pack_ids(count, int(count.max())),
        "places": None if on_map is None else pack(on_grid(item_map(on_map, method)), "u16"),
        "agreement": agrees,
        "agreementOf": list(features)[:2],
        "near": {kind: pack_near(each, n_items) for kind, each in near.items()},
    }


def payload(
    runs: Sequence[LoadedRun], names: Sequence[str], k: int, exclude: Sequence[str], method: str
) -> dict[str, typing.Any]:
    """The data of the page: users and items as the first run names them, and the lists of each run."""
    first = runs[0]
    users = shown_users(first.dataset.interactions)
    lists = [lists_of(run, users, k, exclude) for run in runs]
    return {
        "dataset": first.config.dataset,
        "topk": k,
        "neighbours": min(NEIGHBOURS, len(first.vectors.item) - 1),
        "map": method,
        "excluded": list(exclude),
        "users": users_payload(first, users),
        "items": items_payload(first, method),
        "runs": [{"name": name, **each} for name, each in zip(names, lists, strict=True)],
    }
