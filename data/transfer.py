"""Download one file over HTTP: retried after failures, resumed after breaks, never trusted.

    with Part(path).opened() as part:
        limits = Limits(timeout=30, retries=6, max_bytes=10**9, access=PUBLIC)
        fetch(url, part, limits, remedy="ask the authors")
        part.finish(path)

The bytes arrive in <name>.part; <name>.part.json holds their URL, the total size and the ETag or date that
the server must confirm before the rest is requested.
"""

import contextlib
import dataclasses
import fcntl
import io
import itertools
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from tqdm import tqdm

from data.progress import progress_bar
from data.verify import is_web_page
from data.web import Access, Refused, Response, Transient, is_transient, open_url, retry_after
from utils import UserError, write_text

# Seconds before the first retry, doubled for each further one, and their maximum.
FIRST_WAIT, MAX_WAIT = 1.0, 60.0
# An attempt that brings at least this many bytes resets the count of retries.
MIN_PROGRESS = 1 << 20


@dataclasses.dataclass(frozen=True)
class Limits:
    """Limits of a transfer."""

    # Seconds for the head of an answer, and for every 64 kB of its body.
    timeout: float
    # Further attempts in a row without progress.
    retries: int
    # Size of a file.
    max_bytes: int
    access: Access


# ---------------------------------------------------------------- one request


def open_file(url: str, headers: dict[str, str], limits: Limits, remedy: str) -> Response:
    """The response to a GET request, with status 200, 206 or 416.

    Raises UserError for failures that a retry cannot change, Transient for others.
    """
    try:
        response = open_url("GET", url, limits.access, timeout=limits.timeout, headers=headers)
    except Refused as error:
        raise UserError(f"{url}: {error}; {remedy}") from None
    if response.status in (200, 206, 416):
        return response
    response.close()
    if is_transient(response.status):
        raise Transient(f"HTTP {response.status}", retry_after(response.headers))
    failure = "not found on the server" if response.status == 404 else "cannot be fetched"
    raise UserError(f"{url}: {failure} (HTTP {response.status} {response.reason}); {remedy}")


# ---------------------------------------------------------------- the incomplete file


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in a small JSON file, None if there is no such file or it is damaged."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(10**6))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


class Part:
    """An incomplete file: <name>.part, described by <name>.part.json (url, total, etag, last_modified)."""

    file: io.BufferedRandom
    state: dict[str, Any]
    size: int

    def __init__(self, path: Path) -> None:
        self.path = path.with_name(f"{path.name}.part")
        self.state_path = path.with_name(f"{path.name}.part.json")

    @contextlib.contextmanager
    def opened(self) -> Iterator["Part"]:
        """Keep the file open and locked. Raises UserError if another process has it."""
        # O_NOFOLLOW: a symbolic link in place of the part must not redirect the bytes to another file.
        flags = os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW
        with open(self.path, "r+b", opener=lambda path, _: os.open(path, flags, 0o644)) as self.file:
            try:
                fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(
                    f"{self.path}: another process is downloading it; wait for it or stop it"
                ) from None
            self.state, self.size = read_json(self.state_path) or {}, self.file.seek(0, os.SEEK_END)
            try:
                yield self
            finally:
                if not self.size:
                    self.path.unlink(missing_ok=True)
                    self.state_path.unlink(missing_ok=True)

    def restart(self, state: dict[str, Any]) -> None:
        """Drop the bytes and describe the file that will arrive."""
        self.file.seek(0)
        self.file.truncate()
        self.state, self.size = state, 0
        write_text(self.state_path, json.dumps(state, indent=1) + "\n")

    def discard(self) -> None:
        """Drop the bytes and their description."""
        self.restart({})

    def append(self, block: bytes) -> None:
        """Write bytes at the end."""
        self.file.write(block)
        self.size += len(block)

    def validator(self, url: str) -> str:
        """A strong ETag or a date for the If-Range header.

        "" if these bytes cannot be resumed from this URL.
        """
        etag, date, total = (self.state.get(key) for key in ("etag", "last_modified", "total"))
        if not self.size or self.state.get("url") != url or not isinstance(total, int) or self.size > total:
            return ""
        value = etag if isinstance(etag, str) and etag.startswith('"') else date
        return value if isinstance(value, str) and re.fullmatch("[ -~]+", value) else ""

    def finish(self, path: Path) -> None:
        """Rename the complete file."""
        self.file.flush()
        os.fsync(self.file.fileno())
        # First, because nobody would remove it if this process were killed after the rename.
        self.state_path.unlink(missing_ok=True)
        os.replace(self.path, path)


