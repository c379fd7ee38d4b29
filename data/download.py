"""Fetch a known dataset into its folder: resumed after a break, verified, never half a file under its final name.

    python -m data.download amazon_baby                       # raw Amazon 2014: ratings, reviews, metadata, image features
    python -m data.download amazon_sports --files ratings,meta
    python -m data.download recgoat_baby                      # RecGOAT's own split, into data/baby_raw
    python -m data.download mmrec_baby                        # says what to fetch by hand; run again, it checks the files
    python -m data.download amazon_baby --verify_only

A file arrives as <name>.part beside <name>.part.json (where from, its size and its ETag or date) and gets its name when
it is whole and has passed the checks: the published sha256 where there is one, else what its format promises. What was
fetched stands in download.json, with the sha256 seen and whether that was verified.
"""

import argparse
import contextlib
import dataclasses
import email.utils
import fcntl
import gzip
import hashlib
import http.client
import json
import os
import re
import shutil
import ssl
import sys
import time
import urllib.error
import urllib.request
import zlib
from pathlib import Path
from urllib.parse import urlsplit

import numpy as np
from tqdm import tqdm

from cli import Parser, run_tool
from utils import UserError, write_text

BLOCK = 1 << 16  # bytes read at a time
RECORD = 10 + 4 * 4096  # bytes a record of image_features_*.b: asin, 4096 float32
WAIT, LONGEST_WAIT = 1.0, 60.0  # seconds before the first further try, doubled each time, and at most
ENOUGH = 1 << 20  # bytes that a try must bring to count as progress
RECORDS = "download.json"


# ---------------------------------------------------------------- what there is, and where


@dataclasses.dataclass(frozen=True)
class Remote:
    """One file of a dataset: what it is (for --files), its path under the base URL, its published sha256 if there is one."""

    kind: str
    path: str
    sha256: str = ""

    @property
    def name(self):
        return self.path.rsplit("/", 1)[1]


@dataclasses.dataclass(frozen=True)
class Source:
    """A dataset: its folder under --data_root, its files, the URL they lie under ("" where a person must fetch them), and
    what to do when they are not there."""

    folder: str
    files: tuple
    base_url: str
    remedy: str


# The folder that MMRec's data/README.md links, and RecGOAT's data/baby_raw/README.md too. File names: MMRec's
# src/configs/dataset/*.yaml. Google Drive lists a folder only through an API that wants a key of one's own.
DRIVE = "https://drive.google.com/drive/folders/13cBy1EA_saTUuXxVllKgtfci2A09jyaG"
# The one location known to have all four kinds of file. McAuley's links.html named these paths; since then the
# lab's copy has moved (jmcauley.ucsd.edu, cseweb.ucsd.edu) and now has categoryFiles/ under AMAZON_MOVED.
AMAZON = "https://snap.stanford.edu/data/amazon/productGraph"
AMAZON_MOVED = "https://mcauleylab.ucsd.edu/public_datasets/data/amazon"
# data/baby_raw of github.com/6lyc/RecGOAT; HEAD is the default branch, whatever its name.
RECGOAT = "https://raw.githubusercontent.com/6lyc/RecGOAT/HEAD"


def mmrec(name, folder, inter="", text="", image=""):
    """A dataset of MMRec's folder; the last three are the sha256 of its files."""
    files = (
        Remote("inter", f"{name}/{name}.inter", inter),
        Remote("text", f"{name}/text_feat.npy", text),
        Remote("image", f"{name}/image_feat.npy", image),
    )
    return Source(
        folder,
        files,
        "",
        f"Google Drive lists no folder to a program: open {DRIVE} in a browser and download them "
        f"from the folder of this dataset (MMRec calls it '{name}')",
    )


def amazon(category, folder):
    """Raw Amazon 2014 files of a category."""
    files = (
        Remote("ratings", f"categoryFiles/ratings_{category}.csv"),
        Remote("reviews", f"categoryFiles/reviews_{category}_5.json.gz"),
        Remote("meta", f"categoryFiles/meta_{category}.json.gz"),
        Remote("image", f"image_features/categoryFiles/image_features_{category}.b"),
    )
    return Source(
        folder,
        files,
        AMAZON,
        "these files have moved before: give the new place as --base_url (the lab's copy: "
        f"{AMAZON_MOVED}), or download them in a browser",
    )


