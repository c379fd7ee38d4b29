"""Vectors of a run for other programs: .npz, .safetensors, a faiss index, a folder for the Hugging Face Hub.

    export_arrays(vectors, "vectors.safetensors")      # and vectors.user_ids.tsv, vectors.item_ids.tsv
    export_index(vectors, "items.faiss")               # inner products; row = line of the item ids
    export_hub(vectors, config, result, "my-model")    # embeddings, ids, settings and a model card

The score of user u and item i is user[u] . item[i]. A model with item-to-item weights W adds

    factor * sum over the TRAIN items j of u of W[j, i]

and its exports have W in CSR form: weights_rows [I + 1] (pointers), weights_columns and weights_values [n],
weights_factor and weights_spread. Where weights_spread is 1, both terms are first divided by their standard
deviations over the items, for each user.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterable
from pathlib import Path

import numpy as np

from models.base import ItemWeights
from models.registry import is_external, label
from outgoing import tsv_line
from recommending.card import card
from recommending.flags import HUB_FILES
from recommending.vectors import Vectors
from utils import UserError, atomic_write, write_json, write_text
from world import Config

Arrays = dict[str, np.ndarray]


def arrays_of(vectors: Vectors) -> Arrays:
    """User [U, d] and item [I, d] in float32, and W with its factor, if the run has it."""
    arrays = {name: getattr(vectors, name).float().cpu().numpy() for name in ("user", "item")}
    arrays |= {} if vectors.weights is None else weights_arrays(vectors.weights)
    return {name: np.ascontiguousarray(array) for name, array in arrays.items()}


def weights_arrays(weights: ItemWeights) -> Arrays:
    """W [I, I] in CSR form, its factor, and whether terms are divided by their standard deviations."""
    matrix = weights.matrix.cpu()
    return {
        "weights_rows": matrix.crow_indices().numpy(),
        "weights_columns": matrix.col_indices().numpy(),
        "weights_values": matrix.values().float().numpy(),
        "weights_factor": np.array([weights.factor], np.float32),
        "weights_spread": np.array([weights.spread], np.int32),
    }


def export_arrays(vectors: Vectors, path: str) -> list[str]:
    """Write vectors, W and ids to a .npz (arrays of numbers and text, no pickle) or .safetensors, atomically.

    A .safetensors holds no text: the ids are in <name>.user_ids.tsv and <name>.item_ids.tsv beside it.
    Returns the names of all files.
    """
    if not path.endswith(".safetensors"):
        arrays: dict[str, typing.Any] = {**arrays_of(vectors)}
        arrays |= {"user_ids": np.array(vectors.user_ids), "item_ids": np.array(vectors.item_ids)}
        with atomic_write(path) as file:
            np.savez(file, **arrays)
        return [path]
    stem = path.removesuffix(".safetensors")
    files = [path, f"{stem}.user_ids.tsv", f"{stem}.item_ids.tsv"]
    write_safetensors(path, arrays_of(vectors))
    write_ids(files[1], vectors.user_ids)
    write_ids(files[2], vectors.item_ids)
    return files


def export_index(vectors: Vectors, path: str) -> list[str]:
    """Write a faiss index of the item vectors by inner product, and the ids of its rows beside it."""
    if not vectors.item.shape[1]:
        raise UserError("--export_faiss: this model has no vectors; take --export_embeddings for its weights")
    import faiss  # an optional dependency, whose presence recommend.py has checked

    index = faiss.IndexFlatIP(vectors.item.shape[1])
    index.add(vectors.item.float().cpu().contiguous().numpy())
    with atomic_write(path) as file:
        file.write(faiss.serialize_index(index).tobytes())
    write_ids(f"{path}.item_ids.tsv", vectors.item_ids)
    return [path, f"{path}.item_ids.tsv"]


def export_hub(vectors: Vectors, config: Config, result: dict[str, typing.Any], folder: str) -> list[str]:
    """Write a folder in the layout of the Hugging Face Hub: HUB_FILES. Nothing is uploaded."""
    target = Path(folder)
    try:
        target.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be created ({error.strerror}); name another folder") from None
    arrays = arrays_of(vectors)
    text = card(config, result, {name: array.shape for name, array in arrays.items()})
    embeddings, user_ids, item_ids, settings, readme = (target / name for name in HUB_FILES)
    write_safetensors(embeddings, arrays)
    write_ids(user_ids, vectors.user_ids)
    write_ids(item_ids, vectors.item_ids)
    write_json(settings, shared_settings(config))
    write_text(readme, text)
    return [str(target / name) for name in HUB_FILES]


def shared_settings(config: Config) -> dict[str, typing.Any]:
    """The settings that the result depends on: no paths, nothing about the machine."""
    model = label(config.model) if is_external(config.model) else config.model
    values = config.as_dict() | {"dataset": Path(config.dataset).name, "model": model}
    return {f.name: values[f.name] for f in dataclasses.fields(config) if not f.metadata["free"]}


def write_safetensors(path: str | Path, arrays: Arrays) -> None:
    """Write arrays to a .safetensors, atomically."""
    from safetensors.numpy import save  # an optional dependency, whose presence recommend.py has checked

    with atomic_write(path) as file:
        file.write(save(arrays))


def write_ids(path: str | Path, ids: Iterable[str]) -> None:
    """Write lines "row TAB original id", as in a dataset folder."""
    write_text(path, "".join(tsv_line(pair) for pair in enumerate(ids)))
