"""Streaming readers of raw files: tables of interactions, JSON lines, Amazon image features, lists of ids.

    inputs = {}
    for lines, frame in tables("ratings_Baby.csv", {}, None, inputs):
        frame                       # columns user, item (strings), rating, time (float64)
    inputs["ratings_Baby.csv"]      # {"bytes": ..., "sha256": ...}, once the file has been read to its end

The file name decides the format: .csv, .tsv, .parquet, .jsonl or .json (one record per line), all but Parquet
also with .gz. Lines of Amazon's 2014 .json files may be Python literals; they are parsed as data and never
evaluated. No reader holds a whole file in memory. Invalid content raises a UserError with file, line and
remedy.
"""

import ast
import contextlib
import gzip
import hashlib
import io
import itertools
import os
import re
import warnings
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from data.progress import progress_bar
from data.verify import IMAGE as IMAGE
from incoming import parse_json
from utils import UserError

# Role -> column names it may have, in order of preference.
COLUMNS = {
    "user": ("user", "user_id", "userID", "userId", "reviewerID"),
    "item": ("asin", "item", "item_id", "itemID", "itemId"),
    "rating": ("rating", "overall"),
    "time": ("timestamp", "time", "unixReviewTime"),
}
# Columns of Amazon's ratings_*.csv, which have no header.
AMAZON_RATINGS = ("user", "item", "rating", "timestamp")
KINDS = {
    ".csv": "csv",
    ".tsv": "tsv",
    ".inter": "tsv",
    ".parquet": "parquet",
    ".jsonl": "json",
    ".ndjson": "json",
    ".json": "json",
}
# Rows of a table in memory.
CHUNK = 200_000
# Bytes of a JSON line.
MAX_LINE = 1 << 20
# Characters of an id.
MAX_ID = 1000
# Characters that outgoing.printable would change in user_ids.tsv and item_ids.tsv.
CONTROL_CHARACTERS = r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]"
# Dates that pandas can tell apart to the nanosecond, from the first to before the second.
DATES = pd.Timestamp("1678-01-01", tz="UTC"), pd.Timestamp("2262-01-01", tz="UTC")

# {path: {"bytes": ..., "sha256": ...}} of the files read so far.
Inputs = dict[str, dict[str, Any]]
# Column names -> {name in the frame: column to read}.
Pick = Callable[[Sequence[str]], dict[str, str]]
# (line numbers, frame of strings).
Chunk = tuple[np.ndarray, pd.DataFrame]


# ---------------------------------------------------------------- bytes


class HashingReader(io.RawIOBase):
    """A file on disk that updates a progress bar and a SHA-256 while it is read."""

    def __init__(self, file: Any) -> None:
        self.file, self.digest, self.bytes = file, hashlib.sha256(), 0
        size, name = os.fstat(file.fileno()).st_size, Path(file.name).name
        self.bar = progress_bar(total=size, desc=name, unit="B", unit_scale=True, leave=False, delay=1)

    def readable(self) -> bool:
        """Always: io.BufferedReader asks."""
        return True

    def readinto(self, buffer: Any) -> int:
        """Read into a buffer; returns the number of bytes."""
        count = self.file.readinto(buffer)
        self.digest.update(memoryview(buffer)[:count])
        self.bytes += count
        self.bar.update(count)
        return count

    def close(self) -> None:
        """Close the progress bar; the file belongs to the caller."""
        self.bar.close()
        super().close()


@contextlib.contextmanager
def reading(path: str | Path, inputs: Inputs) -> Iterator[io.BufferedReader]:
    """A binary file to be read once, decompressed if its name ends in .gz.

    inputs: gets the size and SHA-256 of the file as it is on disk.
    Raises UserError if it is missing, unreadable or damaged.
    """
    try:
        with open(path, "rb", buffering=0) as file, HashingReader(file) as raw:
            buffered: Any = io.BufferedReader(raw, 1 << 20)
            content = buffered
            if str(path).endswith(".gz"):
                decompressed: Any = gzip.GzipFile(fileobj=buffered)
                content = io.BufferedReader(decompressed, 1 << 20)
            yield content
            # The checksum is of the whole file, also if the caller stopped early.
            while buffered.read(1 << 20):
                pass
            inputs[str(path)] = {"bytes": raw.bytes, "sha256": raw.digest.hexdigest()}
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise UserError(f"{path}: is not a complete gzip file ({error}); fetch it again") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def hash_input(path: str | Path, inputs: Inputs) -> None:
    """Record size and SHA-256 of a file that is not read from start to end."""
    with reading(path, inputs):
        pass


def kind_of(path: str | Path) -> str:
    """csv, tsv, parquet or json, by the name of a file. Raises UserError for other names."""
    suffix = Path(str(path).removesuffix(".gz")).suffix
    if suffix not in KINDS or (suffix == ".parquet" and str(path).endswith(".gz")):
        raise UserError(
            f"{path}: is not named .csv, .tsv, .jsonl, .json (these also with .gz) or .parquet; rename it by "
            "its format"
        )
    return KINDS[suffix]