SOURCES = {
    "mmrec_baby": mmrec(
        "baby",
        "baby_raw",
        inter="9ef5de9a05949d973928cca113aacba12067ff8f104e310ef28ea42db00c17b1",
        text="6667f2ad655c9ecc97cb3383f58988864ef51ec0b39c158b15986c66769f2dc4",
        image="36c3be592b98506189a7d5de71b21577cf626f0293b539d861534673b3e9fd70",
    ),
    "mmrec_sports": mmrec("sports", "sports_raw"),
    "mmrec_electronics": mmrec("elec", "electronics_raw"),
    "amazon_baby": amazon("Baby", "amazon_baby"),
    "amazon_sports": amazon("Sports_and_Outdoors", "amazon_sports"),
    "amazon_electronics": amazon("Electronics", "amazon_electronics"),
    "recgoat_baby": Source(
        "baby_raw",
        tuple(Remote(split, f"data/baby_raw/{split}.txt") for split in ("train", "valid", "test")),
        RECGOAT,
        "download them in a browser from github.com/6lyc/RecGOAT, data/baby_raw",
    ),
}


# ---------------------------------------------------------------- one request


class Broken(Exception):
    """A transfer that another try may mend. wait: seconds that the server asks for."""

    def __init__(self, reason, wait=0.0):
        super().__init__(reason)
        self.wait = wait


class Redirect(urllib.request.HTTPRedirectHandler):
    """Follows few redirects, to http and https only, and never from https to http."""

    max_redirections = 5

    def redirect_request(self, request, response, code, message, headers, target):
        before, after = urlsplit(request.full_url).scheme, urlsplit(target).scheme
        if after not in ("http", "https") or (before, after) == ("https", "http"):
            reason = f"it redirects to {target[:100]}, which is not allowed"
            raise urllib.error.HTTPError(request.full_url, code, reason, headers, None)
        return super().redirect_request(request, response, code, message, headers, target)

    def http_error_302(self, request, response, code, message, headers):
        response.close()  # the base class reads the body to its end, however long
        return super().http_error_302(request, response, code, message, headers)

    http_error_301 = http_error_303 = http_error_307 = http_error_308 = http_error_302


def make_opener():
    """An opener that knows http and https, and none of urllib's other schemes."""
    opener = urllib.request.OpenerDirector()
    for handler in (
        urllib.request.ProxyHandler,
        urllib.request.HTTPHandler,
        urllib.request.HTTPSHandler,
        Redirect,
        urllib.request.HTTPErrorProcessor,
        urllib.request.HTTPDefaultErrorHandler,
    ):
        opener.add_handler(handler())
    return opener


def open_url(url, headers, timeout, remedy):
    """The response to a GET, 200, 206 or 416. Raises UserError for what no further try will mend, else Broken."""
    request = urllib.request.Request(
        url, headers={"User-Agent": "RecGOAT", "Accept-Encoding": "identity", **headers}
    )
    try:
        return make_opener().open(request, timeout=timeout)
    except urllib.error.HTTPError as error:
        if error.code == 416:
            return error
        error.close()
        if error.code in (408, 425, 429) or error.code >= 500:
            raise Broken(f"HTTP {error.code}", retry_after(error.headers)) from None
        reason = (str(error.msg or "").splitlines() or [""])[0][:200]
        raise UserError(f"{url}: cannot be fetched (HTTP {error.code} {reason}); {remedy}") from None
    except (
        OSError,
        http.client.HTTPException,
        ValueError,
    ) as error:  # ValueError: an address that is none, from a redirect
        reason = getattr(error, "reason", None) or error
        if isinstance(reason, ssl.SSLCertVerificationError):
            raise UserError(
                f"{url}: its certificate is not valid ({reason.verify_message}); check this machine's clock and "
                "certificates"
            ) from None
        raise Broken(str(reason) or type(reason).__name__) from None


def retry_after(headers):
    """Seconds that a server asks to wait, 0 if it does not say."""
    value = headers.get("Retry-After", "")
    if re.fullmatch("[0-9]{1,9}", value):
        return float(value)
    with contextlib.suppress(TypeError, ValueError):
        return max(0.0, email.utils.parsedate_to_datetime(value).timestamp() - time.time())
    return 0.0


def read_block(response):
    """The next bytes of a response, b"" at its end. Raises Broken."""
    try:
        return response.read1(BLOCK)
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise Broken(str(error) or type(error).__name__) from None


def is_page(start):
    """Whether a file that starts like this is a web page."""
    return (
        start.lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower().startswith((b"<!doctype html", b"<html", b"<head"))
    )


# ---------------------------------------------------------------- a file that is arriving


