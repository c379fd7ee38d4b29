"""Download a known dataset into its folder, or verify files that are already there.

    python -m data.download hf_baby                    # MMRec's Baby from a mirror, into data/baby_raw
    python -m data.download amazon_baby                # raw Amazon 2014: ratings, reviews, metadata, images
    python -m data.download amazon_sports --files ratings,meta
    python -m data.download recgoat_baby               # RecGOAT's own split of Baby, into data/baby_raw
    python -m data.download mmrec_baby                 # says what to download by hand, then verifies it
    python -m data.download amazon_baby --verify_only

A file is written as <name>.part and renamed when it is complete and verified: by the published SHA-256 where
there is one, else by what its format promises. A broken transfer is resumed, also by the next run.
download.json records the URL, size and SHA-256 of every file, and whether that SHA-256 is a published one.
"""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cli import Parser, run_tool
from data.folders import SPLITS
from data.network_flags import add_proxy_flag
from data.sources import DRIVE_URL, SOURCES, Remote, Source
from data.transfer import Limits, Part, fetch, read_json
from data.verify import verify
from data.web import Access, check_url
from utils import UserError, lock_file, write_text

RECORDS = "download.json"


def read_record(folder: Path, name: str) -> dict[str, Any]:
    """The entry of a file in download.json, {} if there is none."""
    record = (read_json(folder / RECORDS) or {}).get(name)
    return record if isinstance(record, dict) else {}


def write_record(path: Path, url: str, size: int, sha256: str, remote: Remote) -> None:
    """Add or replace the entry of a file in download.json; url: where it is from."""
    folder, name = path.parent, path.name
    record = {"url": url, "bytes": size, "sha256": sha256, "verified": bool(remote.sha256)}
    with lock_file(folder / f".{RECORDS}.lock", wait=True):
        # Read the other entries now, not before the transfer: another process may have added some meanwhile.
        records = {**(read_json(folder / RECORDS) or {}), name: record}
        write_text(folder / RECORDS, json.dumps(dict(sorted(records.items())), indent=1) + "\n")


def verify_present(path: Path, remote: Remote, record: dict[str, Any]) -> str:
    """The sha256 of an existing file.

    record: its entry in download.json, or {}. Raises UserError if it is not the expected file.
    """
    sha256, fault = verify(path, remote)
    recorded = record.get("sha256", sha256)
    if not fault and not remote.sha256 and recorded != sha256:
        fault = f"its sha256 is {sha256}, but {RECORDS} says {recorded}"
    if fault:
        raise UserError(f"{path}: is not the expected file ({fault}); remove it and fetch it again")
    return sha256


def fetch_verified(url: str, path: Path, remote: Remote, limits: Limits, remedy: str) -> str:
    """Download a file, verify it, record it and rename it to `path`. Returns its sha256.

    Raises UserError or OSError, and then leaves no file of that name.
    """
    with Part(path).opened() as part:
        # If a resumed file is wrong, the bytes of the earlier run may be to blame: try once more from the
        # start.
        for resumed in (bool(part.validator(url)), False):
            fetch(url, part, limits, remedy)
            part.file.flush()
            sha256, fault = verify(part.path, remote)
            if not fault:
                # First: of a file that is there without an entry, nobody would know where it is from.
                write_record(path, url, part.size, sha256, remote)
                part.finish(path)
                return sha256
            part.discard()
            if not resumed:
                break
    raise UserError(f"{url}: the server sends another file than expected ({fault}); {remedy}")


def obtain(remote: Remote, folder: Path, base_url: str, limits: Limits, remedy: str) -> None:
    """Verify one file, after downloading it if it is missing; record it and print a line."""
    path, url = folder / remote.name, f"{base_url}/{remote.path}"
    present = path.exists()
    if present:
        record = read_record(folder, path.name)
        sha256 = verify_present(path, remote, record)
        write_record(path, record.get("url", "placed by hand"), path.stat().st_size, sha256, remote)
    else:
        sha256 = fetch_verified(url, path, remote, limits, remedy)
    status = "sha256 as published"
    if not remote.sha256:
        status = f"not verified (no sha256 is published; this file has {sha256})"
    print(
        f"{path}: {path.stat().st_size:,} bytes, {'already present, ' if present else ''}{status}", flush=True
    )


