"""Checkpoint files."""

import os
import warnings
import zipfile
from pathlib import Path

import torch

from utils import UserError

CHECKPOINT_FORMAT = 2  # grows when older checkpoints no longer load
CHECKPOINT_KEYS = {"format", "model", "optimizer", "progress", "random", "sampler", "config", "data"}


def read_checkpoint(path):
    """A checkpoint as a dict on the CPU. Never runs code from the file. Raises UserError if it is not a whole one."""
    try:
        check_archive(path)
        with warnings.catch_warnings(action="ignore"):  # of odd pickles, which are refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); name a checkpoint as RUN_FOLDER/best.pt"
        ) from None
    except Exception as error:  # a damaged or hostile archive raises one of many
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise UserError(
            f"{path}: is damaged or no checkpoint of this program ({reason}); name another"
        ) from None
    if isinstance(state, dict) and type(state.get("format")) is int and state["format"] != CHECKPOINT_FORMAT:
        raise UserError(
            f"{path}: is a checkpoint of format {state['format']}, and this version reads {CHECKPOINT_FORMAT}; use the "
            "version that wrote it, or train again"
        )
    if not well_formed(state):
        raise UserError(f"{path}: is no checkpoint of this program; name one as RUN_FOLDER/best.pt")
    if not all(tensor.isfinite().all() for tensor in state["model"].values()):
        raise UserError(f"{path}: holds weights that are NaN or Inf; name another")
    return state


def check_archive(path):
    """Raise ValueError unless a file is what torch.save writes: a zip archive without damage that unpacks
    to no more than its size."""
    with open(path, "rb") as file, zipfile.ZipFile(file) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > os.fstat(file.fileno()).st_size:
            raise ValueError("it unpacks to more than it holds")
        if archive.testzip() is not None:  # torch.load does not look at the checksums
            raise ValueError("a checksum does not fit")


def well_formed(state):
    """Whether a loaded file has the entries of a checkpoint, each of its type."""
    kinds = {
        "model": dict,
        "optimizer": dict,
        "progress": dict,
        "random": dict,
        "config": dict,
        "data": str,
        "sampler": torch.Tensor,
    }
    if not isinstance(state, dict) or not CHECKPOINT_KEYS <= state.keys() or type(state["format"]) is not int:
        return False
    return (
        all(isinstance(state[key], kind) for key, kind in kinds.items())
        and all(isinstance(name, str) and is_plain(tensor) for name, tensor in state["model"].items())
        and all(
            type(state["progress"].get(name)) is int and state["progress"][name] >= 0
            for name in ("epoch", "step")
        )
    )


def is_plain(tensor):
    """Whether this is a dense tensor of numbers in memory, with no more elements than are stored."""
    return (
        isinstance(tensor, torch.Tensor)
        and tensor.layout == torch.strided
        and tensor.device.type == "cpu"
        and tensor.dtype in (torch.float32, torch.int64)
        and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes()
    )


def newest_checkpoint(folder):
    """The furthest whole checkpoint of a run folder (None if there is none), and a note for each damaged one."""
    found, notes = [], []
    for path in (Path(folder) / "last.pt", Path(folder) / "best.pt"):
        if not path.exists():
            continue
        try:
            found.append(read_checkpoint(path))
        except UserError as error:
            notes.append(f"note: {error}; looking for an older one")
    return max(
        found, key=lambda state: (state["progress"]["epoch"], state["progress"]["step"]), default=None
    ), notes
