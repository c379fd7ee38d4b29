"""The lists of a run with their explanations, packed for the page."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from data.folders import dataset_folder
from data.formats import interactions_hash
from dataloader import Dataset
from exploring.packing import pack, pack_ids
from models.base import Recommender
from models.registry import label
from recommending.explanations import BECAUSE, Explainer, make_explainer
from recommending.lists import list_scorer, top_lists, users_query
from recommending.vectors import Vectors, make_vectors
from utils import UserError
from world import Config


@dataclasses.dataclass(frozen=True)
class LoadedRun:
    """A run, ready to make lists."""

    model: Recommender
    dataset: Dataset
    config: Config
    vectors: Vectors
    explainer: Explainer


def load(model: Recommender, dataset: Dataset, config: Config) -> LoadedRun:
    """A loaded run with its vectors and its explainer."""
    vectors = make_vectors(model, dataset, config, "")
    return LoadedRun(model, dataset, config, vectors, make_explainer(model, dataset))


def check_same_data(first: LoadedRun, second: LoadedRun) -> None:
    """Raise UserError unless two runs have the same interactions."""
    hashes = {interactions_hash(run.dataset.interactions) for run in (first, second)}
    if len(hashes) > 1:
        folders = [str(dataset_folder(run.config)[0]) for run in (first, second)]
        raise UserError(
            f"--compare: the runs have different interactions ({' and '.join(folders)}); name a run on the "
            "same data"
        )


def run_names(runs: Sequence[LoadedRun], paths: Sequence[str]) -> list[str]:
    """A short name for each run: its own or its model's, and what it takes to tell them apart.

    That is the name of the folder, else the path, else a number. paths: run folders or checkpoints, as the
    user names them.
    """
    names = [run.config.name or label(run.config.model) for run in runs]
    folders = [path if path.is_dir() else path.parent for path in map(Path, paths)]
    for added in (None, [folder.resolve().name for folder in folders], paths):
        shown = [f"{name} ({more})" for name, more in zip(names, added, strict=True)] if added else names
        if len(set(shown)) == len(shown):
            return shown
    return [f"{name} {number}" for number, name in enumerate(names, 1)]


def lists_of(run: LoadedRun, users: Sequence[int], k: int, exclude: Sequence[str]) -> dict[str, typing.Any]:
    """Items, parts of the scores and reasons of the best k items of each of these users, packed.

    items: [n, k]; parts: [n, k, parts], which sum to the scores; because: [n, k, 3] items of the user, and
    adds: what each adds. I stands for "none".
    """
    n_items, names = len(run.vectors.item), run.explainer.names
    query = users_query(users, exclude, run.vectors, run.dataset)
    scorer = list_scorer(query, run.vectors.item, run.vectors.weights)
    items = np.full((len(users), k), n_items)
    because = np.full((len(users), k, BECAUSE), n_items)
    parts, adds = np.zeros((len(users), k, len(names))), np.zeros((len(users), k, BECAUSE))
    for start, lists in top_lists(scorer, query.seen, k, run.config.eval_chunk):
        for row, (top, _) in enumerate(lists, start):
            why = run.explainer.explain(users[row], top)
            items[row, : len(top)] = top
            parts[row, : len(top)] = np.stack([why.parts[name] for name in names], 1)
            for rank, reasons in enumerate(why.because):
                for n, (item, value) in enumerate(reasons):
                    because[row, rank, n], adds[row, rank, n] = item, value
    return {
        "items": pack_ids(items, n_items),
        "partNames": names,
        "parts": pack(parts, "f32"),
        "because": pack_ids(because, n_items),
        "adds": pack(adds, "bf16"),
    }