# ---------------------------------------------------------------- command line


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python -m data.download",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description="Download a known dataset into its folder under --data_root, or verify files that are\n"
        "already there. A broken transfer is resumed, also by the next run; a file gets its name when it is\n"
        "complete and verified.",
        epilog="NAMEs and their files (the words before the colons are the KINDs of --files):\n"
        + "\n".join(map(describe_source, SOURCES)),
    )
    parser.add_argument("name", metavar="NAME", choices=SOURCES, help="dataset to fetch, see below")
    parser.add_argument("--files", default="", metavar="KIND,...", help="only these files (default all)")
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
        help="fetch the files from here instead, such as a mirror of your own",
    )
    parser.add_argument(
        "--verify_only", action="store_true", help="fetch nothing, only verify the files that are there"
    )
    parser.add_argument(
        "--max_gb", type=float, default=20.0, metavar="X", help="refuse larger files (default 20)"
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=30.0,
        metavar="S",
        help="seconds for every 64 kB, after which a try has failed (default 30)",
    )
    parser.add_argument(
        "--retries",
        type=int,
        default=6,
        metavar="N",
        help="further tries in a row without progress (default 6)",
    )
    parser.add_argument(
        "--allow_private",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: allow private addresses of hosts other than that of --base_url (default 0)",
    )
    add_proxy_flag(parser)
    return parser


def describe_source(name: str) -> str:
    """A dataset as a paragraph of the help."""
    source = SOURCES[name]
    files = ", ".join(
        f"{remote.kind}: {remote.name}" + (" (sha256 known)" if remote.sha256 else "")
        for remote in source.files
    )
    origin = source.base_url or f"{DRIVE_URL} (by hand)"
    return f"  {name}: into {source.folder}/ from {origin}\n    {files}"


def choose_files(source: Source, kinds: str) -> list[Remote]:
    """The files of a source that --files names, or all. Raises UserError for an unknown kind."""
    known = [remote.kind for remote in source.files]
    chosen = kinds.split(",") if kinds else known
    for kind in chosen:
        if kind not in known:
            raise UserError(f"--files {kinds}: '{kind}' is not one of {', '.join(known)}")
    return [remote for remote in source.files if remote.kind in chosen]


def refuse_another_split(folder: Path, files: Sequence[Remote]) -> None:
    """Raise UserError if a missing file would add interactions beside those of the other format.

    They are another split of the data: features made with one may have seen what the other holds out.
    """
    names = {remote.name for remote in files if not (folder / remote.name).exists()}
    texts = {f"{split}.txt" for split in SPLITS}
    added = sorted(name for name in names if name in texts or name.endswith(".inter"))
    present: list[str] = []
    if names & texts:
        present = sorted(path.name for path in folder.glob("*.inter"))
    elif added:
        present = sorted(name for name in texts if (folder / name).exists())
    if present:
        raise UserError(
            f"{folder}: already holds {', '.join(present)}, and {', '.join(added)} would add another split; "
            "move the former away, or name another --data_root"
        )


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for numbers out of range or an unusable URL."""
    limits = (("max_gb", args.max_gb, 1e-9), ("timeout", args.timeout, 0.01), ("retries", args.retries, 0))
    for flag, value, low in limits:
        # Also catches NaN, for which every comparison is false.
        if not low <= value <= 10**6:
            raise UserError(f"--{flag} {value}: must be from {low:g} to 1000000")
    if args.base_url:
        check_url(args.base_url, "--base_url")
        if re.search("[?#]", args.base_url):
            raise UserError(f"--base_url {args.base_url!r:.100}: is not a folder; leave out '?' and '#'")


def command(args: argparse.Namespace) -> None:
    """Download or verify the chosen files. Raises UserError if some are missing afterwards."""
    check_flags(args)
    source = SOURCES[args.name]
    files, folder = choose_files(source, args.files), Path(args.data_root) / source.folder
    base_url = args.base_url.rstrip("/") or source.base_url
    remedy = f"{source.remedy}, put them into {folder}, and run this again"
    access = Access(args.base_url, bool(args.allow_private), args.proxy)
    limits = Limits(args.timeout, args.retries, int(args.max_gb * 1e9), access)
    fetching = base_url and not args.verify_only
    if fetching:
        folder.mkdir(parents=True, exist_ok=True)
        refuse_another_split(folder, files)
    for remote in files:
        if fetching or (folder / remote.name).exists():
            obtain(remote, folder, base_url, limits, remedy)
    missing = [remote.name for remote in files if not (folder / remote.name).exists()]
    if missing:
        remedy = "run this without --verify_only to fetch them" if base_url else remedy
        raise UserError(f"{folder}: lacks {', '.join(missing)}; {remedy}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code, see cli.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
