"""Readers of the files of a dataset folder."""

import dataclasses
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd

from utils import UserError, content_hash

SPLITS = ("train", "valid", "test")
MAX_ID = 2**31 - 1


@dataclasses.dataclass(frozen=True)
class Interactions:
    """Who interacted with what. Pairs are sorted by user, then item, and occur once."""

    n_users: int
    n_items: int
    train: np.ndarray  # [n, 2] int64 of (user, item)
    valid: np.ndarray
    test: np.ndarray
    train_rating: np.ndarray | None  # [n] float32 beside train, where the data has ratings
    merged: dict  # split -> number of repeated lines that were merged
    source: str  # what was read


def dataset_folder(config):
    """The folder of config.dataset, or of <dataset>_raw where only that is there; and a note if so (else None)."""
    name = Path(config.dataset)
    if name.is_absolute() or ".." in name.parts or not name.parts:
        raise UserError(
            f"--dataset {config.dataset}: is no name of a folder in --data_root; give its parent as --data_root"
        )
    folder = Path(config.data_root) / name
    if folder.is_dir():
        return folder, None
    raw = folder.with_name(folder.name + "_raw")
    if raw.is_dir():
        return raw, f"note: {folder} is not there; using {raw}"
    raise UserError(
        f"{folder}: no such dataset folder; name one with --dataset and --data_root (README, 'Data')"
    )


def read_interactions(folder, data_format="auto", min_items=0, min_users=0):
    """Read a dataset folder in either format.

    folder: holds train.txt, valid.txt, test.txt ("user item item ..." a line, ids from 0), or one .inter table.
    min_items, min_users: catalogue sizes known from the features; ids beyond the interactions count too.
    Raises UserError for missing files, bad ids, an empty split, or a pair that stands in two splits.
    """
    folder = Path(folder)
    if data_format == "txt" or (data_format == "auto" and (folder / "train.txt").exists()):
        tables = {split: read_txt(folder / f"{split}.txt") for split in SPLITS}
        source = f"{folder}/{{train,valid,test}}.txt"
    else:
        path = inter_path(folder)
        tables, source = read_inter(path), str(path)
    return join_splits(tables, source, min_items, min_users)


