"""Readers of the interactions, id maps and titles in a dataset folder.

interactions = read_interactions("data/baby")
interactions.train     # [n, 2] int64, pairs of (user, item)
"""

import dataclasses
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.folders import SPLITS as SPLITS
from data.folders import check_header, find_inter_table
from incoming import parse_json
from outgoing import printable
from utils import UserError, content_hash

MAX_DIGITS = 10  # of an id
MIN_COLD = 0.05


@dataclasses.dataclass(frozen=True)
class Interactions:
    """User-item pairs of the three splits. Each split is sorted by user, then item, without repetitions."""

    n_users: int
    n_items: int
    train: np.ndarray  # [n, 2] int64, pairs of (user, item)
    valid: np.ndarray
    test: np.ndarray
    train_rating: np.ndarray | None  # [n] float32, aligned with train; None if the data has no ratings
    merged: dict[str, int]  # split -> number of repeated pairs that were dropped
    source: str  # the files that were read, for messages

    @property
    def cold_items(self) -> np.ndarray:
        """The items without TRAIN interactions, whether or not a held-out split has some: [c] int64 ids.

        Empty if they are less than a share MIN_COLD of the items: then it is the chance of a split.
        """
        cold = np.setdiff1d(np.arange(self.n_items), self.train[:, 1])
        return cold if len(cold) >= MIN_COLD * self.n_items else cold[:0]


# ---------------------------------------------------------------- interactions


def read_interactions(
    folder: str | Path, data_format: str = "auto", min_items: int = 0, min_users: int = 0
) -> Interactions:
    """Read a dataset folder in either format.

    folder: contains train.txt, valid.txt and test.txt, or one .inter table.
    data_format: see find_inter_table.
    min_items, min_users: lower bounds of the catalogue sizes, known from the feature files. Items and users
    without interactions have ids too.

    Raises UserError for missing files, invalid ids or ratings, an empty split, or a pair in two splits.
    """
    folder = Path(folder)
    path = find_inter_table(folder, data_format)
    if path is None:
        tables = {split: read_txt(folder / f"{split}.txt") for split in SPLITS}
        source = f"{folder}/{{train,valid,test}}.txt"
    else:
        tables, source = read_inter(path), str(path)
    return join_splits(tables, source, min_items, min_users)


def read_txt(path: str | Path) -> pd.DataFrame:
    """Read lines of "user item item ..." into a table of columns user, item, rating (NaN), line and file."""
    try:
        lines = Path(path).read_bytes().split(b"\n")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); "
            "a dataset folder needs train.txt, valid.txt and test.txt, or one .inter table"
            f"{without_valid(path)}"
        ) from None
    users: list[int] = []
    items: list[int] = []
    line_numbers: list[int] = []
    for number, line in enumerate(lines, 1):
        words = line.split()
        if words:
            check_ids(words, path, number)
            user, *row = map(int, words)
            users += [user] * len(row)
            items += row
            line_numbers += [number] * len(row)
    # The dtype matters for a file without any pair: NumPy would make an empty list float64.
    return pd.DataFrame(
        {
            "user": np.array(users, dtype=np.int64),
            "item": np.array(items, dtype=np.int64),
            "rating": np.nan,
            "line": np.array(line_numbers, dtype=np.int64),
            "file": str(path),
        }
    )


def without_valid(path: str | Path) -> str:
    """What to add to an error about a missing valid.txt beside train.txt and test.txt, else ""."""
    folder = Path(path).parent
    others = all((folder / name).exists() for name in ("train.txt", "test.txt"))
    if Path(path).name != "valid.txt" or not others:
        return ""
    return f"; python -m data.prepare NEW_NAME --train_test {folder} makes one with all three"


def check_ids(words: list[bytes], path: str | Path, line_number: int) -> None:
    """Raise UserError if a word of a line is not an id of at most MAX_DIGITS digits."""
    # bytes.isdigit accepts ASCII digits only; str.isdigit would also accept those of other scripts.
    if not b"".join(words).isdigit():
        bad = next(word for word in words if not word.isdigit()).decode("utf-8", "replace")
        raise UserError(
            f"{path}, line {line_number}: '{bad[:40]}' is not an id; ids are whole numbers from 0"
        )
    # Longer numbers might not fit int64. join_splits refuses those of 10 digits that are too large.
    if len(max(words, key=len)) > MAX_DIGITS:
        raise UserError(
            f"{path}, line {line_number}: an id has more than {MAX_DIGITS} digits; "
            "number users and items from 0"
        )