class Part:
    """<name>.part and, in <name>.part.json, what it is a part of: {"url", "total", "etag", "last_modified"}."""

    def __init__(self, path):
        self.path = path.with_name(f"{path.name}.part")
        self.state_path = path.with_name(f"{path.name}.part.json")

    @contextlib.contextmanager
    def opened(self):
        """Keep the file open, and other processes off it."""
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

    def start(self, state):
        """Begin from nothing, as a part of what state says."""
        self.file.seek(0)
        self.file.truncate()
        self.state, self.size = state, 0
        write_text(self.state_path, json.dumps(state, indent=1) + "\n")

    def append(self, block):
        self.file.write(block)
        self.size += len(block)

    def resumable(self, url):
        """The validator with which to ask for the rest: a strong ETag, else a date; "" if there is nothing to go on from."""
        etag, date, total = (self.state.get(key) for key in ("etag", "last_modified", "total"))
        if not self.size or self.state.get("url") != url or not isinstance(total, int) or self.size > total:
            return ""
        validator = etag if isinstance(etag, str) and etag.startswith('"') else date
        return validator if isinstance(validator, str) and re.fullmatch("[ -~]+", validator) else ""

    def finish(self, path):
        """Give the file its name."""
        self.file.flush()
        os.fsync(self.file.fileno())
        os.replace(self.path, path)
        self.state_path.unlink(missing_ok=True)

    def discard(self):
        """Forget what there is."""
        self.start({})


@dataclasses.dataclass(frozen=True)
class Limits:
    """timeout: seconds without a byte; retries: tries in a row without progress; most: bytes of a file."""

    timeout: float
    retries: int
    most: int


def transfer(url, part, limits, remedy):
    """One request for a file or the rest of it. Returns whether the file is whole. Raises Broken or UserError."""
    validator = part.resumable(url)
    if validator and part.size == part.state["total"]:
        return True
    headers = {"Range": f"bytes={part.size}-", "If-Range": validator} if validator else {}
    with contextlib.closing(open_url(url, headers, limits.timeout, remedy)) as response:
        length = getattr(response, "length", None)  # of the body to come; http.client counts it down
        block = first_block(url, response, remedy)
        total = place(url, part, response, length, limits)
        with tqdm(
            total=total, initial=part.size, desc=part.path.stem, unit="B", unit_scale=True, leave=False
        ) as bar:
            while block:
                if total is not None and part.size + len(block) > total:
                    part.discard()
                    raise Broken("it sends more than it promised")
                check_size(url, part.size + len(block), limits)
                part.append(block)
                bar.update(len(block))
                block = read_block(response)
    if total is not None and part.size < total:
        raise Broken(f"it ended after {part.size:,} of {total:,} bytes")
    return True


def first_block(url, response, remedy):
    """The first bytes of an answer. Raises UserError if it is a web page: before anything that is there is touched."""
    if response.status == 416:
        return b""
    block = read_block(response)
    if response.headers.get_content_type() in ("text/html", "application/xhtml+xml") or is_page(block):
        raise UserError(
            f"{url}: sends a web page instead of the file (a login, a notice, or the question whether to go on); {remedy}"
        )
    return block


def place(url, part, response, length, limits):
    """Make part ready for the bytes of a response: at its end, or from nothing. Returns the size of the whole file or None."""
    headers = response.headers
    if response.status == 200:
        check_size(url, length or 0, limits)
        check_space(part.path.parent, length or 0)
        part.start(
            {
                "url": url,
                "total": length,
                "etag": headers.get("ETag"),
                "last_modified": headers.get("Last-Modified"),
            }
        )
        return length
    got = re.fullmatch(r"bytes ([0-9]{1,18})-([0-9]{1,18})/([0-9]{1,18})", headers.get("Content-Range", ""))
    same = all(
        headers.get(name) in (None, part.state.get(name.lower().replace("-", "_")))
        for name in ("ETag", "Last-Modified")
    )
    if (
        response.status != 206
        or not got
        or not same
        or (int(got[1]), int(got[3])) != (part.size, part.state.get("total"))
    ):
        part.discard()
        raise Broken(f"its answer does not fit what was there (HTTP {response.status}); starting again")
    check_space(part.path.parent, part.state["total"] - part.size)
    part.file.seek(part.size)
    return part.state["total"]


def check_size(url, size, limits):
    """Raise UserError if a file is larger than the limit."""
    if size > limits.most:
        raise UserError(
            f"{url}: is larger than {limits.most / 1e9:g} GB; --max_gb raises the limit, if this is the file you want"
        )


def check_space(folder, size):
    """Raise UserError if so many bytes do not fit on the disk of a folder."""
    free = shutil.disk_usage(folder).free
    if size > free:
        raise UserError(
            f"{folder}: {size / 1e9:.1f} GB to come, {free / 1e9:.1f} GB free; make room or choose another --data_root"
        )


