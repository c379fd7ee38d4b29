"""Recommendation lists as files: tab-separated text, JSON lines and Parquet."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import sys
import typing
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from outgoing import json_text, tsv_line
from recommending.explanations import BECAUSE, Explanation
from utils import atomic_write

TopList = tuple[list[int], list[float]]  # item indices, best first, and their scores


class Why(typing.NamedTuple):
    """Explanations for lists: the names of a score's parts, and explain(query, items)."""

    parts: list[str]
    explain: Callable[[int, list[int]], Explanation]


@dataclasses.dataclass(frozen=True)
class Lists:
    """For each query its best items. columns: names of the two ids; chunks: (first query, [TopList, ...])."""

    columns: tuple[str, str]
    names: list[str]  # of the queries
    item_ids: list[str]
    titles: list[str] | None
    chunks: Iterable[tuple[int, list[TopList]]]
    why: Why | None = None

    def records(self) -> Iterator[dict[str, typing.Any]]:
        """{"user": id, "item": [k ids], "score": [k numbers], ...} of each query, see write_jsonl.

        Scores have six significant digits, explained ones and their parts six decimals.
        """
        for start, lists in self.chunks:
            for number, (items, values) in enumerate(lists, start):
                record: dict[str, typing.Any] = {self.columns[0]: self.names[number]}
                record[self.columns[1]] = [self.item_ids[item] for item in items]
                record["score"] = [float(f"{score:.6g}") for score in values]
                if self.titles is not None:
                    record["title"] = [self.titles[item] for item in items]
                yield record | (self.reasons(self.why.explain(number, items)) if self.why else {})

    def reasons(self, why: Explanation) -> dict[str, typing.Any]:
        """The entries that an explanation adds to a record."""
        pairs = [[(self.item_ids[item], round(adds, 6)) for item, adds in one] for one in why.because]
        return {
            "score": np.round(why.scores, 6).tolist(),
            "parts": {name: np.round(values, 6).tolist() for name, values in why.parts.items()},
            "because": [[{"item": item, "adds": adds} for item, adds in one] for one in pairs],
        }

    def table_columns(self) -> dict[str, type]:
        """Names and types of a table's columns, see write_tsv."""
        columns: dict[str, type] = {self.columns[0]: str, "rank": int, self.columns[1]: str, "score": float}
        if self.titles is not None:
            columns["title"] = str
        if self.why is not None:
            columns |= {f"score_{name}": float for name in self.why.parts}
            for n in range(1, BECAUSE + 1):
                columns |= {f"because_{n}": str, f"because_{n}_adds": float}
        return columns

    def table_rows(self) -> Iterator[list[typing.Any]]:
        """The rows of a table, one for each item of each list, with None for what an explanation lacks."""
        width = len(self.table_columns())
        for record in self.records():
            name, columns = record[self.columns[0]], [record[self.columns[1]], record["score"]]
            columns += [record["title"]] if self.titles is not None else []
            columns += record.get("parts", {}).values()
            because = record.get("because", [[]] * len(columns[0]))
            for rank, (one, *row) in enumerate(zip(because, *columns, strict=True), 1):
                cells = [name, rank, *row, *(cell for reason in one for cell in reason.values())]
                yield cells + [None] * (width - len(cells))


def write_tsv(lists: Lists, file: typing.TextIO) -> None:
    """A line for each item, with a header: query, rank from 1, item, score and, where known, title.

    Explained: then the parts of the score, and pairs of an item of the user and what it adds to the score.
    """
    file.write(tsv_line(lists.table_columns()))
    for row in lists.table_rows():
        file.write(tsv_line("" if cell is None else cell for cell in row))


def write_jsonl(lists: Lists, file: typing.TextIO) -> None:
    """A line for each query: {"user": id, "item": [ids, best first], "score": [...], "title": [...]}.

    Explained: and "parts": {"id": [...], ...}, "because": [[{"item": id, "adds": number}, ...], ...].
    """
    for record in lists.records():
        file.write(json_text(record) + "\n")


def write_parquet(lists: Lists, file: typing.BinaryIO) -> None:
    """The columns of write_tsv, a row for each item; a row group every 65,536 rows."""
    import pyarrow as pa  # an optional dependency, whose presence recommend.check_flags has checked
    import pyarrow.parquet

    types = {str: pa.string(), int: pa.int32(), float: pa.float32()}
    schema = pa.schema([(name, types[kind]) for name, kind in lists.table_columns().items()])
    rows = lists.table_rows()
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while block := list(itertools.islice(rows, 65536)):
            columns = zip(zip(*block, strict=True), schema, strict=True)
            arrays = [pa.array(values, field.type) for values, field in columns]
            writer.write_table(pa.table(arrays, schema=schema))


WRITERS: dict[str, typing.Callable] = {"tsv": write_tsv, "jsonl": write_jsonl, "parquet": write_parquet}


@contextlib.contextmanager
def open_output(path: str, binary: bool) -> Iterator[typing.Any]:
    """A file to write, atomically, or stdout for an empty path."""
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(atomic_write(path)) if path else sys.stdout.buffer
        if binary:
            yield file
            return
        text = io.TextIOWrapper(file, encoding="utf-8", errors="replace", newline="\n")
        yield text
        text.flush()
        text.detach()