# ---------------------------------------------------------------- attempts


def fetch(url: str, part: Part, limits: Limits, remedy: str) -> None:
    """Request the file until `part` holds all of it. Raises OSError when the retries are used up."""
    failures = 0
    while True:
        size_before = part.size
        try:
            return transfer(url, part, limits, remedy)
        except Transient as error:
            part.file.flush()
            failures = 1 if part.size - size_before >= MIN_PROGRESS else failures + 1
            if failures > limits.retries:
                raise OSError(
                    f"{url}: {error}; gave up after {failures} tries; run this again to resume. If it keeps "
                    f"failing, {remedy}"
                ) from None
            wait = min(max(FIRST_WAIT * 2 ** (failures - 1), error.wait), MAX_WAIT)
            tqdm.write(f"note: {url}: {error}; trying again in {wait:g} s", file=sys.stderr)
            time.sleep(wait)


def transfer(url: str, part: Part, limits: Limits, remedy: str) -> None:
    """One request for the file, or for the rest of it.

    Raises Transient or UserError if the file stays incomplete.
    """
    validator = part.validator(url)
    if validator and part.size == part.state["total"]:
        return
    headers = {"Range": f"bytes={part.size}-", "If-Range": validator} if validator else {}
    with open_file(url, headers, limits, remedy) as response:
        blocks = response.blocks(limits.timeout)
        first = first_block(url, response, blocks, remedy)
        total = prepare_part(url, part, response, limits)
        receive(url, part, itertools.chain([first], blocks), total, limits)
    if total is not None and part.size < total:
        raise Transient(f"the transfer ended after {part.size:,} of {total:,} bytes")


def receive(url: str, part: Part, blocks: Iterable[bytes], total: int | None, limits: Limits) -> None:
    """Append the body of a response to `part`."""
    name = part.path.stem
    with progress_bar(
        total=total, initial=part.size, desc=name, unit="B", unit_scale=True, leave=False
    ) as bar:
        for block in blocks:
            if total is not None and part.size + len(block) > total:
                part.discard()
                raise Transient("the server sent more bytes than announced")
            check_size(url, part.size + len(block), limits)
            part.append(block)
            bar.update(len(block))


def first_block(url: str, response: Response, blocks: Iterator[bytes], remedy: str) -> bytes:
    """The first bytes of a body, b"" if it is empty or does not matter.

    Raises UserError if it is a web page, before any existing bytes are dropped.
    """
    if response.status == 416:
        return b""
    block = next(blocks, b"")
    content_type = response.headers.get_content_type()
    if content_type in ("text/html", "application/xhtml+xml") or is_web_page(block):
        raise UserError(
            f"{url}: sends a web page instead of the file (a login, a notice or a confirmation); {remedy}"
        )
    return block


def prepare_part(url: str, part: Part, response: Response, limits: Limits) -> int | None:
    """Position `part` for the bytes of a response: at its end, or empty. Returns the total size or None."""
    headers, length = response.headers, response.length
    if response.status == 200:
        check_size(url, length or 0, limits)
        check_space(part.path.parent, length or 0)
        validators = {"etag": headers.get("ETag"), "last_modified": headers.get("Last-Modified")}
        part.restart({"url": url, "total": length, **validators})
        return length
    if not continues(part, response):
        part.discard()
        raise Transient(f"HTTP {response.status} does not continue the partial file; starting again")
    check_space(part.path.parent, part.state["total"] - part.size)
    part.file.seek(part.size)
    return part.state["total"]


def continues(part: Part, response: Response) -> bool:
    """Whether a response holds the rest of the same version of the file."""
    sent = re.fullmatch(
        r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", response.headers.get("Content-Range", "")
    )
    if response.status != 206 or not sent:
        return False
    # Compare the validators too: some servers ignore If-Range.
    same_version = all(
        response.headers.get(header) in (None, part.state.get(key))
        for header, key in (("ETag", "etag"), ("Last-Modified", "last_modified"))
    )
    return same_version and (int(sent[1]), int(sent[3])) == (part.size, part.state.get("total"))


def check_size(url: str, size: int, limits: Limits) -> None:
    """Raise UserError if a file is larger than the limit."""
    if size > limits.max_bytes:
        raise UserError(
            f"{url}: is larger than {limits.max_bytes / 1e9:g} GB; raise the limit with --max_gb if you want "
            "this file"
        )


def check_space(folder: Path, size: int) -> None:
    """Raise UserError if so many bytes do not fit on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder}: needs {size / 1e9:.1f} GB, {free / 1e9:.1f} GB free; make room or choose another "
            "--data_root"
        )