def fetch(url, part, limits, remedy):
    """Transfers until part holds the whole file. Raises OSError when the tries are used up."""
    failures = 0
    while True:
        before = part.size
        try:
            if transfer(url, part, limits, remedy):
                return
        except Broken as error:
            part.file.flush()
            failures = 1 if part.size - before >= ENOUGH else failures + 1
            if failures > limits.retries:
                raise OSError(
                    f"{url}: {error}; gave up after {failures} tries; run this again to go on from here. If it stays so, "
                    f"{remedy}"
                ) from None
            wait = min(max(WAIT * 2 ** (failures - 1), error.wait), LONGEST_WAIT)
            tqdm.write(f"note: {url}: {error}; trying again in {wait:g} s", file=sys.stderr)
            time.sleep(wait)


# ---------------------------------------------------------------- is it the file?


def file_sha256(path):
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    with (
        open(path, "rb") as file,
        tqdm(total=size, desc="sha256", unit="B", unit_scale=True, leave=False, delay=2) as bar,
    ):
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def damaged_gzip(path):
    """What is wrong with a gzip file, or None. Reads all of it."""
    try:
        with (
            gzip.open(path) as file,
            tqdm(desc="checking", unit="B", unit_scale=True, leave=False, delay=2) as bar,
        ):
            while block := file.read(1 << 20):
                bar.update(len(block))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        return str(error)


def damaged_npy(path):
    """What is wrong with a .npy file, or None."""
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    except Exception as error:  # a damaged header raises one of many
        return str(error).splitlines()[0][:80] if str(error) else type(error).__name__


def damaged_records(path):
    """What is wrong with an image_features_*.b, or None."""
    size = path.stat().st_size
    return (
        f"{size:,} bytes are no whole number of records of {RECORD:,}" if size % RECORD or not size else None
    )


def damaged_text(path):
    """What is wrong with a text file, or None."""
    size = path.stat().st_size
    with open(path, "rb") as file:
        file.seek(max(size - 1, 0))
        return None if file.read() == b"\n" else "its last line has no end" if size else "it is empty"