# ---------------------------------------------------------------- JSON lines


def text_lines(path: str | Path, inputs: Inputs) -> Iterator[tuple[int, bytes]]:
    """Yield (number from 1, bytes) of every line that is not blank."""
    with reading(path, inputs) as file:
        for number in itertools.count(1):
            line = file.readline(MAX_LINE + 1)
            if not line:
                return
            if len(line) > MAX_LINE:
                raise UserError(
                    f"{path}, line {number}: is longer than {MAX_LINE} bytes; write one record per line"
                )
            if not line.isspace():
                yield number, line


def parse_record(line: bytes, path: str | Path, number: int) -> dict[str, Any]:
    """The JSON object or Python dict literal in a line. Raises UserError for anything else."""
    try:
        text = line.decode("utf-8-sig").strip()
        try:
            record = parse_json(text)
        except ValueError:
            # Accepts constants and containers only and executes nothing.
            record = ast.literal_eval(text)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError) as error:
        raise UserError(
            f"{path}, line {number}: is neither a JSON object nor a Python dict ({type(error).__name__}); "
            "write one record per line"
        ) from None
    if not isinstance(record, dict):
        raise UserError(
            f"{path}, line {number}: holds a {type(record).__name__} instead of an object with named fields"
        )
    return record


def json_records(
    path: str | Path, inputs: Inputs, relevant: Callable[[bytes], bool] = lambda line: True
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, record) of a file of JSON lines. relevant: whether a line is worth parsing."""
    # Python literals with unusual escapes cause SyntaxWarnings.
    with warnings.catch_warnings(action="ignore"):
        for number, line in text_lines(path, inputs):
            if relevant(line):
                yield number, parse_record(line, path, number)


def scalar_text(value: Any) -> str:
    """A string or number as text; '' for null, true, false, lists and objects."""
    return str(value) if isinstance(value, (str, int, float)) and not isinstance(value, bool) else ""


# ---------------------------------------------------------------- tables in any format


def pick_columns(
    columns: Sequence[str], wanted: Mapping[str, str | None], path: str | Path
) -> dict[str, str]:
    """{role: column} for user, item and, if present, rating and time.

    wanted: {role: column asked for, '' for none, None for a usual name}.
    Raises UserError if a requested column, or one for users or items, is missing.
    """
    picked = {}
    for role, usual_names in COLUMNS.items():
        requested = wanted.get(role)
        names = usual_names if requested is None else (requested,)
        column = next((name for name in names if name in columns), None)
        if column is not None:
            picked[role] = column
        elif requested or role in ("user", "item"):
            present = ", ".join(map(str, columns))[:200]
            raise UserError(
                f"{path}: has no column {' or '.join(names)} for the {role}; its columns are {present}: name "
                f"one with --{role}_column, or all with --columns if it has no header"
            )
    return picked


def csv_frames(
    path: str | Path, kind: str, pick: Pick, columns: Sequence[str] | None, inputs: Inputs
) -> Iterator[Chunk]:
    """Yield chunks of a CSV or TSV file. columns: those of a file without a header, else None.

    A line break inside quotes is not counted as a line.
    """
    options: dict[str, Any] = {"sep": ","}
    if kind == "tsv":
        options = {"sep": "\t", "quoting": 3}
    options |= {"header": None, "names": list(columns)} if columns else {"header": 0}
    options |= {"dtype": str, "na_filter": False, "encoding": "utf-8", "skip_blank_lines": False}
    start = 1 if columns else 2
    try:
        with reading(path, inputs) as file, warnings.catch_warnings(action="ignore"):
            names = [] if columns else header_names(file, options)
            for frame in pd.read_csv(file, chunksize=CHUNK, **options):
                # pandas takes surplus first cells for row labels.
                if not isinstance(frame.index, pd.RangeIndex):
                    raise UserError(f"{path}, line {start}: has more cells than columns; see --columns")
                filled = (frame != "").any(axis=1).to_numpy()
                lines = np.arange(start, start + len(frame))[filled]
                picked = pick(list(frame.columns))
                check_unique(names, picked.values(), path)
                yield lines, rename(frame[filled], picked)
                start += len(frame)
    except (pd.errors.ParserError, pd.errors.EmptyDataError, UnicodeDecodeError) as error:
        line = re.search(r"line (\d+)", str(error))
        where = f"{path}, line {line[1]}" if line else f"{path}"
        raise UserError(
            f"{where}: is not a {kind.upper()} table in UTF-8 ({str(error).strip()[:80]}); export it again"
        ) from None


def header_names(table: io.BufferedReader, options: Mapping[str, Any]) -> list[str]:
    """The names in the header of a table as they are: pandas renames repeated ones. Consumes nothing."""
    file = io.BytesIO(table.peek())
    first = {**options, "header": None, "nrows": 1, "encoding_errors": "replace"}
    return list(pd.read_csv(file, **first).iloc[0])


def check_unique(names: Sequence[str], used: Iterable[str], path: str | Path) -> None:
    """Raise UserError if a column that is used has the name of another."""
    for column in used:
        if names.count(column) > 1:
            raise UserError(f"{path}: has several columns {column}; give each a name of its own")


def rename(frame: pd.DataFrame, picked: Mapping[str, str]) -> pd.DataFrame:
    """The picked columns of a frame under their new names, with new row labels."""
    return pd.DataFrame({new: frame[old].to_numpy() for new, old in picked.items()}, dtype=object)


def parquet_frames(path: str | Path, pick: Pick, inputs: Inputs) -> Iterator[Chunk]:
    """Yield chunks of a Parquet file, with row numbers from 1."""
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise UserError(
            f"{path}: reading Parquet needs pyarrow: pip install -c constraints.txt -e '.[features]'"
        ) from None
    hash_input(path, inputs)
    try:
        file, start = pq.ParquetFile(path), 1
        picked = pick([field.name for field in file.schema_arrow if not pa.types.is_nested(field.type)])
        check_unique(file.schema_arrow.names, picked.values(), path)
        for batch in file.iter_batches(CHUNK, columns=list(picked.values())):
            cells = {}
            for new, old in picked.items():
                cells[new] = batch[old].cast(pa.string()).fill_null("").to_pylist()
            yield np.arange(start, start + len(batch)), pd.DataFrame(cells, dtype=object)
            start += len(batch)
    except pa.ArrowException as error:
        raise UserError(f"{path}: is not a usable Parquet file ({str(error)[:80]}); export it anew") from None


def json_frames(path: str | Path, pick: Pick, inputs: Inputs) -> Iterator[Chunk]:
    """Yield chunks of a file of JSON lines; the first record decides the columns."""
    records = json_records(path, inputs)
    picked: dict[str, str] = {}
    while batch := list(itertools.islice(records, CHUNK // 10)):
        picked = picked or pick(list(batch[0][1]))
        cells = {new: [scalar_text(record.get(old)) for _, record in batch] for new, old in picked.items()}
        yield np.array([number for number, _ in batch]), pd.DataFrame(cells, dtype=object)


def frames(path: str | Path, pick: Pick, columns: Sequence[str] | None, inputs: Inputs) -> Iterator[Chunk]:
    """Chunks of a file of any kind. columns: those of a CSV or TSV file without a header, else None."""
    kind = kind_of(path)
    if columns and kind not in ("csv", "tsv"):
        raise UserError(
            f"--columns {','.join(columns)}: only CSV and TSV files lack a header; {path} is {kind}"
        )
    if kind == "parquet":
        return parquet_frames(path, pick, inputs)
    if kind == "json":
        return json_frames(path, pick, inputs)
    return csv_frames(path, kind, pick, columns, inputs)


# ---------------------------------------------------------------- tables of interactions


def tables(
    path: str | Path, wanted: Mapping[str, str | None], columns: Sequence[str] | None, inputs: Inputs
) -> Iterator[Chunk]:
    """Yield (line numbers, frame) of a table of interactions: user, item as strings, rating, time as float64.

    wanted: see pick_columns. columns: those of a file without a header, else None; Amazon's ratings_*.csv are
    recognised. Raises UserError for an empty or unusable id, and for a rating or time that is not a number.
    """
    if columns is None and not any(wanted.values()) and is_amazon_ratings(path):
        columns = AMAZON_RATINGS
    for lines, frame in frames(path, lambda names: pick_columns(names, wanted, path), columns, inputs):
        for role in ("user", "item"):
            check_ids(frame[role], role, path, lines)
        if "rating" in frame:
            frame["rating"] = to_numbers(frame["rating"], "rating", path, lines)
            problem = "is not positive, as the trainer requires"
            refuse(frame["rating"] <= 0, frame["rating"], problem, "rating", path, lines)
        if "time" in frame:
            frame["time"] = to_times(frame["time"], path, lines)
        yield lines, frame


def is_amazon_ratings(path: str | Path) -> bool:
    """Whether a file is named as Amazon's ratings are, and begins with a rating and not with a header."""
    if not re.fullmatch(r"ratings_.*\.csv(\.gz)?", Path(path).name):
        return False
    try:
        with (gzip.open if str(path).endswith(".gz") else open)(path, "rb") as file:
            cells = file.readline(MAX_LINE).decode("utf-8", "replace").split(",")
    except (OSError, EOFError, zlib.error):
        return False  # whoever reads the table says why it cannot be read
    return len(cells) == len(AMAZON_RATINGS) and bool(
        pd.to_numeric(pd.Series(cells[2:]).str.strip(), errors="coerce").notna().all()
    )


