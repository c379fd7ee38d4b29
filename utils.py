"""Errors, file locks, atomic writes and content hashes: helpers that know nothing of models."""

import contextlib
import fcntl
import hashlib
import json
import os
import tempfile
from pathlib import Path

import numpy as np


class UserError(Exception):
    """Input that the user can mend. The message is one line: what, where (file, line or row), and the remedy."""


class TrainingError(Exception):
    """Something that ends a run under way: a loss that is not finite, a disk that is full. The message is one line."""


class Diverged(TrainingError):
    """A loss, gradient or weight of training is not finite: these settings lead nowhere, others may."""


@contextlib.contextmanager
def lock_file(path, wait=False):
    """Hold an exclusive lock for as long as the block or the process lives. If another process has it: UserError, or wait."""
    try:
        file = open(path, "a")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); mend the folder's permissions or choose another"
        ) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except OSError:
            raise UserError(
                f"{path}: another process is at work in this folder; wait for it or stop it"
            ) from None
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


def write_json(path: Path, value: object) -> None:
    """Write a value as JSON to path, atomically."""
    with atomic_write(path, "w") as file:
        json.dump(value, file, indent=1)
        file.write("\n")
