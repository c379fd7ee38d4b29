"""Errors for the user, file locks, atomic file writes, content hashes. Needs NumPy only.

with atomic_write(folder / "result.json", "w") as file:
    json.dump(result, file)  # result.json is replaced when the block ends without an exception
"""

import contextlib
import difflib
import fcntl
import functools
import hashlib
import os
import secrets
import stat
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np

from outgoing import json_text

TEMPORARY = ".recgoat.tmp"  # end of the names of incomplete files


class UserError(Exception):
    """Bad input that the user can correct. The message is one line: what, where (file and line), remedy."""


class InUse(UserError):
    """Another process holds a lock."""


class TrainingError(Exception):
    """A failure that ends a run in progress, such as a full disk. The message is one line."""


class Diverged(TrainingError):
    """A loss, gradient or weight is not finite. Other hyperparameters may still work."""


class LostProcess(TrainingError):
    """Another process of the same run has ended or does not answer."""


def did_you_mean(word: str, known: Iterable[str], prefix: str = "") -> str:
    """Return "; did you mean NAME?" with the known name that is most like a word, or "" if none is."""
    near = difflib.get_close_matches(word, list(known), 1)
    return f"; did you mean {prefix}{near[0]}?" if near else ""


@contextlib.contextmanager
def lock_file(path: str | Path, wait: bool = False) -> Iterator[None]:
    """Hold an exclusive lock on `path` for the duration of the block.

    Raises InUse if another process holds the lock and `wait` is false, and UserError if the file cannot be
    opened or its file system has no locks.
    """
    try:
        file = open(path, "a")  # noqa: SIM115, the with statement below closes it
    except OSError as error:
        raise UserError(
            f"{path}: cannot be written ({error.strerror}); "
            "correct the permissions of its folder or choose another folder"
        ) from None
    # flock belongs to the open file: the kernel releases it even if the process is killed.
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            raise InUse(
                f"{path}: another process is at work in this folder; wait until it ends, or stop it"
            ) from None
        except OSError as error:
            raise UserError(
                f"{path}: cannot be locked ({error.strerror}); choose a folder on a file system with locks"
            ) from None
        yield


@contextlib.contextmanager
def atomic_write(path: str | Path, mode: Literal["w", "wb"] = "wb") -> Iterator[IO[Any]]:
    """Open a file whose content replaces `path` all at once when the block ends, or not at all if it raises.

    The content is on disk before it replaces the old one, so that neither a crash nor a power cut leaves half
    a file. Text is UTF-8. A new file gets the permissions that open() would give it, an existing one keeps
    its own, and its owner as far as this process may. Symbolic links are followed. What cannot be replaced is
    written directly: devices, FIFOs, and files that are open already and named as such, as /dev/stdout.
    Incomplete files of killed processes in the same folder are removed. An OSError without a file name, as of
    a full disk, gets that of `path`.
    """
    text: dict[str, Any] = {} if "b" in mode else {"encoding": "utf-8", "errors": "replace"}
    try:
        existing = os.stat(path)
    except FileNotFoundError:
        existing = None
    if existing and (not stat.S_ISREG(existing.st_mode) or names_open_file(path)):
        # Appending: others may have written to an open file, and they own what is before the end.
        with open(path, mode.replace("w", "a") if stat.S_ISREG(existing.st_mode) else mode, **text) as file:
            yield file
        return
    # os.replace would put the new file in place of a link, not of the file that the link points to.
    target = Path(os.path.realpath(path))
    remove_abandoned(target.parent)
    file, temporary = open_temporary(target, mode, text)
    try:
        with file:
            if existing:
                with contextlib.suppress(PermissionError):
                    os.fchown(file.fileno(), existing.st_uid, existing.st_gid)
                os.fchmod(file.fileno(), stat.S_IMODE(existing.st_mode))
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, target)  # while it is locked: see remove_abandoned
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno:
            error.filename = error.filename or str(path)
        raise


def open_temporary(target: Path, mode: str, text: dict[str, Any]) -> tuple[IO[Any], Path]:
    """A new locked file beside `target`, and its path. The lock tells other processes that it is in use."""
    while True:
        # Same folder: os.replace is atomic only within one file system.
        # A name may have 255 bytes, of which a character takes up to four.
        temporary = target.with_name(f".{target.name[:50]}.{secrets.token_hex(4)}{TEMPORARY}")
        # Mode "x" lets the kernel apply the umask; reading it here would mean setting it, for all threads.
        try:
            file = open(temporary, mode.replace("w", "x"), **text)  # noqa: SIM115
        except OSError as error:
            error.filename = str(target)  # the name that a message should have
            raise
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(file, fcntl.LOCK_EX)
        # Another process may have taken it for abandoned before it was locked.
        if temporary.exists():
            return file, temporary
        file.close()


@functools.lru_cache(maxsize=64)  # once for each process and folder, which may have many files
def remove_abandoned(folder: Path) -> None:
    """Remove the files that processes left in a folder when they were killed in atomic_write."""
    remove_unlocked(folder.glob(f".*{TEMPORARY}"))


def remove_leftovers(folder: str | Path) -> None:
    """Remove the files that processes left in or below a folder when they were killed in atomic_write."""
    remove_unlocked(Path(folder).rglob(f".*{TEMPORARY}"))


def remove_unlocked(paths: Iterable[Path]) -> None:
    """Remove the files that no process has locked."""
    for path in paths:
        with contextlib.suppress(OSError):
            file = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()
            finally:
                os.close(file)


def check_output(path: str | Path) -> None:
    """Raise UserError if no file can stand at this path: before the work whose result it is to hold."""
    if Path(path).is_dir() or not Path(path).parent.is_dir():
        raise UserError(
            f"{path}: is a folder, or its folder does not exist; name a file in an existing folder"
        )


def names_open_file(path: str | Path) -> bool:
    """Whether a path leads, over any links, through /proc: to a file that a process has open."""
    link = os.fspath(path)
    while True:
        if os.path.realpath(os.path.dirname(link)).startswith("/proc/"):
            return True
        if not os.path.islink(link):
            return False
        link = os.path.join(os.path.dirname(link), os.readlink(link))


def write_text(path: str | Path, text: str) -> None:
    """Write `text` to `path` in UTF-8, atomically; halves of surrogate pairs, which it lacks, become "?"."""
    with atomic_write(path) as file:
        file.write(text.encode(errors="replace"))


def content_hash(*parts: Any) -> str:
    """Hex SHA-256 of `parts` in order: arrays by dtype, shape and content, anything else by its repr."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).data)
        else:
            digest.update(f"{part!r};".encode())
    return digest.hexdigest()


def write_json(path: str | Path, value: object) -> None:
    """Write a value as JSON, atomically; see json_text."""
    write_text(path, json_text(value, indent=1) + "\n")
