"""Encode inputs batch by batch into a .npy file that a killed run can continue.

    batches = batched(rows, 16)
    make_features(path, n, batches, encode, encoder, inputs_sha256, output, counts)

Finished batches are kept in a memory-mapped side file until all are done. What the file was made from, and
how, is recorded in features.json beside it.
"""

import dataclasses
import glob
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.encoders import Encoder
from data.progress import progress_bar
from data.texts import parse_object
from data.verify import file_sha256
from utils import UserError, atomic_write, content_hash, lock_file, write_json

RECORD = "features.json"
MAX_RECORD_SIZE = 2**26
# Rows handled at a time outside the model.
BLOCK = 4096

# encode(rows) -> (those of the rows that have a vector, their vectors [m, dim] float32).
Encode = Callable[[list[int]], tuple[list[int], np.ndarray]]


@dataclasses.dataclass(frozen=True)
class Output:
    """How the rows of a feature file are made and stored."""

    batch_size: int
    # Row of an id without input: "zeros", or "mean" of the other rows.
    missing: str
    # "float16" or "float32".
    dtype: str


def batched(rows: Sequence[int], size: int) -> list[list[int]]:
    """Lists of `size` consecutive rows, the last one shorter."""
    return [list(rows[start : start + size]) for start in range(0, len(rows), size)]


# ---------------------------------------------------------------- rows