def read_inter(path: str | Path) -> dict[str, pd.DataFrame]:
    """Read a tab-separated table with the header userID itemID [rating] [timestamp] x_label.

    Returns {split: table}, x_label being the split. The tables have the columns user, item, rating (NaN if
    there is none), line and file.
    """
    cells = read_cells(path)
    filled = (cells != "").any(axis=1).to_numpy()
    line = np.arange(2, len(cells) + 2)[filled]  # the header is line 1
    cells = cells[filled].reset_index(drop=True)
    table = pd.DataFrame(
        {
            "user": parse_ids(cells["userID"], path, line),
            "item": parse_ids(cells["itemID"], path, line),
            "rating": parse_ratings(cells["rating"], path, line) if "rating" in cells else np.nan,
            "line": line,
            "file": str(path),
        }
    )
    label = cells["x_label"]
    wrong = ~label.isin(["0", "1", "2"]).to_numpy()
    if wrong.any():
        row = wrong.argmax()
        raise UserError(
            f"{path}, line {line[row]}: x_label '{label[row][:40]}' is not 0 (train), 1 (valid) or 2 (test)"
        )
    return {split: table[(label == str(k)).to_numpy()] for k, split in enumerate(SPLITS)}


def read_cells(path: str | Path) -> pd.DataFrame:
    """Read the cells of a .inter table as strings, blank lines included; check the header."""
    # quoting=3: quotation marks are ordinary characters. Blank lines are kept so that row r is line r + 2.
    options: dict[str, Any] = {
        "sep": "\t",
        "dtype": str,
        "keep_default_na": False,
        "quoting": 3,
        "encoding": "utf-8",
        "skip_blank_lines": False,
    }
    try:
        # An open file: pandas would fetch a path that looks like a URL.
        with open(path, "rb") as file:
            # pandas renames repeated columns without notice, so the header is also read as an ordinary row.
            header = pd.read_csv(file, header=None, nrows=1, **options).iloc[0]
            file.seek(0)
            cells = pd.read_csv(file, **options)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        line = re.search(r"line (\d+)", str(error))
        raise UserError(
            f"{path}{f', line {line[1]}' if line else ''}: is not a tab-separated table with one header "
            f"line ({str(error).strip()[:80]})"
        ) from None
    repeated = sorted(set(header[header.duplicated() & (header != "")]))
    if repeated:
        raise UserError(
            f"{path}, line 1: the header repeats {', '.join(repeated)[:80]}; give every column its own name"
        )
    check_header(path, list(cells))
    # If the first row has more cells than the header, pandas takes the first column as row labels.
    if not isinstance(cells.index, pd.RangeIndex):
        raise UserError(
            f"{path}, line 2: has more cells than the header; separate the columns by one tab each"
        )
    return cells


def parse_ids(column: pd.Series, path: str | Path, line: np.ndarray) -> np.ndarray:
    """Convert strings to int64 ids; `line` has the line number of each row, for the error message."""
    valid = column.str.fullmatch(f"[0-9]{{1,{MAX_DIGITS}}}").to_numpy(dtype=bool)
    if not valid.all():
        row = (~valid).argmax()
        raise UserError(
            f"{path}, line {line[row]}: {column.name} '{column[row][:40]}' is not an id; "
            "ids are whole numbers from 0"
        )
    return column.to_numpy().astype(np.int64)


def parse_ratings(column: pd.Series, path: str | Path, line: np.ndarray) -> np.ndarray:
    """Convert strings to positive float32 ratings; `line` has the line number of each row."""
    with np.errstate(over="ignore", under="ignore"):
        rating = pd.to_numeric(column, errors="coerce").to_numpy(dtype=np.float64).astype(np.float32)
    invalid = ~(np.isfinite(rating) & (rating > 0))
    if invalid.any():
        row = invalid.argmax()
        raise UserError(f"{path}, line {line[row]}: rating '{column[row][:40]}' is not a positive number")
    return rating


def join_splits(tables: dict[str, pd.DataFrame], source: str, min_items: int, min_users: int) -> Interactions:
    """Drop repeated pairs, check the splits against each other, and return them as Interactions.

    tables: {split: table} with the columns user, item, rating, line and file.
    """
    for split, table in tables.items():
        if not len(table):
            raise UserError(
                f"{source}: the {split} split is empty; every split needs at least one interaction"
            )
    unique = {
        split: table.drop_duplicates(["user", "item"]).sort_values(["user", "item"])
        for split, table in tables.items()
    }
    everything = pd.concat(unique.values(), ignore_index=True)
    check_disjoint(everything)
    n_users = count_ids(everything, "user", min_users)
    n_items = count_ids(everything, "item", min_items)
    pairs = {
        split: table[["user", "item"]].to_numpy(dtype=np.int64, copy=True) for split, table in unique.items()
    }
    check_negatives(unique["train"], n_items)
    rating = unique["train"]["rating"].to_numpy(dtype=np.float32)
    return Interactions(
        n_users,
        n_items,
        **pairs,
        train_rating=None if np.isnan(rating).any() else rating,
        merged={split: len(table) - len(unique[split]) for split, table in tables.items()},
        source=source,
    )


