"""Texts of items and users: JSON lines -> one text per internal id; sizes and ids of a dataset folder.

texts, counts = read_texts(folder / "item_text.jsonl", 7050)   # texts[r]: the text of id r, or ""
"""

import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.folders import find_inter_table, inter_path
from data.formats import read_ids, read_inter, read_interactions, read_txt
from incoming import parse_json
from utils import UserError

# Bytes of one JSON line.
MAX_LINE = 2**20
# Fields that together are the text of an item, in this order.
TEXT_FIELDS = ("title", "brand", "categories", "description")

# (record, where) -> internal id, None for an id that the dataset does not have.
FindRow = Callable[[dict[str, Any], str], int | None]


# ---------------------------------------------------------------- the dataset folder


def catalogue_size(folder: Path, kind: str) -> tuple[int, list[str] | None]:
    """Number of items or users (kind: "item" or "user"), and their original ids or None.

    From <kind>_ids.tsv if it exists; else from the largest id in the interactions, of which nothing else is
    used.
    """
    ids = read_ids(Path(folder) / f"{kind}_ids.tsv")
    if ids is not None:
        return len(ids), ids
    interactions = read_interactions(folder)
    return (interactions.n_items if kind == "item" else interactions.n_users), None


def train_histories(folder: Path) -> dict[int, list[int]]:
    """{user: distinct items} of the train split alone, in the order of the file.

    Held-out interactions must not reach a prompt: of .txt files only train.txt is opened, and of a .inter
    table only the rows with x_label 0 are returned. Raises UserError if the folder has both, with different
    train splits: a training may hold out what the other one trains on.
    """
    folder = Path(folder)
    path = find_inter_table(folder)
    table = read_inter(path)["train"] if path else read_txt(folder / "train.txt")
    table = table.drop_duplicates(["user", "item"])
    if path is None:
        refuse_another_split(folder, table)
    return {int(user): items.tolist() for user, items in table.groupby("user", sort=True)["item"]}


def refuse_another_split(folder: Path, train: pd.DataFrame) -> None:
    """Raise UserError if the folder has a .inter table with another train split than that of train.txt."""
    try:
        path = inter_path(folder)
        other = read_inter(path)["train"]
    except UserError:
        return  # no table that a training could read
    ours, theirs = (np.unique(table[["user", "item"]].to_numpy(), axis=0) for table in (train, other))
    if not np.array_equal(ours, theirs):
        raise UserError(
            f"{folder}: train.txt and {path.name} have different train splits, and prompts must not show "
            "what a training holds out; move away the one that you do not train on (train.txt with valid.txt "
            "and test.txt)"
        )


def check_catalogue(histories: dict[int, list[int]], folder: Path, n_users: int, n_items: int) -> None:
    """Raise UserError if a history has a user or item beyond the n_users or n_items of the id maps."""
    largest = {"user": max(histories, default=-1), "item": max(map(max, histories.values()), default=-1)}
    for kind, n in (("user", n_users), ("item", n_items)):
        if largest[kind] >= n:
            raise UserError(
                f"{folder / f'{kind}_ids.tsv'}: names {n} {kind}s, but the train split has {kind} "
                f"{largest[kind]}; it must have a line for each"
            )


# ---------------------------------------------------------------- JSON lines


