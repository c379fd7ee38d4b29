"""Streaming readers of raw files: tables of interactions, item metadata, image features, lists of ids.

    for lines, frame in tables("ratings_Baby.csv", {}, None, inputs := {}):
        frame                       # columns user, item, rating, time; all strings
    inputs["ratings_Baby.csv"]      # {"bytes": ..., "sha256": ...}, once it was read to its end

Formats go by the name: .csv, .tsv, .parquet, .jsonl or .json (one record a line), all but Parquet also with .gz.
Amazon's 2014 files are .json whose lines may be Python literals; they are parsed as data and never evaluated.
No reader holds a whole file in memory. What cannot be used ends in a UserError that names file, line and remedy.
"""

import ast
import contextlib
import gzip
import hashlib
import html
import io
import itertools
import json
import os
import re
import warnings
import zlib
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from utils import UserError

COLUMNS = {
    "user": (
        "user",
        "user_id",
        "userID",
        "userId",
        "reviewerID",
    ),  # role -> names it goes by, first found first
    "item": ("asin", "item", "item_id", "itemID", "itemId"),
    "rating": ("rating", "overall"),
    "time": ("timestamp", "time", "unixReviewTime"),
}
TEXTS = {
    "title": ("title", "name"),
    "brand": ("brand",),
    "categories": ("categories", "category"),
    "description": ("description",),
}
AMAZON_RATINGS = ("user", "item", "rating", "timestamp")  # ratings_*.csv has no header
KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "tsv",
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
CHUNK = 200_000  # rows of a table in memory
MAX_LINE = 1 << 20  # bytes of a JSON line
MAX_ID = 1000  # characters of an id
UNFIT = r"[\x00-\x1f\x7f\x85\u2028\u2029]"  # would break the lines of user_ids.tsv and item_ids.tsv
IMAGE = np.dtype([("id", "S10"), ("vector", "<f4", 4096)])


# ---------------------------------------------------------------- bytes


class Tracked(io.RawIOBase):
    """A file on disk that moves a progress bar and a SHA-256 along while it is read."""

    def __init__(self, file):
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0
        self.bar = tqdm(
            total=os.fstat(file.fileno()).st_size,
            desc=Path(file.name).name,
            unit="B",
            unit_scale=True,
            leave=False,
            delay=1,
        )

    def readable(self):
        return True

    def readinto(self, buffer):
        count = self.file.readinto(buffer)
        self.digest.update(memoryview(buffer)[:count])
        self.bytes += count
        self.bar.update(count)
        return count

    def close(self):
        self.bar.close()
        super().close()


@contextlib.contextmanager
def reading(path, inputs):
    """A binary file to be read once, uncompressed if its name ends in .gz.

    inputs: dict that gains {path: {"bytes": n, "sha256": hex}} of the file as it lies on the disk.
    Raises UserError if it is missing, unreadable or damaged.
    """
    try:
        with open(path, "rb", buffering=0) as file, Tracked(file) as raw:
            file = buffered = io.BufferedReader(raw, 1 << 20)
            if str(path).endswith(".gz"):
                file = io.BufferedReader(gzip.GzipFile(fileobj=buffered), 1 << 20)
            yield file
            while buffered.read(1 << 20):
                pass  # the checksum is of the whole file
            inputs[str(path)] = {"bytes": raw.bytes, "sha256": raw.digest.hexdigest()}
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: is no whole gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def kind_of(path):
    """csv, tsv, parquet or json, by the name of a file. Raises UserError for other names."""
    suffix = Path(str(path).removesuffix(".gz")).suffix
    if suffix not in KINDS or (suffix == ".parquet" and str(path).endswith(".gz")):
        raise UserError(
            f"{path}: is not called .csv, .tsv, .jsonl, .json (these also with .gz) or .parquet; rename it by what it holds"
        )
    return KINDS[suffix]


# ---------------------------------------------------------------- records


def lines(path, inputs):
    """Yield (number from 1, bytes) of every line that is not blank."""
    with reading(path, inputs) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE:
                raise UserError(
                    f"{path}, line {number}: is longer than {MAX_LINE} bytes; write one record a line"
                )
            if not line.isspace():
                yield number, line


