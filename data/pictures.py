"""Pictures of items: found in a folder or fetched from a list of URLs into a cache, and opened with care.

paths = find_pictures("pictures/", ids)                    # {internal id: path}
urls = read_urls("urls.tsv", len(ids), ids, "original")    # {internal id: url}
paths, failed = download(urls, "cache/", ...)              # what is in the cache is not fetched again
"""

import functools
import hashlib
import io
import json
import threading
import warnings
from concurrent.futures import ThreadPoolExecutor, as_completed
from pathlib import Path
from urllib.parse import unquote

from tqdm import tqdm

from data.encoders import require
from data.texts import json_lines, row_finder
from data.web import Refused, Transient, check_url, fetch, persistently
from utils import UserError, atomic_write, write_text

FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP")  # what is ever decoded
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp"}
MAX_BYTES = 32 * 2**20  # of a picture's file
MAX_PIXELS = 64 * 10**6  # of a picture: 190 MB once it is decoded


class Broken(Exception):
    """A file that is no whole picture, or too large a one."""


def open_picture(source):
    """A picture (path or binary file) as RGB. Raises Broken for what is none, is cut short, or has more than MAX_PIXELS."""
    library = require("PIL.Image")
    try:
        if isinstance(source, Path) and source.stat().st_size > MAX_BYTES:
            raise Broken(f"larger than {MAX_BYTES} bytes")
        with warnings.catch_warnings(action="ignore"), library.open(source, formats=FORMATS) as picture:
            if (
                picture.width * picture.height > MAX_PIXELS
            ):  # known from the header, before anything is unpacked
                raise Broken(f"{picture.width} x {picture.height} pixels, more than {MAX_PIXELS}")
            return picture.convert("RGB")
    except Broken:
        raise
    except (
        Exception
    ) as error:  # damaged pictures make Pillow raise OSError, SyntaxError, ValueError, struct.error, ...
        raise Broken(str(error)[:100] or type(error).__name__) from None


def find_pictures(folder, n, ids=None):
    """Pictures of a folder (and of those in it) by file name: {internal id: path}, and how many files belong to no item.

    A file's name without suffix is the original id where `ids` (list of original ids) is given, as it stands or
    percent-encoded; else the internal id. Raises UserError if two files belong to one item, or none to any.
    """
    rows = {name: row for row, name in enumerate(ids if ids is not None else map(str, range(n)))}
    paths, unknown = {}, 0
    for path in sorted(Path(folder).rglob("*")):
        if path.suffix.lower() not in SUFFIXES or not path.is_file():
            continue
        row = rows.get(path.stem, rows.get(unquote(path.stem)))
        if row is None:
            unknown += 1
        elif row in paths:
            raise UserError(f"{path}: is the second picture of one item, beside {paths[row]}; keep one")
        else:
            paths[row] = path
    if not paths:
        raise UserError(
            f"{folder}: holds no picture of the dataset's {n} items ({unknown} other pictures); name the files by the "
            f"{'original' if ids is not None else 'internal'} ids, or see --ids"
        )
    return paths, unknown


def read_urls(path, n, ids, matching, id_field, url_field):
    """A list of picture addresses, JSON lines (.jsonl, .json) or "id, tab, url" lines -> {internal id: url}.

    Records without url are skipped. Raises UserError for an address that is not http or https, or an id that stands twice.
    """
    find, urls = row_finder(ids, n, matching, id_field), {}
    for number, record in url_records(path, id_field, url_field):
        where = f"{path}, line {number}"
        row, url = find(record, where), record.get(url_field)
        if row is None or not url:
            continue
        check_url(url, where)
        if row in urls:
            raise UserError(f"{where}: '{id_field}' {str(record[id_field])[:40]} stands twice; keep one")
        urls[row] = url
    if not urls:
        raise UserError(
            f"{path}: names no picture of the dataset's {n} items; --id_field, --url_field and --ids say where ids and "
            "addresses stand"
        )
    return urls


def url_records(path, id_field, url_field):
    """Yield (line number, {id_field: ..., url_field: ...}) of either format."""
    if Path(path).suffix in (".jsonl", ".json"):
        yield from json_lines(path)
        return
    try:
        lines = Path(path).read_text("utf-8").split("\n")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            f"{path}: cannot be read ({getattr(error, 'strerror', None) or 'not UTF-8'}); give JSON lines or id, tab, "
            "url"
        ) from None
    for number, line in enumerate(lines, 1):
        if line.strip():
            name, tab, url = line.rstrip("\r").partition("\t")
            if not tab:
                raise UserError(f"{path}, line {number}: has no tab; a line is an id, a tab, and an address")
            yield number, {id_field: name, url_field: url}


def cache_path(cache, url):
    """Where the picture at `url` lies in the cache; no part of the address becomes part of the name."""
    return Path(cache) / hashlib.sha256(url.encode()).hexdigest()[:32]


def download(urls, cache, *, workers, attempts, timeout, backoff):
    """Fetch what the cache does not have: {internal id: url} -> ({internal id: path}, {internal id: reason}).

    Every picture lies in the cache as soon as it is there, so a second call goes on where the first one stopped. Answers that
    asking again will not change (404, no picture, ...) are kept in cache/refused.json and not asked for again.
    """
    cache = Path(cache)
    cache.mkdir(parents=True, exist_ok=True)
    refused = read_refused(cache / "refused.json")
    todo = sorted(
        {url for url in urls.values() if url not in refused and not cache_path(cache, url).exists()}
    )
    failed, stop = {}, threading.Event()
    pool = ThreadPoolExecutor(workers)
    try:
        jobs = {
            pool.submit(
                persistently, functools.partial(store, url, cache, timeout), attempts, backoff, stop
            ): url
            for url in todo
        }
        for job in tqdm(
            as_completed(jobs), total=len(jobs), desc="pictures", unit="picture", disable=not jobs
        ):
            error, url = job.exception(), jobs[job]
            if isinstance(error, Refused):
                refused[url] = str(error)
            elif isinstance(error, Transient):
                failed[url] = str(error)
            elif error:
                raise error
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)
        write_text(cache / "refused.json", json.dumps(refused, indent=1, sort_keys=True) + "\n")
    failed = {**refused, **failed}
    return (
        {row: cache_path(cache, url) for row, url in urls.items() if url not in failed},
        {row: failed[url] for row, url in urls.items() if url in failed},
    )


def store(url, cache, timeout):
    """Fetch one picture into the cache. Raises Refused if it is none."""
    body = fetch("GET", url, most_bytes=MAX_BYTES, timeout=timeout)
    try:
        open_picture(io.BytesIO(body))
    except Broken as error:
        raise Refused(f"no picture: {error}") from None
    with atomic_write(cache_path(cache, url)) as file:
        file.write(body)


def read_refused(path):
    """{url: reason} of an earlier pass; empty if there is no such file or it is damaged."""
    try:
        found = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}
    return (
        {url: reason for url, reason in found.items() if isinstance(reason, str)}
        if isinstance(found, dict)
        else {}
    )