def json_lines(path: str | Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, object) of a file with one JSON object per line. Blank lines are skipped.

    Raises UserError for a line that is not a JSON object in UTF-8, or longer than MAX_LINE bytes.
    """
    try:
        file = open(path, "rb")  # noqa: SIM115
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); name a file with one JSON object per line"
        ) from None
    with file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise UserError(f"{path}, line {number}: is longer than {MAX_LINE} bytes; shorten it")
            if not line.isspace():
                yield number, parse_object(line, f"{path}, line {number}")


def parse_object(line: bytes, where: str) -> dict[str, Any]:
    """The JSON object in `line`. Raises UserError, beginning with `where`, for anything else."""
    try:
        record = parse_json(line)
    except ValueError as error:
        raise UserError(f"{where}: is not JSON ({str(error)[:60]}); write one object per line") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: is a JSON {type(record).__name__}; write one object per line")
    return record


def clean(text: str) -> str:
    """Text on one line with single spaces and without lone surrogates, which tokenizers refuse."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def flat_text(value: Any, where: str, max_depth: int = 3) -> str:
    """A string, or nested lists of strings (Amazon's categories), as one string.

    Raises UserError for other types.
    """
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and max_depth:
        parts = (flat_text(part, where, max_depth - 1) for part in value)
        return ", ".join(filter(None, parts))
    raise UserError(f"{where} is a {type(value).__name__}; texts are strings or lists of strings")


def item_text(record: dict[str, Any], where: str, text_field: str = "") -> str:
    """The text of a record: text_field if given, else "text", else all of TEXT_FIELDS."""
    fields: Sequence[str] = TEXT_FIELDS
    if text_field or record.get("text"):
        fields = (text_field or "text",)
    values = [clean(flat_text(record.get(name), f"{where}: '{name}'")) for name in fields]
    if len(values) == 1:
        return values[0]
    return ". ".join(value.rstrip(".") for value in values if value)


def row_finder(ids: Sequence[str] | None, n: int, matching: str, id_field: str) -> FindRow:
    """A function that finds the internal id of a record.

    matching: "internal" (whole numbers below n) or "original" (looked up in `ids`, the list of original ids).
    """
    rows: dict[str, int] = {}
    if matching == "original":
        if ids is None:
            raise UserError(
                "--ids original needs item_ids.tsv (user_ids.tsv) in the dataset folder; use --ids internal"
            )
        rows = {original: row for row, original in enumerate(ids)}

    def find(record: dict[str, Any], where: str) -> int | None:
        value = record.get(id_field)
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            fields = ", ".join(map(str, record))[:80]
            raise UserError(f"{where}: has no '{id_field}'; set --id_field to one of its fields: {fields}")
        if matching == "original":
            return rows.get(str(value))
        if not re.fullmatch(r"[0-9]{1,10}", str(value)):
            raise UserError(
                f"{where}: '{id_field}' {str(value)[:40]} is not a whole number; for original ids use --ids "
                "original"
            )
        return int(value) if int(value) < n else None

    return find


def read_texts(
    path: str | Path,
    n: int,
    ids: Sequence[str] | None = None,
    matching: str = "internal",
    id_field: str = "item",
    text_field: str = "",
) -> tuple[list[str], dict[str, Any]]:
    """JSON lines -> (a text for each of n internal ids, "" for none; counts).

    counts: {"texts": with a text, "empty": record without text, "absent": no record, "unknown": records of
    other ids}. Raises UserError for an id that appears twice, or if no record has a text.
    """
    find = row_finder(ids, n, matching, id_field)
    texts = [""] * n
    # Internal id -> line of its record.
    line_of: dict[int, int] = {}
    n_unknown = 0
    for number, record in json_lines(path):
        where = f"{path}, line {number}"
        row = find(record, where)
        if row is None:
            n_unknown += 1
            continue
        if row in line_of:
            value = str(record[id_field])[:40]
            raise UserError(f"{where}: '{id_field}' {value} is already on line {line_of[row]}; keep one")
        line_of[row] = number
        texts[row] = item_text(record, where, text_field)
    n_texts = sum(map(bool, texts))
    if not n_texts:
        raise UserError(
            f"{path}: holds no text for any of the {n} ids of the dataset ({n_unknown} records have other "
            f"ids, {len(line_of)} no text); check --id_field, --text_field and --ids"
        )
    n_records = len(line_of)
    return texts, {
        "texts": n_texts,
        "empty": n_records - n_texts,
        "absent": n - n_records,
        "unknown": n_unknown,
    }