def parse_record(line, path, number):
    """A line that holds a JSON object or a Python dict literal -> dict. Raises UserError for anything else."""
    try:
        text = line.decode("utf-8-sig").strip()
        try:
            record = json.loads(text)
        except ValueError:
            record = ast.literal_eval(text)  # constants and containers only: runs nothing
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{path}, line {number}: is neither a JSON object nor a Python dict ({type(error).__name__}); "
            "write one record a line"
        ) from None
    if not isinstance(record, dict):
        raise UserError(
            f"{path}, line {number}: holds a {type(record).__name__} instead of an object with named fields"
        )
    return record


def records(path, inputs, wanted=lambda line: True):
    """Yield (line, dict) of a file of JSON lines. wanted: says of a line's bytes whether it is worth parsing."""
    with warnings.catch_warnings(action="ignore"):  # of odd escapes in Python literals
        for number, line in lines(path, inputs):
            if wanted(line):
                yield number, parse_record(line, path, number)


def plain(value):
    """A JSON value that fits one cell -> string; what does not (null, true, lists, objects) -> ''."""
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


# ---------------------------------------------------------------- tables


def pick_columns(names, wanted, path):
    """{role: column} for user, item and, where there are such, rating and time.

    names: the columns of the file. wanted: {role: column asked for, '' for none, None for one of its usual names}.
    Raises UserError if a column that is asked for, or one for users or items, is not there.
    """
    found = {}
    for role, usual in COLUMNS.items():
        asked = wanted.get(role)
        options = usual if asked is None else (asked,)
        found[role] = next((name for name in options if name in names), None)
        if found[role] is None and (asked or role in ("user", "item")):
            there = ", ".join(map(str, names))[:200]
            raise UserError(
                f"{path}: has no column {' or '.join(options)} for the {role}; its columns are {there}: name one with "
                f"--{role}_column, or all with --columns if it has no header"
            )
    return {role: name for role, name in found.items() if name is not None}


def csv_frames(path, kind, pick, columns, inputs):
    """Yield (line numbers, frame of strings) of a CSV or TSV file; a quoted line break counts as no line.

    pick: column names -> {name in the frame: column}. columns: the columns where the file has no header, else None.
    """
    options = dict(sep="\t", quoting=3) if kind == "tsv" else dict(sep=",")
    header = dict(header=None, names=list(columns)) if columns else dict(header=0)
    start = 1 if columns else 2
    try:
        with reading(path, inputs) as file, warnings.catch_warnings(action="ignore"):
            for frame in pd.read_csv(
                file,
                dtype=str,
                na_filter=False,
                chunksize=CHUNK,
                encoding="utf-8",
                skip_blank_lines=False,
                **options,
                **header,
            ):
                if not isinstance(
                    frame.index, pd.RangeIndex
                ):  # pandas takes surplus first cells for row labels
                    raise UserError(
                        f"{path}, line {start}: has more cells than there are columns; see --columns"
                    )
                filled = (frame != "").any(axis=1).to_numpy()
                yield (
                    np.arange(start, start + len(frame))[filled],
                    select(frame[filled], pick(list(frame.columns))),
                )
                start += len(frame)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        line = re.search(r"line (\d+)", str(error))
        raise UserError(
            f"{path}{f', line {line[1]}' if line else ''}: is no {kind.upper()} table in UTF-8 "
            f"({str(error).strip()[:80]})"
        ) from None


def select(frame, picked):
    """The picked columns of a frame under their new names, rows numbered anew."""
    return pd.DataFrame({new: frame[old].to_numpy() for new, old in picked.items()}, dtype=object)


