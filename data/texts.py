"""Texts of items and users: JSON lines -> one text an internal id; the sizes and ids of a dataset folder.

texts, counts = read_texts(folder / "item_text.jsonl", 7050)   # a text or "" for each internal id
"""

import json
import re
from pathlib import Path

from data.formats import inter_path, read_ids, read_inter, read_interactions, read_txt
from utils import UserError

MAX_LINE = 2**20  # bytes of one JSON line
FIELDS = ("title", "brand", "categories", "description")


# ---------------------------------------------------------------- the dataset folder


def dataset_path(root, name):
    """The folder root/name. Raises UserError if it is not there."""
    folder = Path(root) / name
    if not folder.is_dir():
        raise UserError(
            f"{folder}: no such dataset folder; name one that lies in --data_root (README, 'Data')"
        )
    return folder


def catalogue_size(folder, kind):
    """Number of items or users (kind: "item" or "user"), and their original ids or None.

    From <kind>_ids.tsv where it is there; else from the largest id of the interactions, of which nothing else is used.
    """
    ids = read_ids(Path(folder) / f"{kind}_ids.tsv")
    if ids is not None:
        return len(ids), ids
    interactions = read_interactions(folder)
    return (interactions.n_items if kind == "item" else interactions.n_users), None


def train_histories(folder):
    """{user: [items]} of the TRAIN split alone, items in the order of the file, each once.

    train.txt is the only file that is opened; of an .inter table only the rows of x_label 0 are returned.
    """
    folder = Path(folder)
    table = (
        read_txt(folder / "train.txt")
        if (folder / "train.txt").exists()
        else read_inter(inter_path(folder))["train"]
    )
    table = table.drop_duplicates(["user", "item"])
    return {int(user): rows.tolist() for user, rows in table.groupby("user", sort=True)["item"]}


# ---------------------------------------------------------------- JSON lines


def json_lines(path):
    """Yield (line number, object) of a file with one JSON object a line. Blank lines are skipped.

    Raises UserError for a line that is no object, not UTF-8 or longer than MAX_LINE bytes.
    """
    try:
        file = open(path, "rb")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror}); name a file with one JSON object a line"
        ) from None
    with file:
        number = 0
        while line := file.readline(MAX_LINE + 1):
            number += 1
            if len(line) > MAX_LINE:
                raise UserError(f"{path}, line {number}: is longer than {MAX_LINE} bytes; shorten it")
            if not line.isspace():
                yield number, parse_object(line, f"{path}, line {number}")


def parse_object(line, where):
    """Bytes -> dict. Raises UserError, beginning with `where`, for anything that is not one JSON object."""
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is no JSON ({str(error)[:60]}); give one object a line") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: is a JSON {type(record).__name__}; give one object a line")
    return record


def clean(text):
    """Text on one line, with single spaces and without halves of surrogate pairs, which no tokenizer takes."""
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def words_of(value, where, depth=3):
    """A string, or lists of strings in lists (Amazon's categories), as one string. Raises UserError for other types."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and depth:
        return ", ".join(filter(None, (words_of(part, where, depth - 1) for part in value)))
    raise UserError(f"{where} is a {type(value).__name__}; texts are strings or lists of strings")


def item_text(record, where, text_field=""):
    """The text of a record: text_field if given, else "text", else title, brand, categories and description together."""
    fields = (text_field,) if text_field else ("text",) if record.get("text") else FIELDS
    parts = [clean(words_of(record.get(name), f"{where}: '{name}'")) for name in fields]
    return ". ".join(part.rstrip(".") if len(parts) > 1 else part for part in parts if part)


def row_finder(ids, n, matching, id_field):
    """A function (record, where) -> internal id, or None for an id that the dataset does not have.

    matching: "internal" (whole numbers below n) or "original" (through ids, the list of original ids).
    """
    if matching == "original":
        if ids is None:
            raise UserError(
                "--ids original needs item_ids.tsv (user_ids.tsv) in the dataset folder; make it, or take --ids internal"
            )
        rows = {original: row for row, original in enumerate(ids)}

    def find(record, where):
        value = record.get(id_field)
        if isinstance(value, bool) or not isinstance(value, (int, str)):
            raise UserError(
                f"{where}: has no '{id_field}'; --id_field names the field of the id, here one of "
                f"{', '.join(map(str, record))[:80]}"
            )
        if matching == "original":
            return rows.get(str(value))
        if not re.fullmatch(r"[0-9]{1,10}", str(value)):
            raise UserError(
                f"{where}: '{id_field}' {str(value)[:40]} is no whole number from 0; for original ids take --ids original"
            )
        return int(value) if int(value) < n else None

    return find


def read_texts(path, n, ids=None, matching="internal", id_field="item", text_field=""):
    """JSON lines -> (texts, counts): a text for each of n internal ids ("" without one), and how many of each kind.

    counts: {"texts": with a text, "empty": record without text, "absent": no record, "unknown": records of other ids}.
    Raises UserError for an id that stands twice, or if no record fits.
    """
    find, texts, line_of, unknown = row_finder(ids, n, matching, id_field), [""] * n, {}, 0
    for number, record in json_lines(path):
        where = f"{path}, line {number}"
        row = find(record, where)
        if row is None:
            unknown += 1
        elif row in line_of:
            raise UserError(
                f"{where}: '{id_field}' {str(record[id_field])[:40]} stands on line {line_of[row]} already; keep one"
            )
        else:
            line_of[row] = number
            texts[row] = item_text(record, where, text_field)
    filled = sum(map(bool, texts))
    if not filled:
        raise UserError(
            f"{path}: holds no text of the dataset's {n} ids ({unknown} records of other ids, {len(line_of)} without text); "
            "--id_field, --text_field and --ids say where ids and texts stand"
        )
    return texts, {
        "texts": filled,
        "empty": len(line_of) - filled,
        "absent": n - len(line_of),
        "unknown": unknown,
    }