def read_txt(path):
    """'user item item ...' lines -> table of columns user, item, rating (NaN), line."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); a dataset folder needs train.txt, valid.txt and "
            "test.txt, or one .inter table"
        ) from None
    words, counts, numbers = [], [], []
    for number, line in enumerate(lines, 1):
        ids = line.split()
        if not ids:
            continue
        if not b"".join(ids).isdigit():
            bad = next(word for word in ids if not word.isdigit()).decode("utf-8", "replace")
            raise UserError(f"{path}, line {number}: '{bad[:40]}' is not an id; ids are whole numbers from 0")
        if len(max(ids, key=len)) > 10:
            raise UserError(
                f"{path}, line {number}: an id is larger than {MAX_ID}; number users and items from 0"
            )
        words += ids
        counts.append(len(ids))
        numbers.append(number)
    flat = np.array(words, dtype="S10").astype(np.int64) if words else np.zeros(0, np.int64)
    counts = np.array(counts, dtype=np.int64)
    first = np.cumsum(counts) - counts
    is_item = np.ones(len(flat), bool)
    is_item[first] = False
    return pd.DataFrame(
        {
            "user": np.repeat(flat[first], counts - 1),
            "item": flat[is_item],
            "rating": np.nan,
            "line": np.repeat(np.array(numbers, dtype=np.int64), counts - 1),
        }
    ).assign(file=str(path))


def inter_path(folder):
    """The one .inter file of a dataset folder: <folder name>.inter, or the only *.inter there is."""
    named = folder / f"{folder.resolve().name.removesuffix('_raw')}.inter"
    found = [named] if named.exists() else sorted(folder.glob("*.inter"))
    if not found:
        raise UserError(f"{folder}: holds neither train.txt nor a .inter table; see README, 'Data'")
    if len(found) > 1:
        raise UserError(
            f"{folder}: holds {len(found)} .inter tables and none is called {named.name}; keep one"
        )
    return found[0]


def read_inter(path):
    """A tab-separated table with a header (userID itemID [rating] [timestamp] x_label) -> {split: table}."""
    try:
        table = pd.read_csv(
            path,
            sep="\t",
            dtype=str,
            keep_default_na=False,
            quoting=3,
            encoding="utf-8",
            skip_blank_lines=False,
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        line = re.search(r"line (\d+)", str(error))
        raise UserError(
            f"{path}{f', line {line[1]}' if line else ''}: is not a tab-separated table with one header "
            f"line ({str(error).strip()[:80]})"
        ) from None
    missing = [name for name in ("userID", "itemID", "x_label") if name not in table]
    if missing:
        raise UserError(
            f"{path}, line 1: the header lacks {', '.join(missing)}; it must name userID, itemID and x_label "
            "(0 train, 1 valid, 2 test), separated by tabs"
        )
    if not isinstance(table.index, pd.RangeIndex):  # pandas takes a surplus first cell for a row label
        raise UserError(
            f"{path}, line 2: has more cells than the header; separate the columns by one tab each"
        )
    filled = (table != "").any(axis=1).to_numpy()
    line = np.arange(2, len(table) + 2)[filled]
    table = table[filled].reset_index(drop=True)
    ids = {new: parse_ids(table[old], path, line) for new, old in (("user", "userID"), ("item", "itemID"))}
    rating = parse_ratings(table["rating"], path, line) if "rating" in table else np.nan
    label = table["x_label"]
    wrong = ~label.isin(["0", "1", "2"]).to_numpy()
    if wrong.any():
        raise UserError(
            f"{path}, line {line[wrong.argmax()]}: x_label '{label[wrong.argmax()][:40]}' is not 0 (train), 1 (valid) "
            "or 2 (test)"
        )
    table = pd.DataFrame({**ids, "rating": rating, "line": line, "file": str(path)})
    return {split: table[(label == str(k)).to_numpy()] for k, split in enumerate(SPLITS)}


def parse_ids(column, path, line):
    """Strings -> int64 ids; UserError with the first line that holds something else."""
    good = column.str.fullmatch(r"[0-9]{1,10}").to_numpy(dtype=bool)
    if not good.all():
        at = (~good).argmax()
        raise UserError(
            f"{path}, line {line[at]}: {column.name} '{column[at][:40]}' is not an id; ids are whole numbers from 0"
        )
    return column.to_numpy().astype("S10").astype(np.int64)


def parse_ratings(column, path, line):
    """Strings -> float32 ratings; UserError with the first line that holds no positive number."""
    with np.errstate(over="ignore", under="ignore"):
        rating = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64).astype(np.float32)
    bad = ~(np.isfinite(rating) & (rating > 0))
    if bad.any():
        raise UserError(
            f"{path}, line {line[bad.argmax()]}: rating '{column[bad.argmax()][:40]}' is not a positive number"
        )
    return rating


def join_splits(tables, source, min_items, min_users):
    """{split: table} -> Interactions: merged, checked against each other, sorted."""
    merged = {}
    for split, table in tables.items():
        if not len(table):
            raise UserError(
                f"{source}: the {split} split is empty; every split needs at least one interaction"
            )
        unique = table.drop_duplicates(["user", "item"]).sort_values(["user", "item"])
        merged[split] = len(table) - len(unique)
        tables[split] = unique
    everything = pd.concat(tables.values(), ignore_index=True)
    repeated = everything.duplicated(["user", "item"]).to_numpy()
    if repeated.any():
        row = everything.loc[repeated.argmax()]
        raise UserError(
            f"{row.file}, line {row.line}: user {row.user} and item {row['item']} stand in an earlier split already; "
            "keep every pair in one split only"
        )
    sizes = {}
    for name, least in (("user", min_users), ("item", min_items)):
        top = everything.loc[everything[name].idxmax()]
        sizes[name] = max(int(top[name]) + 1, least)
        if sizes[name] > max(10**6, 20 * len(everything), least):
            raise UserError(
                f"{top.file}, line {top.line}: {name} id {top[name]} is far beyond the {len(everything)} interactions; "
                "number users and items from 0 without large gaps"
            )
    pairs = {
        split: table[["user", "item"]].to_numpy(dtype=np.int64, copy=True) for split, table in tables.items()
    }
    full = np.bincount(pairs["train"][:, 0]).max()
    if full >= sizes["item"]:
        raise UserError(
            f"{source}: a user has all {sizes['item']} items in train, so there is no negative to draw; drop that user"
        )
    rating = tables["train"]["rating"].to_numpy(dtype=np.float32)
    return Interactions(
        sizes["user"],
        sizes["item"],
        **pairs,
        train_rating=None if np.isnan(rating).any() else rating,
        merged=merged,
        source=source,
    )


def read_ids(path):
    """item_ids.tsv or user_ids.tsv ("internal id, tab, original id" a line, from 0 in order) -> list of original ids.

    None if there is no such file. Raises UserError for a line out of order, or an original id that stands twice.
    """
    if not Path(path).exists():
        return None
    try:
        lines = Path(path).read_text("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'}); it names the original id of every "
            "internal one"
        ) from None
    ids = {}
    for number, line in enumerate(lines, 1):
        internal, tab, original = line.partition("\t")
        if not tab or not original or "\t" in original or internal != str(number - 1):
            raise UserError(f"{path}, line {number}: must be '{number - 1}', a tab, and the original id")
        if original in ids:
            raise UserError(
                f"{path}, line {number}: the id '{original[:40]}' stands on line {ids[original]} already"
            )
        ids[original] = number
    return list(ids)


def names_of(path, count, what):
    """Original ids from an id map; without the file, the numbers. Raises UserError for another count than `count`."""
    ids = read_ids(path)
    if ids is None:
        return [str(number) for number in range(count)]
    if len(ids) != count:
        raise UserError(f"{path}: names {len(ids)} {what} for {count}; it must have a line for each")
    return ids


def read_lines(path):
    """The lines of a UTF-8 file without their ends. Raises UserError if it cannot be read."""
    try:
        return Path(path).read_text("utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def read_titles(path, count):
    """item_text.jsonl -> title of each item, '' where there is none; None without the file. Raises UserError for a bad line."""
    if not Path(path).exists():
        return None
    titles = [""] * count
    for number, line in enumerate(read_lines(path), 1):
        try:
            record = json.loads(line)
            item, title = record["item"], record.get("title", "")
            if type(item) is not int or not 0 <= item < count or not isinstance(title, str):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
            raise UserError(
                f'{path}, line {number}: must be {{"item": number below {count}, "title": text, ...}}'
            ) from None
        titles[item] = " ".join(title.split())
    return titles


def interactions_hash(interactions):
    """Content hash of the splits: runs with the same one are scored on the same thing."""
    rating = interactions.train_rating
    return content_hash(
        interactions.n_users,
        interactions.n_items,
        interactions.train,
        interactions.valid,
        interactions.test,
        np.zeros(0) if rating is None else rating,
    )
