"""Verify a downloaded file by its published SHA-256 and by what its format promises.

sha256, fault = verify(Path("data/baby_raw/text_feat.npy"), remote)    # fault: None, or what is wrong
"""

import gzip
import hashlib
import zlib
from pathlib import Path

import numpy as np

from data.progress import progress_bar
from data.sources import Remote

# A record of image_features_*.b.
IMAGE = np.dtype([("id", "S10"), ("vector", "<f4", 4096)])


def is_web_page(start: bytes) -> bool:
    """Whether a file that starts with these bytes is a web page."""
    start = start.lstrip(b"\xef\xbb\xbf \t\r\n")[:14].lower()
    return start.startswith((b"<!doctype html", b"<html", b"<head"))


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    size = path.stat().st_size
    bar = progress_bar(total=size, desc="sha256", unit="B", unit_scale=True, leave=False, delay=2)
    with open(path, "rb") as file, bar:
        while block := file.read(1 << 20):
            digest.update(block)
            bar.update(len(block))
    return digest.hexdigest()


def gzip_fault(path: Path) -> str | None:
    """What is wrong with a gzip file; reads all of it, because its checksum is at the end."""
    bar = progress_bar(desc="checking", unit="B", unit_scale=True, leave=False, delay=2)
    try:
        with gzip.open(path) as file, bar:
            while block := file.read(1 << 20):
                bar.update(len(block))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        return str(error)
    return None


def npy_fault(path: Path) -> str | None:
    """What is wrong with the header or the size of a .npy file."""
    try:
        np.load(path, mmap_mode="r", allow_pickle=False)
    # A damaged header raises one of many exceptions: ValueError, EOFError, SyntaxError, TokenError, ...
    except Exception as error:
        return str(error).splitlines()[0][:80] if str(error) else type(error).__name__
    return None


def image_records_fault(path: Path) -> str | None:
    """What is wrong with the size of an image_features_*.b file."""
    size = path.stat().st_size
    if size and size % IMAGE.itemsize == 0:
        return None
    return f"{size:,} bytes are not a whole number of records of {IMAGE.itemsize:,} bytes"


def text_fault(path: Path) -> str | None:
    """What is wrong with the end of a text file."""
    size = path.stat().st_size
    if not size:
        return "it is empty"
    with open(path, "rb") as file:
        file.seek(size - 1)
        return None if file.read() == b"\n" else "its last line is incomplete"


FORMAT_CHECKS = {".gz": gzip_fault, ".npy": npy_fault, ".b": image_records_fault}


def verify(path: Path, remote: Remote) -> tuple[str, str | None]:
    """(hex sha256, what is wrong or None) of a file, which may still have a temporary name.

    A web page is wrong, a file that its format shows to be damaged or cut off (.gz: its checksums; .npy: its
    header; .b: whole records; text: a last line that ends), and another sha256 than the published one.
    """
    with open(path, "rb") as file:
        if is_web_page(file.read(100)):
            return "", "it is a web page; in a browser, continue until the download itself starts"
    check = FORMAT_CHECKS.get(Path(remote.name).suffix, text_fault)
    if fault := check(path):
        return "", f"it is damaged or incomplete: {fault}"
    sha256 = file_sha256(path)
    if remote.sha256 not in ("", sha256):
        return sha256, f"its sha256 is {sha256} instead of the published {remote.sha256}"
    return sha256, None