def check_negatives(train: pd.DataFrame, n_items: int) -> None:
    """Raise UserError if a user has all items in train. train: its table, without repetitions."""
    counts = np.bincount(train["user"])
    if counts.max() >= n_items:
        row = train[train["user"] == counts.argmax()].iloc[0]
        raise UserError(
            f"{row.file}, line {row.line}: user {row.user} has all {n_items} items in train, so there is no "
            "negative to draw; remove that user"
        )


def check_disjoint(everything: pd.DataFrame) -> None:
    """Raise UserError if a pair occurs in two splits.

    everything: tables of all splits, each without repetitions.
    """
    repeated = everything.duplicated(["user", "item"]).to_numpy()
    if repeated.any():
        row = everything.loc[repeated.argmax()]
        raise UserError(
            f"{row.file}, line {row.line}: user {row.user} and item {row['item']} are in an earlier split "
            "already; keep every pair in one split only"
        )


def count_ids(everything: pd.DataFrame, column: str, minimum: int) -> int:
    """Return the number of users or items: the largest id + 1, but at least `minimum`."""
    largest = everything.loc[everything[column].idxmax()]
    size = max(int(largest[column]) + 1, minimum)
    # Each id costs a row of the embedding table: a stray large id would otherwise exhaust the memory.
    if size > max(10**6, 20 * len(everything), minimum):
        raise UserError(
            f"{largest.file}, line {largest.line}: {column} id {largest[column]} is far too large for "
            f"{len(everything)} interactions; number users and items from 0 without large gaps"
        )
    return size


def interactions_hash(interactions: Interactions) -> str:
    """Return a content hash of the splits. Metrics of two runs are comparable only if it is the same."""
    rating = interactions.train_rating
    return content_hash(
        interactions.n_users,
        interactions.n_items,
        interactions.train,
        interactions.valid,
        interactions.test,
        np.zeros(0) if rating is None else rating,
    )


# ---------------------------------------------------------------- ids and titles


def read_ids(path: str | Path) -> list[str] | None:
    """Read item_ids.tsv or user_ids.tsv: lines of internal id, tab, original id, in order from 0.

    Returns the original ids, or None if the file does not exist. Raises UserError for a line that is out of
    order and for an original id that occurs twice.
    """
    if not Path(path).exists():
        return None
    try:
        lines = Path(path).read_text("utf-8").removesuffix("\n").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"{path}: cannot be read ({reason}); it must list the original id of every internal id"
        ) from None
    line_of: dict[str, int] = {}
    for number, line in enumerate(lines, 1):
        internal, tab, original = line.partition("\t")
        if not tab or not original or "\t" in original or internal != str(number - 1):
            raise UserError(f"{path}, line {number}: must be '{number - 1}', a tab, and the original id")
        if original in line_of:
            raise UserError(
                f"{path}, line {number}: the id '{original[:40]}' is on line {line_of[original]} already"
            )
        line_of[original] = number
    return list(line_of)


def names_of(path: str | Path, count: int, kind: str) -> list[str]:
    """Return the original ids in an id map, or "0", "1", ... if the file does not exist.

    kind: "users" or "items", for the message of the UserError if the file does not have `count` ids.
    """
    ids = read_ids(path)
    if ids is None:
        return [str(number) for number in range(count)]
    if len(ids) != count:
        raise UserError(
            f"{path}: names {len(ids)} {kind} for {count} in the data; it must have a line for each"
        )
    return ids


def read_lines(path: str | Path) -> list[str]:
    """Return the lines of a UTF-8 file without line ends. Raises UserError if it cannot be read."""
    try:
        return Path(path).read_text("utf-8").removesuffix("\n").split("\n")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a text file") from None
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}: is not UTF-8 ({error.reason} at byte {error.start}); save it as UTF-8"
        ) from None


def read_titles(path: str | Path, count: int) -> list[str] | None:
    """Read the title of each of `count` items from item_text.jsonl, "" for items without one.

    Returns None if the file does not exist. Raises UserError for an invalid line.
    """
    if not Path(path).exists():
        return None
    titles = [""] * count
    for number, line in enumerate(read_lines(path), 1):
        try:
            record = parse_json(line)
            item, title = record["item"], record.get("title", "")
            # type() and not isinstance: JSON's true is an int in Python.
            if type(item) is not int or not 0 <= item < count or not isinstance(title, str):
                raise ValueError
        except (ValueError, KeyError, TypeError, AttributeError):
            raise UserError(
                f'{path}, line {number}: must be {{"item": number below {count}, "title": text, ...}}'
            ) from None
        titles[item] = printable(" ".join(title.split()))
    return titles
