"""The vectors of a run in TensorBoard's projector: neighbours, PCA, t-SNE and UMAP of titled items.

    python main.py --dataset demo --model lgn --projector 1
    tensorboard --logdir runs      # then: Projector

write_labels reads the names before training, so that a damaged id file ends the run early; write_vectors is
called at the end. TensorBoard expects projector_config.pbtxt in the run folder, beside the events.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

from data.folders import dataset_folder
from data.formats import Interactions, names_of, read_titles
from layers.columns import rank
from outgoing import tsv_line
from utils import atomic_write, write_text
from world import Config

# With more users than this only items are written: the browser loads all vectors, and items are what one
# looks at.
MAX_USERS = 10_000


def write_labels(folder: Path, config: Config, data: Interactions) -> None:
    """Write <folder>/projector/item.tsv and user.tsv: index, title (where known), original id, train count.

    The projector labels points with the first column that is not numeric.
    """
    source, _ = dataset_folder(config)
    target = folder / "projector"
    target.mkdir(exist_ok=True)
    user_count, item_count = (
        np.bincount(column, minlength=n).tolist()
        for column, n in zip(data.train.T, (data.n_users, data.n_items), strict=True)
    )
    titles = read_titles(source / "item_text.jsonl", data.n_items)
    columns: dict[str, Iterable] = {"item": range(data.n_items)}
    if titles is not None:
        columns["title"] = titles
    columns["id"] = names_of(source / "item_ids.tsv", data.n_items, "items")
    write_text(target / "item.tsv", table({**columns, "train": item_count}))
    if data.n_users <= MAX_USERS:
        ids = names_of(source / "user_ids.tsv", data.n_users, "users")
        columns = {"user": range(data.n_users), "id": ids, "train": user_count}
        write_text(target / "user.tsv", table(columns))


def write_vectors(folder: Path, user: torch.Tensor, item: torch.Tensor) -> None:
    """Write vectors [U, d] and [I, d] beside their labels, and the configuration that TensorBoard reads.

    Of several processes, process 0 does.
    """
    if rank():
        return
    target, config = folder / "projector", ""
    for name, vectors in (("item", item), ("user", user)):
        if not (target / f"{name}.tsv").exists():
            continue
        with atomic_write(target / f"{name}_vectors.tsv") as file:
            # 9 digits represent a float32 exactly.
            np.savetxt(file, vectors.float().cpu().numpy(), fmt="%.9g", delimiter="\t")
        config += (
            f'embeddings {{ tensor_name: "{name}" tensor_path: "projector/{name}_vectors.tsv" '
            f'metadata_path: "projector/{name}.tsv" }}\n'
        )
    write_text(folder / "projector_config.pbtxt", config)


def table(columns: dict[str, Iterable]) -> str:
    """Tab-separated text with a header, from equally long columns."""
    rows = zip(*columns.values(), strict=True)
    return "".join(map(tsv_line, (columns, *rows)))
