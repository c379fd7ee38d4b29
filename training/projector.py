"""A run's vectors in TensorBoard's projector: nearest neighbours, PCA, t-SNE and UMAP over items with their titles.

    python main.py --dataset demo --model lgn --projector 1 && tensorboard --logdir runs      # then: Projector

write_labels reads the names before training starts, so that a damaged id file ends the run there; write_vectors is
called at its end. TensorBoard wants projector_config.pbtxt in the run folder, beside the events.
"""

import numpy as np

from data.formats import dataset_folder, names_of, read_titles
from utils import atomic_write, write_text

MOST_USERS = (
    10_000  # users are left out beyond: the browser holds all vectors, and items are what one looks at
)


def write_labels(folder, config, data):
    """Write <folder>/projector/item.tsv and user.tsv: number, original id, train interactions and, for items, title.

    The first column that holds no numbers is what the projector labels points with.
    """
    source, _ = dataset_folder(config)
    target = folder / "projector"
    target.mkdir(exist_ok=True)
    counts = [
        np.bincount(column, minlength=n).tolist()
        for column, n in zip(data.train.T, (data.n_users, data.n_items))
    ]
    titles = read_titles(source / "item_text.jsonl", data.n_items)
    write_text(
        target / "item.tsv",
        table(
            item=range(data.n_items),
            **({} if titles is None else {"title": titles}),
            id=names_of(source / "item_ids.tsv", data.n_items, "items"),
            train=counts[1],
        ),
    )
    if data.n_users <= MOST_USERS:
        write_text(
            target / "user.tsv",
            table(
                user=range(data.n_users),
                id=names_of(source / "user_ids.tsv", data.n_users, "users"),
                train=counts[0],
            ),
        )


def write_vectors(folder, user, item):
    """Write the vectors beside their labels, and what tells TensorBoard of them. user: [U, d], item: [I, d]."""
    target, config = folder / "projector", ""
    for name, vectors in (("item", item), ("user", user)):
        if not (target / f"{name}.tsv").exists():
            continue
        with atomic_write(target / f"{name}_vectors.tsv") as file:
            np.savetxt(
                file, vectors.float().cpu().numpy(), fmt="%.9g", delimiter="\t"
            )  # 9 digits hold a float32
        config += (
            f'embeddings {{ tensor_name: "{name}" tensor_path: "projector/{name}_vectors.tsv" '
            f'metadata_path: "projector/{name}.tsv" }}\n'
        )
    write_text(folder / "projector_config.pbtxt", config)


def table(**columns):
    """Tab-separated text with a header."""
    return "".join("\t".join(map(str, row)) + "\n" for row in (columns, *zip(*columns.values())))
