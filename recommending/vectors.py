"""Final vectors of users and items with their names, those of cold items included."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from data.feature_files import load_features, open_features
from data.folders import dataset_folder
from data.formats import names_of, read_titles
from dataloader import Dataset
from layers.sparse import from_scipy, to_scipy
from models.base import ItemWeights, Recommender
from models.neighbours import new_item_weights
from utils import UserError
from world import Config


@dataclasses.dataclass(frozen=True)
class Vectors:
    """Final vectors and names of users and items. Cold items follow the n_known items of the catalogue."""

    user: torch.Tensor  # [U, d]
    item: torch.Tensor  # [I + cold, d]
    weights: ItemWeights | None  # see Recommender.item_weights
    user_ids: list[str]
    item_ids: list[str]
    titles: list[str] | None
    n_known: int  # I


def make_vectors(model: Recommender, dataset: Dataset, config: Config, cold: str) -> Vectors:
    """Vectors of a run and of the cold items in a folder ("": none). Raises UserError if ids do not fit."""
    data, (folder, _) = dataset.interactions, dataset_folder(config)
    user, item = model.final_vectors()
    weights = model.item_weights()
    user_ids = names_of(folder / "user_ids.tsv", len(user), "users")
    item_ids = names_of(folder / "item_ids.tsv", len(item), "items")
    titles = read_titles(folder / "item_text.jsonl", len(item))
    if cold:
        features = cold_features(Path(cold), model)
        parameter = next(model.parameters())
        vectors = model.cold_item_vectors({m: x.to(parameter) for m, x in features.items()})
        ids = names_of(Path(cold) / "item_ids.tsv", len(vectors), "items")
        cold_titles = read_titles(Path(cold) / "item_text.jsonl", len(vectors))
        known = set(item_ids).intersection(ids)
        if known:
            raise UserError(
                f"{cold}: item '{min(known)[:40]}' is in the data already; {cold}/item_ids.tsv must name new "
                "ids"
            )
        if titles is not None or cold_titles is not None:
            titles = (titles or [""] * len(item)) + (cold_titles or [""] * len(ids))
        item, item_ids = torch.cat([item, vectors]), item_ids + ids
        if weights is not None:
            allowed = {m: model.known_items(m) for m in features}
            weights = with_new_items(weights, features, dataset, config, allowed)
    return Vectors(user, item, weights, user_ids, item_ids, titles, data.n_items)


def cold_features(folder: Path, model: Recommender) -> dict[str, torch.Tensor]:
    """Features {modality: [n, d_m]} of the cold items in a folder, from its <modality>_feat.npy.

    Raises UserError if the model has no vectors for such items, or the features do not fit it.
    """
    features: dict[str, torch.Tensor] = {}
    sizes = model.feature_sizes()
    if not sizes:
        raise UserError(
            f"--cold_items: {model.config.model} has no vectors for items that were not in training"
        )
    for m, size in sizes.items():
        path = folder / f"{m}_feat.npy"
        array = open_features(path)
        if array.shape[1] != size or not len(array):
            raise UserError(
                f"{path}: is {array.shape[0]} x {array.shape[1]}; it must have {size} dimensions, as the "
                f"run's {m} "
                "features"
            )
        matrix = load_features(array, path, len(next(iter(features.values()), array)))
        if not matrix.any(1).all():
            raise UserError(
                f"{path}, row {matrix.any(1).argmin()}: is all zeros and has no neighbours; leave that item "
                "out"
            )
        features[m] = torch.from_numpy(matrix)
    return features


def with_new_items(
    weights: ItemWeights,
    features: dict[str, torch.Tensor],
    dataset: Dataset,
    config: Config,
    allowed: dict[str, torch.Tensor],
) -> ItemWeights:
    """The weights [I, I] with a column for each cold item of these features: [I, I + n].

    allowed: {m: [I] bool}, the items that may be their neighbours.
    """
    n, known = len(next(iter(features.values()))), to_scipy(weights.matrix)
    new = sp.csr_matrix((known.shape[0], n), dtype=np.float32)
    if config.neighbour_weight and config.neighbour_content:
        own = {m: dataset.features[m] for m in features}
        new = new_item_weights(config, own, {m: x.to(own[m].device) for m, x in features.items()}, allowed)
    matrix = from_scipy(sp.hstack([known, new], format="csr"), weights.matrix.device)
    return dataclasses.replace(weights, matrix=matrix)
