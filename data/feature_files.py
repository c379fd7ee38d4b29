"""Feature files of a dataset folder: .npy matrices whose row r belongs to id r.

array = open_features("data/baby/text_feat.npy")                  # memory-mapped, checks the header only
features = load_features(array, "data/baby/text_feat.npy", 7050)  # [7050, dim] float32, checks every value
"""

import mmap
import os
import warnings
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from utils import UserError
from world import MODALITIES, Config


def feature_paths(config: Config, folder: Path) -> dict[str, str]:
    """Return {modality: path} of the item features to use, in the order of MODALITIES.

    If no file is given with --text_feat, --image_feat or --audio_feat, these are the ones in `folder`.
    """
    if not config.use_multimodal:
        return {}
    paths = {modality: getattr(config, f"{modality}_feat") for modality in MODALITIES}
    if not any(paths.values()):
        files = {modality: folder / f"{modality}_feat.npy" for modality in MODALITIES}
        paths = {modality: str(path) for modality, path in files.items() if path.exists()}
    return {modality: path for modality, path in paths.items() if path}


def open_features(path: str | Path, rows_are: str = "items") -> np.ndarray:
    """Memory-map a .npy file of float16, float32 or float64 [rows, dim].

    rows_are: "items" or "users", for the messages. Raises UserError for any other file. Nothing is unpickled,
    and no memory is allocated for the size that a damaged header claims.
    """
    try:
        # An absurd shape must raise, not overflow to a small size; warnings about odd headers are of no use.
        with np.errstate(over="raise"), warnings.catch_warnings(action="ignore"):
            array = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); give a .npy file of {rows_are} x dimensions"
        ) from None
    # A damaged header raises ValueError, EOFError, SyntaxError, BadZipFile, TokenError, ...
    except Exception as error:
        reason = str(error).splitlines()[0][:80] if str(error) else type(error).__name__
        raise UserError(f"{path}: is not a plain .npy array ({reason}); save it with numpy.save") from None
    if not isinstance(array, np.ndarray):
        raise UserError(f"{path}: is an archive; give a .npy file of {rows_are} x dimensions")
    if array.ndim != 2 or not array.shape[1]:
        raise UserError(f"{path}: has shape {array.shape}; features are a matrix of {rows_are} x dimensions")
    if array.dtype not in (np.float16, np.float32, np.float64):
        raise UserError(f"{path}: has type {array.dtype}; features are float16, float32 or float64")
    return array


def load_features(
    array: np.ndarray, path: str | Path, rows: int, rows_are: str = "items", block: int = 4096
) -> np.ndarray:
    """Copy memory-mapped features into a float32 array [rows, dim], `block` rows at a time.

    Raises UserError if the number of rows differs from `rows`, for the first row with NaN or Inf, or if the
    file changes meanwhile.
    """
    if len(array) != rows:
        raise UserError(
            f"{path}: has {len(array)} rows for {rows} {rows_are}; row r must hold the features of id r"
        )
    features = np.empty(array.shape, np.float32)
    # Block by block, so that the check needs little memory beyond the result.
    for start, found in row_blocks(array, path, block):
        part = features[start : start + block]
        with np.errstate(over="ignore"):
            part[:] = found
        finite = np.isfinite(part).all(axis=1)
        if not finite.all():
            raise UserError(
                f"{path}, row {start + (~finite).argmax()}: holds NaN, Inf or a number too large "
                "for float32; replace it, for example by the mean of its column"
            )
    return features


def row_blocks(array: np.ndarray, path: str | Path, block: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, rows) of memory-mapped features. Raises UserError if their file changes meanwhile."""
    # The offset of a slice is that of the whole array, whose base is the map itself.
    if not (isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap) and array.flags.c_contiguous):
        yield from ((start, array[start : start + block]) for start in range(0, len(array), block))
        return
    # Read, not mapped: where a mapped file has been cut off, the kernel ends the process (SIGBUS).
    with open(str(array.filename), "rb") as file:
        before = os.fstat(file.fileno())
        whole = before.st_size >= array.offset + array.nbytes
        file.seek(array.offset)
        for start in range(0, len(array) if whole else 0, block):
            rows = min(block, len(array) - start)
            part = np.fromfile(file, array.dtype, rows * array.shape[1])
            if whole := part.size == rows * array.shape[1]:
                yield start, part.reshape(rows, -1)
        after = os.fstat(file.fileno())
    if not whole or (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise UserError(f"{path}: was changed while it was read; start again when nothing writes to it")