def refuse(bad: Any, cells: pd.Series, problem: str, role: str, path: str | Path, lines: np.ndarray) -> None:
    """Raise UserError for the first bad cell. bad: mask [n]; cells, lines: [n]."""
    bad = np.asarray(bad, dtype=bool)
    if bad.any():
        first = bad.argmax()
        remedy = ""
        if role in ("rating", "time"):
            remedy = f"; correct it, or leave the column out with --{role}_column ''"
        raise UserError(f"{path}, line {lines[first]}: {role} {str(cells[first])[:40]!r} {problem}{remedy}")


def check_ids(ids: pd.Series, role: str, path: str | Path, lines: np.ndarray) -> None:
    """Raise UserError for the first id that is empty, too long, or contains a control character."""
    refuse(ids == "", ids, "is empty", role, path, lines)
    refuse(ids.str.len() > MAX_ID, ids, f"is longer than {MAX_ID} characters", role, path, lines)
    problem = "contains a tab, a line break or another control character; replace it"
    refuse(ids.str.contains(CONTROL_CHARACTERS), ids, problem, role, path, lines)


def to_numbers(cells: pd.Series, role: str, path: str | Path, lines: np.ndarray) -> pd.Series:
    """Strings -> finite float64."""
    values = pd.to_numeric(cells, errors="coerce").astype(np.float64)
    refuse(~np.isfinite(values), cells, "is not a number", role, path, lines)
    return values