def parquet_frames(path, pick, inputs):
    """Yield (row numbers from 1, frame of strings) of a Parquet file. pick: as in csv_frames."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow: pip install -c constraints.txt -e '.[features]'"
        ) from None
    with reading(path, inputs):
        pass  # for the checksum: Parquet is not read from start to end
    try:
        file, start = pq.ParquetFile(path), 1
        picked = pick([field.name for field in file.schema_arrow if not pa.types.is_nested(field.type)])
        for batch in file.iter_batches(CHUNK, columns=list(picked.values())):
            cells = {
                new: batch[old].cast(pa.string()).fill_null("").to_pylist() for new, old in picked.items()
            }
            yield np.arange(start, start + len(batch)), pd.DataFrame(cells, dtype=object)
            start += len(batch)
    except pa.ArrowException as error:
        raise UserError(f"{path}: is no Parquet file that can be used ({str(error)[:80]})") from None


def json_frames(path, pick, inputs):
    """Yield (line numbers, frame of strings) of a file of JSON lines. pick: as in csv_frames, of the first record."""
    rows, picked = records(path, inputs), None
    while batch := list(itertools.islice(rows, CHUNK // 10)):
        picked = picked or pick(list(batch[0][1]))
        cells = {new: [plain(record.get(old)) for _, record in batch] for new, old in picked.items()}
        yield np.array([number for number, _ in batch]), pd.DataFrame(cells, dtype=object)


def frames(path, pick, columns, inputs):
    """The reader for the kind of a file, see csv_frames."""
    kind = kind_of(path)
    if columns and kind not in ("csv", "tsv"):
        raise UserError(
            f"--columns {','.join(columns)}: only CSV and TSV files lack a header; {path} is {kind}"
        )
    if kind == "parquet":
        return parquet_frames(path, pick, inputs)
    return (
        json_frames(path, pick, inputs) if kind == "json" else csv_frames(path, kind, pick, columns, inputs)
    )


def tables(path, wanted, columns, inputs):
    """Yield (line numbers, frame) of a table of interactions: user and item as strings, rating and time as float64.

    wanted: see pick_columns. columns: the columns of a file without a header, else None; ratings_*.csv is known.
    Raises UserError for an empty or unfit id, and for a rating or time that is no number.
    """
    if (
        columns is None
        and not any(wanted.values())
        and re.fullmatch(r"ratings_.*\.csv(\.gz)?", Path(path).name)
    ):
        columns = AMAZON_RATINGS
    for number, frame in frames(path, lambda names: pick_columns(names, wanted, path), columns, inputs):
        for role in ("user", "item"):
            check_ids(frame[role], role, path, number)
        if "rating" in frame:
            frame["rating"] = to_numbers(frame["rating"], "rating", path, number)
            refuse(
                frame["rating"] <= 0,
                frame["rating"],
                "is not positive, as the trainer needs it",
                "rating",
                path,
                number,
            )
        if "time" in frame:
            frame["time"] = to_times(frame["time"], path, number)
        yield number, frame


def refuse(bad, cells, problem, role, path, number):
    """Raise UserError for the first bad cell. bad: [n] bool, cells: [n], number: [n] lines."""
    bad = np.asarray(bad, dtype=bool)
    if bad.any():
        at = bad.argmax()
        remedy = (
            f"; mend it, or leave the column out with --{role}_column ''"
            if role in ("rating", "time")
            else ""
        )
        raise UserError(f"{path}, line {number[at]}: {role} {str(cells[at])[:40]!r} {problem}{remedy}")


def check_ids(ids, role, path, number):
    """Raise UserError for the first id that is empty, too long, or holds a tab, line break or other control character."""
    refuse(ids == "", ids, "is empty", role, path, number)
    refuse(ids.str.len() > MAX_ID, ids, f"is longer than {MAX_ID} characters", role, path, number)
    refuse(
        ids.str.contains(UNFIT),
        ids,
        "holds a tab, a line break or another control character; replace it",
        role,
        path,
        number,
    )


def to_numbers(cells, role, path, number):
    """Strings -> finite float64."""
    values = pd.to_numeric(cells, errors="coerce").astype(np.float64)
    refuse(~np.isfinite(values), cells, "is no number", role, path, number)
    return values


def to_times(cells, path, number):
    """Numbers, or ISO 8601 dates and times (UTC unless they say otherwise), as strings -> float64; dates in seconds since 1970."""
    values = pd.to_numeric(cells, errors="coerce").astype(np.float64)
    if values.isna().all():
        dates = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce")
        values = (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    refuse(~np.isfinite(values), cells, "is neither a number nor an ISO 8601 date", "time", path, number)
    return values


# ---------------------------------------------------------------- items


def item_records(path, wanted, item_ids, inputs):
    """Yield (line, id, {title, brand, categories, description}) of the items of a metadata file that are in item_ids.

    wanted: name of the id column, or None for a usual one. Categories in lists are joined by ', ', other lists by ' '.
    """
    names = ((wanted,) if wanted else ()) + COLUMNS["item"]
    if kind_of(path) == "json":
        for number, record in records(path, inputs, lambda line: wanted or may_name(line, item_ids)):
            name = plain(next((record[key] for key in names if key in record), None))
            if not name:
                raise UserError(
                    f"{path}, line {number}: has no item id ({' or '.join(names)}); name its field with --item_column"
                )
            if name in item_ids:
                cells = {
                    key: next((record[column] for column in usual if column in record), "")
                    for key, usual in TEXTS.items()
                }
                yield number, name, {key: flat(cell, key) for key, cell in cells.items()}
        return
    for number, frame in frames(path, lambda there: pick_texts(there, names, path), None, inputs):
        here = frame["id"].isin(item_ids).to_numpy()
        for line, record in zip(number[here], frame[here].to_dict("records")):
            yield line, record["id"], {key: flat(record.get(key, ""), key) for key in TEXTS}


def pick_texts(there, id_names, path):
    """{id and each text that there is: column} of a metadata table with the columns `there`."""
    roles = {"id": id_names, **TEXTS}
    found = {role: next((name for name in usual if name in there), None) for role, usual in roles.items()}
    if found["id"] is None or not any(found[key] for key in TEXTS):
        raise UserError(
            f"{path}: needs a column {' or '.join(id_names)} and one of {', '.join(TEXTS)}; its columns are "
            f"{', '.join(map(str, there))[:200]}"
        )
    return {role: name for role, name in found.items() if name}


def may_name(line, item_ids, start=re.compile(rb"""\s*{\s*["']asin["']\s*:\s*["']([^"'\\]*)["']""")):
    """Whether a line of metadata may be about one of these items. Amazon's begin with the id, and parsing the lines of all
    the other items would take most of the time."""
    found = start.match(line)
    return not found or found[1].decode("utf-8", "replace") in item_ids


def flat(value, key):
    """A text field, whatever its nesting, as one line: entities such as &amp; resolved, white space collapsed."""
    separator = ", " if key == "categories" else " "
    return separator.join(" ".join(html.unescape(part).split()) for part in leaves(value) if part.strip())


def leaves(value):
    """The strings and numbers in nested lists, in order."""
    if isinstance(value, (list, tuple)):
        for part in value:
            yield from leaves(part)
    else:
        yield plain(value)


# ---------------------------------------------------------------- features


def image_records(path, inputs, block=256):
    """Yield (ids, vectors [b, 4096] float32) of an Amazon image_features_*.b file: records of a 10-byte id and 4096 floats."""
    with reading(path, inputs) as file:
        for start in itertools.count(0, block):
            data = file.read(block * IMAGE.itemsize)
            if not data:
                return
            if len(data) % IMAGE.itemsize:
                raise UserError(
                    f"{path}, record {start + len(data) // IMAGE.itemsize + 1}: ends after {len(data) % IMAGE.itemsize} of "
                    f"{IMAGE.itemsize} bytes; fetch the file again"
                )
            block_of = np.frombuffer(data, IMAGE)
            yield [name.decode("utf-8", "replace") for name in block_of["id"]], block_of["vector"]


def row_ids(path, rows, inputs):
    """The original id of every row of a feature file, as a list.

    path: an id a line, in the order of the rows, or two columns separated by a tab or comma, one of which is the row
    number from 0, with or without a header (item_ids.tsv as written here, MMRec's i_id_mapping.csv).
    Raises UserError if there is not one id for each row.
    """
    text = [text_line(line, path, number) for number, line in lines(path, inputs)]
    separator = "," if str(path).endswith(".csv") and text and "\t" not in text[0] else "\t"
    cells = [line.split(separator) for line in text]
    width = {len(row) for row in cells}
    if width == {1} and len(cells) == rows:
        return [row[0] for row in cells]
    for table in (cells, cells[1:]):  # the first line may be a header
        for column in (0, 1) if width == {2} and len(table) == rows else ():
            numbers = [row[column] for row in table]
            if sorted(numbers) == sorted(map(str, range(rows))):
                names = dict(zip(map(int, numbers), (row[1 - column] for row in table)))
                return [names[row] for row in range(rows)]
    raise UserError(
        f"{path}: does not name an id for each of {rows} rows; write one a line in their order, or ROW <tab> ID with "
        "rows from 0"
    )


def text_line(line, path, number):
    """Bytes of a line -> string without its line break."""
    try:
        return line.decode().rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}, line {number}: is not UTF-8") from None
