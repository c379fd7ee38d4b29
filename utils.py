"""Small helpers that know nothing of the model: ranking metrics, a sparse product, safe file writes.

    hits = torch.tensor([[True, False, True]])            # one user's top 3
    ranking_metrics(hits, torch.tensor([2]), (3,))        # {'recall@3': tensor([1.]), ...}
"""

import argparse
import contextlib
import ctypes
import fcntl
import hashlib
import os
import resource
import sys
import tempfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch


class UserError(Exception):
    """Input that the user can mend. The message is one line: what, where (file, line or row), and the remedy."""


class TrainingError(Exception):
    """Something that ends a run under way: a loss that is not finite, a disk that is full. The message is one line."""


class Diverged(TrainingError):
    """A loss, gradient or weight of training is not finite: these settings lead nowhere, others may."""


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that raises UserError instead of printing its usage and leaving."""

    def error(self, message):
        raise UserError(f"{message} ({self.prog} --help lists the flags)")


def run_tool(command, parser, argv=None):
    """Parse argv and call command(args), for the tools that are command lines of their own. Returns the exit code.

    0; 2 on bad input (UserError), 1 on a disk or a network that fails (OSError), each with one line on stderr; 130
    when interrupted.
    """
    try:
        command(parser.parse_args(argv))
    except (UserError, OSError) as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        return 2 if isinstance(error, UserError) else 1
    except KeyboardInterrupt:
        return 130
    return 0


def ranking_metrics(hits, n_relevant, ks):
    """Recall, NDCG, precision, MAP and hit rate at every K, one value a user.

    hits: [n, K_max] bool, whether the item at each rank is relevant, best rank first.
    n_relevant: [n] int, how many relevant items each user has (at least 1).
    ks: cut-offs, each at most K_max.
    Returns {"recall@10": [n] float64, ...}. With R = n_relevant and rel(r) the hit at rank r (from 1):
    recall = sum rel / R; precision = sum rel / K; hitrate = any rel;
    ndcg = sum rel(r) / log2(r + 1) over its best value for min(R, K) hits (Jarvelin & Kekalainen 2002);
    map = sum rel(r) precision@r / min(R, K).
    """
    hits = hits.double()
    rank = torch.arange(1, hits.shape[1] + 1, dtype=torch.float64, device=hits.device)
    discount = 1 / torch.log2(rank + 1)
    found = hits.cumsum(1)                                   # [n, K_max]
    gain = (hits * discount).cumsum(1)
    ideal = discount.cumsum(0)
    precision_sum = (hits * found / rank).cumsum(1)
    metrics = {}
    for k in ks:
        best = n_relevant.clamp(max=k)
        metrics[f"recall@{k}"] = found[:, k - 1] / n_relevant
        metrics[f"ndcg@{k}"] = gain[:, k - 1] / ideal[best - 1]
        metrics[f"precision@{k}"] = found[:, k - 1] / k
        metrics[f"map@{k}"] = precision_sum[:, k - 1] / best
        metrics[f"hitrate@{k}"] = (found[:, k - 1] > 0).double()
    return metrics


def keep_freed_memory():
    """Let the C library keep memory that torch frees for torch's next tensors, instead of returning it to the system.

    Otherwise every large intermediate of a training step costs a page fault for each of its pages, which takes longer
    than most operations on it. Does nothing where the C library is not glibc.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)          # M_MMAP_MAX: large blocks from the heap too
        mallopt(-1, -1)         # M_TRIM_THRESHOLD: the heap never shrinks


@contextlib.contextmanager
def lock_file(path, wait=False):
    """Hold an exclusive lock for as long as the block or the process lives. If another process has it: UserError, or wait."""
    try:
        file = open(path, "a")
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); mend the folder's permissions or choose another") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise UserError(f"{path}: another process is at work in this folder; wait for it or stop it") from None
        yield


@contextlib.contextmanager
def atomic_write(path, mode="wb"):
    """Open a temporary file beside `path`; on success it is flushed to disk and renamed over `path`, else removed."""
    path = Path(path)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    try:
        with os.fdopen(handle, mode) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)  # mkstemp makes private files; a run folder is for sharing
        os.replace(temporary, path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        raise


def write_text(path, text):
    """Write text to path in UTF-8, atomically."""
    with atomic_write(path) as file:
        file.write(text.encode())


CHECKPOINT_FORMAT = 2           # grows when older checkpoints no longer load
CHECKPOINT_KEYS = {"format", "model", "optimizer", "progress", "random", "sampler", "config", "data"}


def read_checkpoint(path):
    """A checkpoint as a dict on the CPU. Never runs code from the file. Raises UserError if it is not a whole one."""
    try:
        check_archive(path)
        with warnings.catch_warnings(action="ignore"):     # of odd pickles, which are refused anyway
            state = torch.load(path, map_location="cpu", weights_only=True)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); name a checkpoint as RUN_FOLDER/best.pt") from None
    except Exception as error:  # a damaged or hostile archive raises one of many
        reason = (str(error).splitlines() or [type(error).__name__])[0][:80]
        raise UserError(f"{path}: is damaged or no checkpoint of this program ({reason}); name another") from None
    if isinstance(state, dict) and type(state.get("format")) is int and state["format"] != CHECKPOINT_FORMAT:
        raise UserError(f"{path}: is a checkpoint of format {state['format']}, and this version reads {CHECKPOINT_FORMAT}; use the "
                        "version that wrote it, or train again")
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
        if archive.testzip() is not None:       # torch.load does not look at the checksums
            raise ValueError("a checksum does not fit")


def well_formed(state):
    """Whether a loaded file has the entries of a checkpoint, each of its type."""
    kinds = {"model": dict, "optimizer": dict, "progress": dict, "random": dict, "config": dict, "data": str, "sampler": torch.Tensor}
    if not isinstance(state, dict) or not CHECKPOINT_KEYS <= state.keys() or type(state["format"]) is not int:
        return False
    return (all(isinstance(state[key], kind) for key, kind in kinds.items())
            and all(isinstance(name, str) and is_plain(tensor) for name, tensor in state["model"].items())
            and all(type(state["progress"].get(name)) is int and state["progress"][name] >= 0 for name in ("epoch", "step")))


def is_plain(tensor):
    """Whether this is a dense tensor of numbers in memory, with no more elements than are stored."""
    return (isinstance(tensor, torch.Tensor) and tensor.layout == torch.strided and tensor.device.type == "cpu"
            and tensor.dtype in (torch.float32, torch.int64)
            and tensor.numel() * tensor.element_size() <= tensor.untyped_storage().nbytes())


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
    return max(found, key=lambda state: (state["progress"]["epoch"], state["progress"]["step"]), default=None), notes


def content_hash(*parts):
    """Hex SHA-256 of arrays (dtype, shape and bytes) and plain values, in order."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()


def peak_memory_mb(device):
    """Peak memory of this process in MB (10^6 bytes): resident memory, or allocated GPU memory on a CUDA device."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