def to_times(cells: pd.Series, path: str | Path, lines: np.ndarray) -> pd.Series:
    """Numbers, or ISO 8601 dates (UTC by default) as seconds since 1970: strings -> float64."""
    values = pd.to_numeric(cells, errors="coerce").astype(np.float64)
    if values.isna().all():
        dates = pd.to_datetime(cells, format="ISO8601", utc=True, errors="coerce")
        # Other dates would overflow.
        dates = dates.where(dates.between(*DATES, inclusive="left"))
        values = (dates - pd.Timestamp(0, tz="UTC")) / pd.Timedelta(seconds=1)
    problem = "is neither a number nor an ISO 8601 date of the years 1678 to 2261"
    refuse(~np.isfinite(values), cells, problem, "time", path, lines)
    return values


# ---------------------------------------------------------------- features


def image_records(
    path: str | Path, inputs: Inputs, block: int = 256
) -> Iterator[tuple[list[str], np.ndarray]]:
    """Yield (ids, vectors [b, 4096] float32) of an Amazon image_features_*.b file."""
    with reading(path, inputs) as file:
        for start in itertools.count(0, block):
            data = file.read(block * IMAGE.itemsize)
            if not data:
                return
            n_complete, n_surplus = divmod(len(data), IMAGE.itemsize)
            if n_surplus:
                raise UserError(
                    f"{path}, record {start + n_complete + 1}: ends after {n_surplus} of {IMAGE.itemsize} "
                    "bytes; fetch the file again"
                )
            records = np.frombuffer(data, IMAGE)
            yield [name.decode("utf-8", "replace") for name in records["id"]], records["vector"]


def row_ids(path: str | Path, n_rows: int, inputs: Inputs) -> list[str]:
    """The original id of every row of a feature file.

    path: one id per line, in the order of the rows; or two columns separated by a tab or comma, of which one
    is the row number from 0, with or without a header (item_ids.tsv, MMRec's i_id_mapping.csv). Raises
    UserError if there is not one id for each row.
    """
    lines = [decode_line(line, path, number) for number, line in text_lines(path, inputs)]
    separator = "," if str(path).endswith(".csv") and lines and "\t" not in lines[0] else "\t"
    cells = [line.split(separator) for line in lines]
    widths = {len(row) for row in cells}
    if widths == {1} and len(cells) == n_rows:
        return [row[0] for row in cells]
    row_numbers = sorted(map(str, range(n_rows)))
    # The first line may be a header.
    for table in (cells, cells[1:]):
        if widths != {2} or len(table) != n_rows:
            continue
        for column in (0, 1):
            numbers = [row[column] for row in table]
            if sorted(numbers) == row_numbers:
                names = {int(row[column]): row[1 - column] for row in table}
                return [names[row] for row in range(n_rows)]
    raise UserError(
        f"{path}: does not name an id for each of {n_rows} rows; write one per line in their order, or ROW "
        "<tab> ID with rows from 0"
    )


def decode_line(line: bytes, path: str | Path, number: int) -> str:
    """A line as text without its line break and a mark at the start of the file.

    Raises UserError if it is not UTF-8.
    """
    try:
        return line.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise UserError(f"{path}, line {number}: is not UTF-8; save the file as UTF-8") from None
