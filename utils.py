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
