"""Item metadata of raw files: title, brand, categories and description.

for line, item_id, texts in item_records("meta_Baby.json.gz", None, item_ids, inputs={}):
    texts["title"]
"""

import html
import re
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.raw import COLUMNS, Inputs, frames, json_records, kind_of, scalar_text
from utils import UserError

# Text -> column names it may have, in order of preference.
TEXTS = {
    "title": ("title", "name"),
    "brand": ("brand",),
    "categories": ("categories", "category"),
    "description": ("description",),
}
# The start of a line of Amazon's metadata, which begins with the id.
ASIN_FIRST = re.compile(rb"""\s*{\s*["']asin["']\s*:\s*["']([^"'\\]*)["']""")


def item_records(
    path: str | Path, id_column: str | None, item_ids: Collection[str], inputs: Inputs
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """Yield (line, id, {title, brand, categories, description}) of the items that are in item_ids.

    id_column: its name, or None for a usual one. Categories in lists are joined by ', ', other lists by ' '.
    Raises UserError for a record without id, or a table without id and text columns.
    """
    id_columns = ((id_column,) if id_column else ()) + COLUMNS["item"]
    if kind_of(path) == "json":
        yield from json_item_records(path, id_column, id_columns, item_ids, inputs)
        return

    def pick(columns: Sequence[str]) -> dict[str, str]:
        return pick_text_columns(columns, id_columns, path)

    for lines, frame in frames(path, pick, None, inputs):
        known = frame["id"].isin(item_ids).to_numpy()
        for line, record in zip(lines[known], frame[known].to_dict("records")):
            yield int(line), record["id"], {key: one_line(record.get(key, ""), key) for key in TEXTS}


def json_item_records(
    path: str | Path,
    id_column: str | None,
    id_columns: Sequence[str],
    item_ids: Collection[str],
    inputs: Inputs,
) -> Iterator[tuple[int, str, dict[str, str]]]:
    """item_records of a file of JSON lines or Python literals."""

    def relevant(line: bytes) -> bool:
        return bool(id_column) or may_describe(line, item_ids)

    for number, record in json_records(path, inputs, relevant):
        item_id = scalar_text(next((record[name] for name in id_columns if name in record), None))
        if not item_id:
            raise UserError(
                f"{path}, line {number}: has no item id ({' or '.join(id_columns)}); name its field with "
                "--item_column"
            )
        if item_id in item_ids:
            values = {
                key: next((record[name] for name in names if name in record), "")
                for key, names in TEXTS.items()
            }
            yield number, item_id, {key: one_line(value, key) for key, value in values.items()}


def may_describe(line: bytes, item_ids: Collection[str]) -> bool:
    """Whether a line of metadata may describe one of these items.

    Parsing takes most of the time, and most lines of Amazon's files describe other items.
    """
    start = ASIN_FIRST.match(line)
    return not start or start[1].decode("utf-8", "replace") in item_ids


def pick_text_columns(columns: Sequence[str], id_columns: Sequence[str], path: str | Path) -> dict[str, str]:
    """{"id" and every text found: its column}. Raises UserError without an id column or any text column."""
    candidates = {"id": id_columns, **TEXTS}
    picked = {}
    for key, names in candidates.items():
        for name in names:
            if name in columns:
                picked[key] = name
                break
    if "id" not in picked or len(picked) < 2:
        raise UserError(
            f"{path}: needs a column {' or '.join(id_columns)} and one of {', '.join(TEXTS)}; its columns "
            f"are {', '.join(map(str, columns))[:200]}"
        )
    return picked


def one_line(value: Any, key: str) -> str:
    """A text of any nesting on one line, with entities such as &amp; resolved and white space collapsed."""
    separator = ", " if key == "categories" else " "
    return separator.join(" ".join(html.unescape(part).split()) for part in leaves(value) if part.strip())


def leaves(value: Any) -> Iterator[str]:
    """The strings and numbers in nested lists, in order."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)
    else:
        yield scalar_text(value)
