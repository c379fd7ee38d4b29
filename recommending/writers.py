"""Recommendation lists as files: tab-separated text, JSON lines and Parquet."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
import sys
import typing
from collections.abc import Iterable, Iterator

from outgoing import json_text, tsv_line
from utils import atomic_write

TopList = tuple[list[int], list[float]]  # item indices, best first, and their scores


@dataclasses.dataclass(frozen=True)
class Lists:
    """For each query its best items. columns: names of the two ids; chunks: (first query, [TopList, ...])."""

    columns: tuple[str, str]
    names: list[str]  # of the queries
    item_ids: list[str]
    titles: list[str] | None
    chunks: Iterable[tuple[int, list[TopList]]]

    def rows(self) -> Iterator[tuple[str, list[str], list[float], list[str] | None]]:
        """(query id, item ids, scores rounded to six digits, titles or None) of each query."""
        for start, lists in self.chunks:
            for number, (items, values) in enumerate(lists, start):
                titles = None if self.titles is None else [self.titles[item] for item in items]
                scores = [float(f"{score:.6g}") for score in values]
                yield self.names[number], [self.item_ids[item] for item in items], scores, titles


def write_tsv(lists: Lists, file: typing.TextIO) -> None:
    """A line for each item, with a header: query, rank from 1, item, score and, where known, title."""
    titled = lists.titles is not None
    header = [lists.columns[0], "rank", lists.columns[1], "score", *(["title"] if titled else [])]
    file.write(tsv_line(header))
    for name, items, scores, titles in lists.rows():
        columns = [items, map(repr, scores), *([titles] if titles is not None else [])]
        for rank, row in enumerate(zip(*columns, strict=True), 1):
            file.write(tsv_line((name, rank, *row)))


def write_jsonl(lists: Lists, file: typing.TextIO) -> None:
    """A line for each query: {"user": id, "item": [ids, best first], "score": [...], "title": [...]}."""
    for name, items, scores, titles in lists.rows():
        record = {lists.columns[0]: name, lists.columns[1]: items, "score": scores}
        if titles is not None:
            record["title"] = titles
        file.write(json_text(record) + "\n")


def write_parquet(lists: Lists, file: typing.BinaryIO) -> None:
    """Columns query, rank, item, score[, title], a row for each item; a row group every 4,096 queries."""
    import pyarrow as pa  # an optional dependency, whose presence recommend.check_flags has checked
    import pyarrow.parquet

    fields = [
        (lists.columns[0], pa.string()),
        ("rank", pa.int32()),
        (lists.columns[1], pa.string()),
        ("score", pa.float32()),
    ]
    if lists.titles is not None:
        fields.append(("title", pa.string()))
    schema = pa.schema(fields)
    rows = lists.rows()
    with pyarrow.parquet.ParquetWriter(file, schema) as writer:
        while block := list(itertools.islice(rows, 4096)):
            names = [name for name, items, *_ in block for _ in items]
            ranks = [rank for _, items, *_ in block for rank in range(1, len(items) + 1)]
            rest: typing.Any = block
            parts = ([value for row in rest for value in row[part]] for part in range(1, len(schema) - 1))
            columns = zip([names, ranks, *parts], schema, strict=True)
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
