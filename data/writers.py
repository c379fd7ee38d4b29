"""Writers of the files of a dataset folder.

with new_folder(Path("data/shop")) as work:
    write_interactions(work, "shop", log, label, "inter")
    write_images(work / "image_feat.npy", "image_features_Shop.b", {"B000000000": 0}, inputs={})
"""

import contextlib
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.feature_files import open_features
from data.formats import SPLITS
from data.interaction_log import InteractionLog
from data.metadata import TEXTS, item_records
from data.raw import IMAGE, Inputs, hash_input, image_records, row_ids
from data.splits import TEST, TRAIN, VALID
from outgoing import json_text, tsv_line
from utils import UserError, atomic_write, lock_file, write_text

# Original id -> row number.
Index = Mapping[str, int]
# {what: number}, for prepare.json and the printed report.
Counts = dict[str, int]


@contextlib.contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A work folder that is renamed to `folder` when the block ends, and removed when the block fails.

    What a killed process left behind is removed by the next one. Raises UserError if the folder exists, or
    another process is making it.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; give another NAME, or remove it")
    work = folder.with_name(f".{folder.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    with lock_file(work / ".lock"):
        for path in work.iterdir():
            if path.name != ".lock":
                path.unlink()
        try:
            yield work
        except UserError as error:
            shutil.rmtree(work)
            raise UserError(str(error).replace(str(work), str(folder))) from None
        except BaseException:
            shutil.rmtree(work)
            raise
        (work / ".lock").unlink()
        os.rename(work, folder)


# ---------------------------------------------------------------- interactions


def integers_if_whole(column: np.ndarray) -> np.ndarray:
    """A float64 column as int64 if it holds only whole numbers, so that they are written without '.0'."""
    is_whole = (column == np.trunc(column)).all() and abs(column).max() < 2**62
    return column.astype(np.int64) if is_whole else column


def write_inter(path: Path, table: pd.DataFrame) -> None:
    """Write a tab-separated table with a header: userID, itemID, [rating], [timestamp], x_label."""
    with atomic_write(path) as file:
        table.to_csv(file, sep="\t", index=False, lineterminator="\n")


def write_txt(folder: Path, user: np.ndarray, item: np.ndarray, label: np.ndarray, n_users: int) -> None:
    """Write train.txt, valid.txt and test.txt, each with a line for every user; items keep their order."""
    order = np.argsort(user, kind="stable")
    # train.txt is last, because a folder that has it is read as one of .txt files.
    for split in (TEST, VALID, TRAIN):
        rows = order[label[order] == split]
        counts = np.bincount(user[rows], minlength=n_users)
        items_of = np.split(item[rows], np.cumsum(counts)[:-1])
        lines = [" ".join(map(str, [number, *items.tolist()])) for number, items in enumerate(items_of)]
        write_text(Path(folder) / f"{SPLITS[split]}.txt", "".join(f"{line}\n" for line in lines))


def write_interactions(
    folder: Path, name: str, log: InteractionLog, label: np.ndarray, data_format: str
) -> None:
    """Write the interactions as "txt" or "inter"; only the latter keeps ratings and times."""
    if data_format == "txt":
        write_txt(folder, log.user, log.item, label, len(log.user_ids))
        return
    columns = {
        "userID": log.user,
        "itemID": log.item,
        "rating": log.rating,
        "timestamp": None if log.time is None else integers_if_whole(log.time),
        "x_label": label,
    }
    table = pd.DataFrame({key: column for key, column in columns.items() if column is not None})
    path = folder / f"{name.removesuffix('_raw')}.inter"
    write_inter(path, table.sort_values(["userID", "x_label"], kind="stable"))


# ---------------------------------------------------------------- features


def write_features(
    path: Path, blocks: Iterable[tuple[Sequence[int], np.ndarray]], n_rows: int, dim: int, dtype: np.dtype
) -> Counts:
    """Write a .npy [n_rows, dim] from blocks of (row numbers, vectors), with one block in memory at a time.

    A row without vector gets the mean of the others. Of a repeated row the first vector counts, and vectors
    with NaN or Inf are ignored. Returns {"found", "missing", "unfit" (missing rows whose vector has NaN or
    Inf)}.
    """
    dtype = np.dtype(dtype).newbyteorder("=")
    found, not_finite = np.zeros(n_rows, bool), np.zeros(n_rows, bool)
    total = np.zeros(dim)
    with atomic_write(path) as file:
        descr = np.lib.format.dtype_to_descr(dtype)
        header = {"descr": descr, "fortran_order": False, "shape": (n_rows, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        data_start, row_size = file.tell(), dim * dtype.itemsize

        def write_row(row: int, vector: np.ndarray) -> None:
            file.seek(data_start + int(row) * row_size)
            file.write(vector.tobytes())

        for rows, vectors in blocks:
            for row, vector in zip(rows, vectors.astype(dtype, copy=False)):
                finite = np.isfinite(vector).all()
                not_finite[row] |= not finite
                if finite and not found[row]:
                    found[row] = True
                    total += vector
                    write_row(row, vector)
        mean = (total / max(1, found.sum())).astype(dtype)
        for missing_row in np.flatnonzero(~found):
            write_row(int(missing_row), mean)
    return {
        "found": int(found.sum()),
        "missing": int((~found).sum()),
        "unfit": int((not_finite & ~found).sum()),
    }


def known_rows(names: Sequence[str], vectors: np.ndarray, index: Index) -> tuple[list[int], np.ndarray]:
    """(row numbers, vectors) of those names that are in the dataset."""
    positions = [position for position, name in enumerate(names) if name in index]
    return [index[names[position]] for position in positions], vectors[positions]


def write_images(path: Path, source: str, index: Index, inputs: Inputs) -> Counts:
    """Write Amazon image features as [items, 4096] float32 in item order; see write_features."""
    blocks = (known_rows(names, vectors, index) for names, vectors in image_records(source, inputs))
    counts = write_features(path, blocks, len(index), IMAGE["vector"].shape[0], np.dtype(np.float32))
    require_some(counts, source)
    return counts


def write_reordered(
    path: Path, flag: str, value: str, index: Index, inputs: Inputs, block: int = 4096
) -> Counts:
    """Write the rows of FILE.npy in the order of `index`; see write_features.

    value: 'FILE.npy=IDS', the value of the flag, where the file IDS names the original id of every row.
    """
    source, _, names_path = value.rpartition("=")
    if not source:
        raise UserError(f"--{flag} {value}: give FILE.npy=IDS, where IDS lists the original id of every row")
    array = open_features(source)
    names = row_ids(names_path, len(array), inputs)
    hash_input(source, inputs)
    blocks = (
        known_rows(names[start : start + block], np.asarray(array[start : start + block]), index)
        for start in range(0, len(array), block)
    )
    counts = write_features(path, blocks, len(index), array.shape[1], array.dtype)
    require_some(counts, names_path)
    return counts


def require_some(counts: Counts, source: str) -> None:
    """Raise UserError if no row was found."""
    if not counts["found"]:
        raise UserError(
            f"{source}: has features for none of the {counts['missing']} ids of the dataset; its ids must be "
            "those of the interactions"
        )


# ---------------------------------------------------------------- texts and ids


def write_texts(path: Path, source: str, id_column: str | None, index: Index, inputs: Inputs) -> Counts:
    """Write item_text.jsonl: one object per item, in item order, with empty strings for what is unknown.

    Keys: item (row number), id (original id), title, brand, categories, description.
    Returns the number of items with a record, without one, and with each text.
    """
    texts = [dict.fromkeys(TEXTS, "") for _ in index]
    found = np.zeros(len(index), bool)
    for _, name, text in item_records(source, id_column, index, inputs):
        row = index[name]
        # Of a repeated id the first record counts.
        if not found[row]:
            found[row], texts[row] = True, text
    if not found.any():
        raise UserError(
            f"{source}: describes none of the {len(index)} items; its ids must be those of the interactions"
        )
    records = ({"item": row, "id": name, **texts[row]} for name, row in index.items())
    write_text(path, "".join(json_text(record) + "\n" for record in records))
    return {
        "found": int(found.sum()),
        "missing": int((~found).sum()),
        **{key: sum(text[key] != "" for text in texts) for key in TEXTS},
    }


def write_ids(path: Path, ids: Sequence[str]) -> None:
    """Write user_ids.tsv or item_ids.tsv: internal id, tab, original id."""
    write_text(path, "".join(map(tsv_line, enumerate(ids))))
