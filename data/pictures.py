"""Pictures of items: found in a folder, or fetched from a list of URLs into a cache, and decoded safely.

    paths, n_unknown = find_pictures("pictures/", len(ids), ids)             # {internal id: path}
    urls = read_urls("urls.tsv", len(ids), ids, "original", "item", "url")   # {internal id: URL}
    paths, failed = download(urls, Path("cache"), ...)                       # does not fetch cached pictures

Pictures come from strangers: only a few formats are decoded, and file and pixel sizes are checked before.
"""

import functools
import hashlib
import io
import json
import threading
import warnings
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from pathlib import Path
from typing import Any, BinaryIO
from urllib.parse import unquote

from data.encoders import require
from data.progress import progress_bar
from data.texts import json_lines, row_finder
from data.web import (
    PUBLIC,
    Access,
    Forbidden,
    Refused,
    Transient,
    check_url,
    fetch,
    server_text,
    with_retries,
)
from utils import UserError, atomic_write, write_text

# The only formats that are decoded.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
# Limits of one picture: bytes of its file, and pixels (190 MB once decoded).
MAX_BYTES = 32 * 2**20
MAX_PIXELS = 64 * 10**6


class BrokenPicture(Exception):
    """A file that is not a complete picture, or too large."""


def open_picture(source: Path | BinaryIO) -> Any:
    """A picture as an RGB PIL image.

    Raises BrokenPicture for anything that is not a picture, is truncated, or has more than MAX_PIXELS pixels.
    """
    library = require("PIL.Image")
    try:
        if isinstance(source, Path) and source.stat().st_size > MAX_BYTES:
            raise BrokenPicture(f"larger than {MAX_BYTES} bytes")
        with warnings.catch_warnings(action="ignore"), library.open(source, formats=FORMATS) as picture:
            # The header gives the size before anything is decompressed.
            if picture.width * picture.height > MAX_PIXELS:
                raise BrokenPicture(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS}")
            return picture.convert("RGB")
    except (BrokenPicture, MemoryError):  # a lack of memory says nothing of the picture
        raise
    # Damaged pictures make Pillow raise OSError, SyntaxError, ValueError, struct.error and more.
    except Exception as error:
        raise BrokenPicture(str(error)[:100] or type(error).__name__) from None


def find_pictures(
    folder: str | Path, n: int, ids: Sequence[str] | None = None, remedy: str = "or change --ids"
) -> tuple[dict[int, Path], int]:
    """({internal id: path} of the pictures below a folder, number of pictures of unknown items).

    The file name without suffix is the internal id or, if `ids` (list of original ids) is given, the original
    id, as it is or percent-encoded. Raises UserError for two pictures of one item, or if none belongs to an
    item; remedy: what the user can do about that, beside naming the files by item ids.
    """
    rows = {name: row for row, name in enumerate(ids if ids is not None else map(str, range(n)))}
    paths: dict[int, Path] = {}
    n_unknown = 0
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        row = rows.get(path.stem, rows.get(unquote(path.stem)))
        if row is None:
            n_unknown += 1
        elif row in paths:
            raise UserError(f"{path}: is a second picture of the item of {paths[row]}; keep one")
        else:
            paths[row] = path
    if not paths:
        kind = "internal" if ids is None else "original"
        raise UserError(
            f"{folder}: holds no picture of the {n} items of the dataset ({n_unknown} of other items); name "
            f"the files by {kind} item ids, {remedy}"
        )
    return paths, n_unknown


# ---------------------------------------------------------------- lists of URLs


def read_urls(
    path: str | Path, n: int, ids: Sequence[str] | None, matching: str, id_field: str, url_field: str
) -> dict[int, str]:
    """{internal id: URL} of a list of picture URLs: JSON lines (.jsonl, .json), or lines of id, tab, URL.

    Records without URL are skipped. Raises UserError for a URL that is not http or https, or an id that
    appears twice.
    """
    find = row_finder(ids, n, matching, id_field)
    urls: dict[int, str] = {}
    for number, record in url_records(path, id_field, url_field):
        where = f"{path}, line {number}"
        row, url = find(record, where), record.get(url_field)
        if row is None or not url:
            continue
        check_url(url, where)
        if row in urls:
            raise UserError(f"{where}: '{id_field}' {str(record[id_field])[:40]} appears twice; keep one")
        urls[row] = url
    if not urls:
        raise UserError(
            f"{path}: holds no URL for any of the {n} items of the dataset; check --id_field, --url_field "
            "and --ids"
        )
    return urls


