"""Checkpoint files: reading them without running code, and finding the newest whole one of a run."""

from __future__ import annotations

import os
import typing
import warnings
import zipfile
from pathlib import Path

import torch

from layers.columns import ranks
from utils import UserError

CHECKPOINT_FORMAT = 3  # incremented when older checkpoints can no longer be loaded
ENTRIES = {
    "format": int,
    "model": dict,
    "optimizer": dict,
    "progress": dict,
    "random": dict,
    "sampler": torch.Tensor,
    "config": dict,
    "data": str,
    "device": str,
}

Checkpoint = dict[str, typing.Any]


def read_checkpoint(path: str | Path) -> Checkpoint:
    """Read a checkpoint onto the CPU, without running code from the file.

    Raises UserError if it is damaged, of another format, or contains weights that are not finite.
    """
    try:
        check_archive(path)
        with warnings.catch_warnings(action="ignore"):  # about odd pickles, which are refused anyway
            # Of several processes each takes its part: mapped, the file is in memory once at most.
            state = torch.load(path, map_location="cpu", weights_only=True, mmap=ranks() > 1)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); name a checkpoint as RUN_FOLDER/best.pt"
        ) from None
    except Exception as error:  # a damaged or hostile archive raises one of many exceptions
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise UserError(
            f"{path}: is damaged or not a checkpoint of this program ({reason}); name another"
        ) from None
    if isinstance(state, dict) and type(state.get("format")) is int and state["format"] != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path}: is a checkpoint of format {state['format']}, and this version reads "
            f"{CHECKPOINT_FORMAT}; use "
            "the version that wrote it, or train again"
        )
    if not is_checkpoint(state):
        raise UserError(f"{path}: is not a checkpoint of this program; name one as RUN_FOLDER/best.pt")
    if not all(tensor.isfinite().all() for tensor in state["model"].values()):
        raise UserError(f"{path}: contains weights that are NaN or Inf; name another")
    return state


def check_archive(path: str | Path) -> None:
    """Raise ValueError unless a file is an undamaged, uncompressed zip archive, as torch.save writes."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > os.fstat(file.fileno()).st_size:
            raise ValueError("it unpacks to more than its size")
        if archive.testzip() is not None:  # torch.load does not verify checksums
            raise ValueError("a checksum does not match")


def is_checkpoint(state: object) -> bool:
    """Whether a loaded object has the entries of a checkpoint, each of its type."""
    if not isinstance(state, dict) or not ENTRIES.keys() <= state.keys():
        return False
    progress = state["progress"]
    return (
        all(
            type(state[key]) is kind or (kind is dict and isinstance(state[key], dict))
            for key, kind in ENTRIES.items()
        )
        and all(isinstance(name, str) and is_plain(tensor) for name, tensor in state["model"].items())
        and all(type(progress.get(name)) is int and progress[name] >= 0 for name in ("epoch", "step"))
    )


def is_storable(tensor: torch.Tensor) -> bool:
    """Whether a checkpoint can hold this tensor: a dense one of float32 or int64."""
    return tensor.layout == torch.strided and tensor.dtype in (torch.float32, torch.int64)


def is_plain(tensor: object) -> bool:
    """Whether this is a storable tensor on the CPU with no more elements than its storage has."""
    return (
        isinstance(tensor, torch.Tensor)
        and is_storable(tensor)
        and tensor.device.type == "cpu"
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def newest_checkpoint(folder: str | Path) -> tuple[Checkpoint | None, list[str]]:
    """The furthest whole checkpoint of a run folder, if there is one, and a note for each damaged one."""
    found, notes = [], []
    for path in (Path(folder) / "last.pt", Path(folder) / "best.pt"):
        if path.exists():
            try:
                found.append(read_checkpoint(path))
            except UserError as error:
                notes.append(f"note: {error}; looking for an older one")

    def steps(state: Checkpoint) -> tuple[int, int]:
        return state["progress"]["epoch"], state["progress"]["step"]

    return max(found, key=steps, default=None), notes