def open_partial(path: Path, n: int, dim: int) -> np.ndarray:
    """The memory-mapped side file [n, dim] float32 of an unfinished run; created if it is missing or damaged.

    A row of NaN is not encoded yet, a row of Inf has no vector: the file itself says where to continue.
    """
    partial = load_partial(path)
    if partial is not None and partial.shape == (n, dim) and partial.dtype == np.float32:
        return partial
    # Write all rows now: a full disk is then reported here, and not as a bus error of the mapping.
    with atomic_write(path) as file:
        header = {"descr": "<f4", "fortran_order": False, "shape": (n, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        for start in range(0, n, BLOCK):
            file.write(np.full((min(BLOCK, n - start), dim), np.nan, "<f4").data)
    return np.load(path, mmap_mode="r+", allow_pickle=False)


def load_partial(path: Path) -> np.ndarray | None:
    """The array in a side file, None if there is none or it is damaged."""
    try:
        return np.load(path, mmap_mode="r+", allow_pickle=False)
    # Damaged files make NumPy raise many kinds of exceptions.
    except Exception:
        return None


def encode_rows(partial: np.ndarray, batches: list[list[int]], encode: Encode, description: str) -> None:
    """Fill the rows of `partial` [n, dim] in place, skipping the batches that an earlier run finished.

    batches: the same in every run, because the last bits of a vector depend on its batch.
    Raises UserError if the model returns NaN or Inf, or memory runs out.
    """
    todo = [rows for rows in batches if np.isnan(partial[rows]).any()]
    total, n_left = sum(map(len, batches)), sum(map(len, todo))
    with progress_bar(total=total, initial=total - n_left, desc=description, unit="row") as bar:
        for rows in todo:
            encoded, vectors = encode_batch(encode, rows)
            partial[[row for row in rows if row not in encoded]] = np.inf
            partial[encoded] = vectors
            bar.update(len(rows))


def encode_batch(encode: Encode, rows: list[int]) -> tuple[list[int], np.ndarray]:
    """encode(rows). Raises UserError if memory runs out or a vector is not finite."""
    try:
        encoded, vectors = encode(rows)
    except torch.OutOfMemoryError:
        raise UserError(
            "the device is out of memory: reduce --batch_size or --max_length, or use --dtype bfloat16; "
            "finished batches can be continued only with unchanged settings"
        ) from None
    finite = np.isfinite(vectors).all(axis=1)
    if not finite.all():
        raise UserError(f"row {encoded[finite.argmin()]}: the model returned NaN or Inf; use --dtype float32")
    return encoded, vectors


def mean_vector(partial: np.ndarray) -> np.ndarray:
    """Mean [dim] float64 of the rows that have a vector."""
    total, count = np.zeros(partial.shape[1]), 0
    for start in range(0, len(partial), BLOCK):
        block = partial[start : start + BLOCK]
        block = block[np.isfinite(block[:, 0])]
        total += block.sum(axis=0, dtype=np.float64)
        count += len(block)
    return total / max(count, 1)


def fill_missing(partial: np.ndarray, missing: str, dtype: str) -> tuple[np.ndarray, int]:
    """[n, dim] in the given dtype with the rows without a vector filled, and the number of these rows."""
    fill = mean_vector(partial) if missing == "mean" else 0.0
    features, n_missing = np.empty(partial.shape, dtype), 0
    for start in range(0, len(partial), BLOCK):
        block = np.array(partial[start : start + BLOCK])
        without_vector = ~np.isfinite(block[:, 0])
        block[without_vector] = fill
        n_missing += int(without_vector.sum())
        with np.errstate(over="ignore"):
            features[start : start + BLOCK] = block
        if not np.isfinite(features[start : start + BLOCK]).all():
            raise UserError(
                f"--save_dtype {dtype}: too small for these numbers; use float32 or --normalize 1"
            )
    return features, n_missing


# ---------------------------------------------------------------- files


def read_record(path: Path) -> dict[str, Any]:
    """features.json as {file name: entry}, {} if there is none.

    Raises UserError if it is not a JSON object.
    """
    try:
        if path.stat().st_size > MAX_RECORD_SIZE:
            raise UserError(f"{path}: is larger than {MAX_RECORD_SIZE} bytes; move it away")
        return parse_object(path.read_bytes(), str(path))
    except FileNotFoundError:
        return {}


def is_made(path: Path, key: str) -> bool:
    """Whether the file exists as an earlier run with the same inputs and settings wrote it."""
    entry = read_record(path.with_name(RECORD)).get(path.name)
    if not isinstance(entry, dict) or entry.get("key") != key or not path.exists():
        return False
    return file_sha256(path) == entry.get("sha256")


def make_features(
    path: Path,
    n: int,
    batches: list[list[int]],
    encode: Encode,
    encoder: Encoder,
    inputs_sha256: str,
    output: Output,
    counts: dict[str, Any],
) -> None:
    """Encode all rows, write the .npy and its entry in features.json, and print a line.

    n: number of ids; batches, encode: see encode_rows; inputs_sha256: hash of everything encoded; counts: of
    the inputs, for the record.
    """
    key = content_hash(n, encoder.about, batches, inputs_sha256, output.missing, output.dtype)
    partial_path = path.with_name(f".{path.name}.{key[:16]}.partial")
    path.parent.mkdir(parents=True, exist_ok=True)
    with lock_file(path.with_name(f".{path.name}.lock")):
        if is_made(path, key):
            remove_partials(path)
            print(f"{path}: already made from the same inputs with the same settings")
            return
        partial = open_partial(partial_path, n, encoder.dim)
        encode_rows(partial, batches, encode, path.name)
        features, n_missing = fill_missing(partial, output.missing, output.dtype)
        with atomic_write(path) as file:
            np.save(file, features)
        entry = {
            **encoder.about,
            "batch_size": output.batch_size,
            "shape": list(features.shape),
            "stored_as": output.dtype,
            "rows_without_input": n_missing,
            "filled_with": output.missing,
            "counts": counts,
            "input_sha256": inputs_sha256,
            "sha256": file_sha256(path),
            "key": key,
        }
        write_record(path, entry)
        remove_partials(path)
    sizes = {name: len(value) if isinstance(value, list) else value for name, value in counts.items()}
    summary = ", ".join(f"{name} {size}" for name, size in sizes.items())
    print(
        f"{path}: {features.shape[0]} x {features.shape[1]} {output.dtype}, {n_missing} rows filled with "
        f"{output.missing} ({summary})"
    )


def remove_partials(path: Path) -> None:
    """Remove the side files of a complete file, also those of runs with other settings."""
    for partial in path.parent.glob(f".{glob.escape(path.name)}.*.partial"):
        partial.unlink()


def write_record(path: Path, entry: dict[str, Any]) -> None:
    """Add or replace the entry of one feature file in features.json."""
    record = path.with_name(RECORD)
    with lock_file(record.with_name(f".{RECORD}.lock"), wait=True):
        # Another command may be making another feature file of the same folder.
        records = {**read_record(record), path.name: entry}
        write_json(record, records)