def url_records(path: str | Path, id_field: str, url_field: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line number, {id_field: ..., url_field: ...}) of either format."""
    if Path(path).suffix in (".jsonl", ".json"):
        yield from json_lines(path)
        return
    try:
        lines = Path(path).read_text("utf-8-sig").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "not UTF-8"
        raise UserError(
            f"{path}: cannot be read ({reason}); give JSON lines, or lines of id, tab, URL"
        ) from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, tab, url = line.rstrip("\r").partition("\t")
            if not tab:
                raise UserError(f"{path}, line {number}: has no tab; write id, tab, URL")
            yield number, {id_field: name, url_field: url}


# ---------------------------------------------------------------- the cache


def cache_path(cache: Path, url: str) -> Path:
    """Path of the picture of `url` in the cache; a hash, because a URL must not choose a file name."""
    return Path(cache) / hashlib.sha256(url.encode()).hexdigest()[:32]


def download(
    urls: dict[int, str],
    cache: Path,
    *,
    workers: int,
    attempts: int,
    timeout: float,
    backoff: float,
    access: Access = PUBLIC,
) -> tuple[dict[int, Path], dict[int, str]]:
    """Fetch the pictures that the cache lacks; urls: {internal id: URL}.

    access: the URLs are a stranger's, so that public addresses alone are reached by default.
    Returns ({internal id: path}, {internal id: reason of failure}).

    Each picture is in the cache as soon as it has arrived, so a second call continues where the first one
    stopped. Permanent failures (404, not a picture, ...) are kept in cache/refused.json and not requested
    again.
    """
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    refused = read_refused(cache / "refused.json")
    todo = {url for url in urls.values() if url not in refused and not cache_path(cache, url).exists()}
    failed: dict[str, str] = {}
    stop, pool = threading.Event(), ThreadPoolExecutor(workers)

    def submit(url: str) -> Future[None]:
        call = functools.partial(store, url, cache, timeout, access)
        return pool.submit(with_retries, call, attempts, backoff, stop)

    try:
        jobs = {submit(url): url for url in sorted(todo)}
        finished: Iterable[Future[None]] = as_completed(jobs)
        if jobs:
            finished = progress_bar(finished, total=len(jobs), desc="pictures", unit="picture")
        for job in finished:
            error, url = job.exception(), jobs[job]
            # What this machine forbids may be allowed in the next run.
            if isinstance(error, (Transient, Forbidden)):
                failed[url] = str(error)
            elif isinstance(error, Refused):
                refused[url] = str(error)
            elif error:
                raise error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        write_text(cache / "refused.json", json.dumps(refused, indent=1, sort_keys=True) + "\n")
    reasons = {**refused, **failed}
    paths = {row: cache_path(cache, url) for row, url in urls.items() if url not in reasons}
    return paths, {row: reasons[url] for row, url in urls.items() if url in reasons}


def store(url: str, cache: Path, timeout: float, access: Access) -> None:
    """Fetch one picture into the cache. Raises Refused if it is not a picture."""
    body = fetch("GET", url, access, max_bytes=MAX_BYTES, timeout=timeout)
    try:
        open_picture(io.BytesIO(body))
    except BrokenPicture as error:
        raise Refused(f"not a picture: {error}") from None
    with atomic_write(cache_path(cache, url)) as file:
        file.write(body)


def read_refused(path: Path) -> dict[str, str]:
    """{URL: reason} of earlier runs; {} if there is no such file or it is damaged."""
    try:
        refused = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    if not isinstance(refused, dict):
        return {}
    return {url: server_text(reason, 200) for url, reason in refused.items() if isinstance(reason, str)}
