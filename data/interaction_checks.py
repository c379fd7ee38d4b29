"""Check the interactions and id maps of a dataset folder, and report every fault instead of only the first.

findings = Findings()
tables = read_tables(folder, find_inter_table(folder), findings)
interactions = check_splits(tables, folder, min_users=0, min_items=0, findings=findings)
"""

import math
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from data.findings import Findings
from data.formats import SPLITS, Interactions, join_splits, names_of, read_inter, read_titles, read_txt
from data.texts import read_texts
from utils import UserError

Tables = dict[str, pd.DataFrame]


def read_tables(folder: Path, inter_table: Path | None, findings: Findings) -> Tables:
    """Every readable line as {split: table of user, item, rating, line, file}; the rest become problems."""
    if inter_table is not None:
        return read_leniently(inter_table, SPLITS, read_inter, unreadable_inter_lines, findings)
    tables: Tables = {}
    for split in SPLITS:

        def read(path: Path, split: str = split) -> Tables:
            return {split: read_txt(path)}

        path = folder / f"{split}.txt"
        tables |= read_leniently(path, (split,), read, unreadable_txt_lines, findings)
    return tables


def read_leniently(
    path: Path,
    splits: Sequence[str],
    read: Callable[[Path], Tables],
    find_unreadable: Callable[[list[bytes]], list[int]],
    findings: Findings,
) -> Tables:
    """read(path), without its unreadable lines if it has any; empty tables if that is not enough."""
    try:
        return read(path)
    except UserError as error:
        findings.problem(str(error))
    try:
        lines = path.read_bytes().split(b"\n")
        unreadable = find_unreadable(lines)
        if len(unreadable) > 1:
            findings.problem(f"{path}: {len(unreadable)} lines cannot be read: {shortened(unreadable)}")
        # Blank the bad lines instead of deleting them, so that the others keep their line numbers.
        for number in unreadable:
            lines[number - 1] = b""
        with tempfile.TemporaryDirectory() as work:
            readable = Path(work) / path.name
            readable.write_bytes(b"\n".join(lines))
            tables = read(readable)
    except (UserError, OSError):
        return {split: empty_table() for split in splits}
    for table in tables.values():
        table["file"] = str(path)
    return tables


def empty_table() -> pd.DataFrame:
    """A table of interactions without rows."""
    ids = np.zeros(0, np.int64)
    return pd.DataFrame({"user": ids, "item": ids, "rating": np.nan, "line": 0, "file": ""})


def shortened(values: Sequence[int], limit: int = 5) -> str:
    """The first `limit` values, separated by commas."""
    return ", ".join(map(str, values[:limit])) + (", ..." if len(values) > limit else "")


def is_id(word: bytes) -> bool:
    """Whether a word is a whole number of at most ten digits."""
    return word.isdigit() and len(word) <= 10


def is_rating(word: bytes) -> bool:
    """Whether a word is a positive finite number."""
    try:
        return 0 < float(word) < math.inf
    except ValueError:
        return False


def unreadable_txt_lines(lines: list[bytes]) -> list[int]:
    """Line numbers (from 1) of lines that are not 'user item item ...'."""
    return [number for number, line in enumerate(lines, 1) if not all(map(is_id, line.split()))]


def unreadable_inter_lines(lines: list[bytes]) -> list[int]:
    """Line numbers (from 1) of lines that do not match the header of a .inter table."""
    columns = lines[0].rstrip(b"\r").split(b"\t")

    def readable(line: bytes) -> bool:
        row = dict(zip(columns, line.rstrip(b"\r").split(b"\t")))
        return (
            line.count(b"\t") < len(columns)
            and is_id(row.get(b"userID", b""))
            and is_id(row.get(b"itemID", b""))
            and row.get(b"x_label") in (b"0", b"1", b"2")
            and is_rating(row.get(b"rating", b"1"))
        )

    return [number for number, line in enumerate(lines[1:], 2) if line.strip() and not readable(line)]