def read_json(path):
    """The dict in a small JSON file of this tool, None if there is none or it is damaged."""
    try:
        with open(path, "rb") as file:
            value = json.loads(file.read(10**6))
    except (OSError, ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


CHECKS = {".gz": damaged_gzip, ".npy": damaged_npy, ".b": damaged_records}


def examine(path, remote):
    """What a file is and what is wrong with it: (hex sha256, reason or None). It may lie under another name than its own.

    Wrong is a web page, a file that is cut off or damaged as far as its format tells (.gz: its checksums; .npy: its
    header; .b: whole records; text: its last line is ended), and another sha256 than the published one.
    """
    with open(path, "rb") as file:
        if is_page(file.read(100)):
            return "", "it is a web page; in a browser, go on until the download itself starts"
    reason = CHECKS.get(Path(remote.name).suffix, damaged_text)(path)
    if reason:
        return "", f"it is damaged or not whole: {reason}"
    seen = file_sha256(path)
    return seen, f"its sha256 is {seen}, published is {remote.sha256}" if remote.sha256 not in (
        "",
        seen,
    ) else None


# ---------------------------------------------------------------- command line


def check_present(path, remote, record):
    """The sha256 of a file that is there. record: its entry of download.json or {}. Raises UserError if it is another one."""
    seen, reason = examine(path, remote)
    before = record.get("sha256", seen)
    if not reason and not remote.sha256 and before != seen:
        reason = f"its sha256 is {seen}, {RECORDS} says {before}"
    if reason:
        raise UserError(f"{path}: is not the file it should be ({reason}); remove it and fetch it again")
    return seen


def arrive(url, path, remote, limits, remedy):
    """Download a file, check it, give it its name. Returns its sha256. Raises UserError or OSError, leaving no file of that name."""
    with Part(path).opened() as part:
        for resumed in (
            bool(part.resumable(url)),
            False,
        ):  # what was there may be to blame: then once more from nothing
            fetch(url, part, limits, remedy)
            part.file.flush()
            seen, reason = examine(part.path, remote)
            if not reason:
                part.finish(path)
                return seen
            part.discard()
            if not resumed:
                raise UserError(f"{url}: what it sends is not the file ({reason}); {remedy}")


def obtain(remote, folder, base_url, limits, remedy):
    """Have one file in folder, checked: fetch it unless it is there. Keeps download.json and prints a line."""
    path, url = folder / remote.name, f"{base_url}/{remote.path}"
    records = read_json(folder / RECORDS) or {}
    record = records.get(path.name)
    record = record if isinstance(record, dict) else {}
    if there := path.exists():
        seen, url = check_present(path, remote, record), record.get("url", "placed by hand")
    else:
        seen = arrive(url, path, remote, limits, remedy)
    records[path.name] = {
        "url": url,
        "bytes": path.stat().st_size,
        "sha256": seen,
        "verified": bool(remote.sha256),
    }
    write_text(folder / RECORDS, json.dumps(dict(sorted(records.items())), indent=1) + "\n")
    known = (
        "sha256 as published"
        if remote.sha256
        else f"not verified (no sha256 is published; this one has {seen})"
    )
    print(f"{path}: {path.stat().st_size:,} bytes, {'was there, ' if there else ''}{known}", flush=True)


def make_parser():
    """The flags, with their defaults."""
    parser = Parser(
        prog="python -m data.download",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Fetch a known dataset into its folder under --data_root, or check what is there. A broken transfer\n"
        "is resumed, also by the next run; a file gets its name when it is whole and checked.",
        epilog="names, folders and files (--s the words before the colons):\n"
        + "\n".join(map(listing, SOURCES)),
    )
    parser.add_argument("name", metavar="NAME", choices=SOURCES, help="which dataset, see below")
    parser.add_argument(
        "--files", default="", metavar="KIND,...", help="only these of its files (default all)"
    )
    parser.add_argument(
        "--data_root",
        default="data",
        metavar="DIR",
        help="folder that holds the dataset folders (default data)",
    )
    parser.add_argument(
        "--base_url",
        default="",
        metavar="URL",
        help="where the files lie, if elsewhere than below: a mirror of yours or a new place",
    )
    parser.add_argument(
        "--verify_only",
        action="store_true",
        help="fetch nothing; check the files that are there, placed by hand or not",
    )
    parser.add_argument(
        "--max_gb",
        type=float,
        default=20.0,
        metavar="X",
        help="refuse a file larger than this many GB (default 20)",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds without an answer after which a try has failed (default 30)",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=6,
        metavar="N",
        help="further tries, in a row without progress (default 6)",
    )
    return parser


def listing(name):
    """A dataset as a paragraph of the help."""
    source = SOURCES[name]
    files = ", ".join(
        f"{remote.kind}: {remote.name}{' (sha256 known)' if remote.sha256 else ''}" for remote in source.files
    )
    return f"  {name}: into {source.folder}/ from {source.base_url or DRIVE + ' (by hand)'}\n    {files}"


def choose_files(source, kinds):
    """The files of a source that --files names, or all."""
    known = [remote.kind for remote in source.files]
    asked = kinds.split(",") if kinds else known
    unknown = [kind for kind in asked if kind not in known]
    if unknown:
        raise UserError(f"--files {kinds}: '{unknown[0]}' is none of {', '.join(known)}")
    return [remote for remote in source.files if remote.kind in asked]


def check_flags(args):
    """Raise UserError unless numbers and URL can be used."""
    for flag, value, least in (
        ("max_gb", args.max_gb, 1e-9),
        ("timeout", args.timeout, 0.01),
        ("retries", args.retries, 0),
    ):
        if not least <= value <= 10**6:  # also catches NaN
            raise UserError(f"--{flag} {value}: must be from {least:g} to 1000000")
    if (
        args.base_url
        and not re.fullmatch(r"https?://[!-~]+", args.base_url)
        or re.search("[@?#]", args.base_url)
    ):
        raise UserError(
            f"--base_url {args.base_url!r:.100}: give an http or https URL of a folder, without user name, '?' or '#'"
        )


def command(args):
    """Fetch or check what parsed arguments ask for."""
    check_flags(args)
    source = SOURCES[args.name]
    files, folder = choose_files(source, args.files), Path(args.data_root) / source.folder
    base_url = args.base_url.rstrip("/") or source.base_url
    remedy = f"{source.remedy}, put them into {folder}, and run this again"
    limits = Limits(args.timeout, args.retries, int(args.max_gb * 1e9))
    fetching = base_url and not args.verify_only
    if fetching:
        folder.mkdir(parents=True, exist_ok=True)
    for remote in files:
        if fetching or (folder / remote.name).exists():
            obtain(remote, folder, base_url, limits, remedy)
    missing = [remote.name for remote in files if not (folder / remote.name).exists()]
    if missing:
        remedy = "run this without --verify_only to fetch them" if base_url else remedy
        raise UserError(f"{folder}: lacks {', '.join(missing)}; {remedy}")


def main(argv=None):
    """Run a command line. Returns the exit code, see utils.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