def check_splits(
    tables: Tables, folder: Path, min_users: int, min_items: int, findings: Findings
) -> Interactions | None:
    """Report empty splits, repeated pairs and pairs in two splits.

    min_users, min_items: numbers of rows of the feature files.
    Returns the distinct pairs, or None if a split is empty or the trainer would refuse what is left.
    """
    for split, table in tables.items():
        if not len(table):
            findings.problem(f"the {split} split is empty; every split needs at least one interaction")
        if n_repeated := int(table.duplicated(["user", "item"]).sum()):
            findings.note(f"{split}: {n_repeated} repeated pairs; the trainer merges them")
    pairs = pd.concat([table.assign(split=split) for split, table in tables.items()], ignore_index=True)
    first = pairs.drop_duplicates(["user", "item"])
    report_overlaps(pairs, first, findings)
    distinct = {split: first[first["split"] == split].drop(columns="split") for split in SPLITS}
    if not all(map(len, distinct.values())):
        return None
    try:
        return join_splits(distinct, str(folder), min_items, min_users)
    except UserError as error:
        findings.problem(str(error))
        return None


def report_overlaps(pairs: pd.DataFrame, first: pd.DataFrame, findings: Findings) -> None:
    """One problem for every two splits that share pairs. first: the first occurrence of each pair."""
    pairs = pairs.drop_duplicates(["user", "item", "split"])
    pairs = pairs.merge(first, on=["user", "item"], suffixes=("", "_first"))
    shared = pairs[pairs["split"] != pairs["split_first"]]
    for (split, earlier_split), rows in shared.groupby(["split", "split_first"]):
        row = rows.iloc[0]
        findings.problem(
            f"{len(rows)} pairs of {split} are also in {earlier_split}, the first in {row.file}, line "
            f"{row.line} (user {row.user}, item {row['item']}); keep every pair in one split only"
        )


def describe(data: Interactions, findings: Findings) -> None:
    """Print the size of each split and the numbers of cold users and items."""
    pairs = {split: getattr(data, split) for split in SPLITS}
    total = sum(map(len, pairs.values()))
    findings.figure(f"{data.n_users:,} users, {data.n_items:,} items, {total:,} distinct interactions")
    findings.figure(
        f"{'split':<8}{'interactions':>14}{'users':>12}{'items':>12}{'min/user':>10}{'median':>8}{'max':>8}"
        f"{'cold users':>12}{'cold items':>12}"
    )
    n_cold = {split: describe_split(split, pairs[split], data.train, findings) for split in SPLITS}
    for split, counts in n_cold.items():
        for kind, count in counts.items():
            if count:
                findings.note(f"{split}: {count:,} cold {kind} (without any train interaction)")
    everything = np.concatenate(list(pairs.values()))
    for column, kind, size in ((0, "users", data.n_users), (1, "items", data.n_items)):
        if n_idle := size - len(np.unique(everything[:, column])):
            findings.note(f"{n_idle:,} of {size:,} {kind} have no interaction at all")
    if n_untested := data.n_users - len(np.unique(data.test[:, 0])):
        findings.note(
            f"{n_untested:,} of {data.n_users:,} users have no test item; they are left out of the metrics"
        )


def describe_split(split: str, pairs: np.ndarray, train: np.ndarray, findings: Findings) -> dict[str, int]:
    """Print one row of the table of splits; return the numbers of cold users and items.

    pairs, train: [n, 2] of (user, item).
    """
    users, per_user = np.unique(pairs[:, 0], return_counts=True)
    items = np.unique(pairs[:, 1])
    n_cold = {
        "users": int((~np.isin(users, train[:, 0])).sum()),
        "items": int((~np.isin(items, train[:, 1])).sum()),
    }
    findings.figure(
        f"{split:<8}{len(pairs):>14,}{len(users):>12,}{len(items):>12,}{per_user.min():>10}"
        f"{np.median(per_user):>8g}{per_user.max():>8}{n_cold['users']:>12,}{n_cold['items']:>12,}"
    )
    return n_cold


def check_id_maps(folder: Path, data: Interactions, findings: Findings) -> None:
    """What the readers of user_ids.tsv, item_ids.tsv and item_text.jsonl refuse is a problem."""

    def read_item_text() -> None:
        path = folder / "item_text.jsonl"
        if read_titles(path, data.n_items) is None:
            return
        if n_without := data.n_items - read_texts(path, data.n_items)[1]["texts"]:
            findings.note(f"{path}: {n_without:,} of {data.n_items:,} items have no text")

    for read in (
        lambda: names_of(folder / "user_ids.tsv", data.n_users, "users"),
        lambda: names_of(folder / "item_ids.tsv", data.n_items, "items"),
        read_item_text,
    ):
        try:
            read()
        except UserError as error:
            findings.problem(str(error))
