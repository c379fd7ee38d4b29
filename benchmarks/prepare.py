"""Time and peak memory of data.prepare on synthetic raw files in Amazon's format.

    python benchmarks/prepare.py                     # size of Sports
    python benchmarks/prepare.py --check 1           # also data.check on the result
    python benchmarks/prepare.py --users 192403 --items 63001 --interactions 1689188 --metadata 500000

The last command has the size of Electronics.

Writes reviews_*_5.json.gz, meta_*.json.gz (Python literals, as in Amazon's files of 2014) and
image_features_*.b to a temporary folder. Prints time and peak memory, each relative to its limit, and the
time relative to a plain pass that reads, decompresses and hashes the same files. Exits with 1 if a limit is
exceeded.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

import numpy as np

from data.raw import IMAGE, reading

TOPICS = 300
WORDS = (
    *(
        "light",
        "sturdy",
        "steel",
        "grip",
        "bike",
        "camp",
        "trail",
        "winter",
        "water",
        "cover",
        "strap",
        "holder",
    ),
    *("blade", "rope", "training", "foam", "tactical", "folding", "pump", "pad", "rifle", "scope", "paddle"),
    *("yoga", "glove", "helmet", "bottle", "tent", "lantern", "knife"),
)

# ---------------------------------------------------------------- raw files


def make_ids(prefix: str, length: int, count: int, seed: int) -> list[str]:
    """`count` distinct ids of `length` characters."""
    order = np.random.default_rng(seed).permutation(count)
    digits = length - len(prefix)
    return [f"{prefix}{np.base_repr(number * 7919 + 36**5, 36):0>{digits}}" for number in order.tolist()]


def draw_pairs(users: int, items: int, count: int, seed: int) -> np.ndarray:
    """Distinct (user, item) pairs [count, 2] in random order, with at least 5 for each user and each item.

    About half of the pairs of a user are within one topic (item % TOPICS).
    """
    rng = np.random.default_rng(seed)
    popularity = rng.pareto(1.2, items) + 1
    # Candidates, best first: 5 users for each item, then items for each user, then random pairs.
    for_items = np.stack([rng.permutation(5 * items) % users, np.arange(5 * items) % items], 1)
    for_users = np.repeat(np.arange(users), 12)
    anyone = rng.integers(users, size=4 * count)
    user = np.concatenate([for_items[:, 0], for_users, anyone])
    drawn = rng.choice(items, len(for_users) + len(anyone), p=popularity / popularity.sum())
    item = np.concatenate([for_items[:, 1], drawn])
    in_topic = rng.random(len(user)) < 0.5
    in_topic[: len(for_items)] = False
    item = np.where(in_topic, np.minimum(item // TOPICS * TOPICS + user % TOPICS, items - 1), item)
    first = np.sort(np.unique(user * items + item, return_index=True)[1])
    user, item = user[first], item[first]
    needed = (first < len(for_items)) | (rank_within(user) < 5)
    chosen = np.concatenate([np.flatnonzero(needed), np.flatnonzero(~needed)])[:count]
    if needed.sum() > count or len(chosen) < count:
        sys.exit(
            f"error: --interactions {count}: give enough for 5 of every user and item, but fewer than "
            "--users times --items"
        )
    return np.stack([user, item], 1)[rng.permutation(chosen)]


def rank_within(group: np.ndarray) -> np.ndarray:
    """For each entry of group [n], the number of earlier entries that are equal: [n]."""
    rank, order, sizes = np.empty(len(group), np.int64), np.argsort(group, kind="stable"), np.bincount(group)
    rank[order] = np.arange(len(group)) - np.repeat(np.cumsum(sizes) - sizes, sizes)
    return rank


def write_reviews(
    path: Path, pairs: np.ndarray, users: Sequence[str], items: Sequence[str], rng: np.random.Generator
) -> None:
    """Write reviews_*_5.json.gz: one JSON object per line, with a text of about 500 characters."""
    texts = [" ".join(rng.choice(WORDS, 80)) for _ in range(1000)]
    times = rng.integers(10**9, 14 * 10**8, len(pairs)) // 86400 * 86400
    ratings = rng.integers(1, 6, len(pairs)).astype(float)
    with gzip.open(path, "wt", 1) as file:
        for row, (user, item) in enumerate(pairs.tolist()):
            review = {
                "reviewerID": users[user],
                "asin": items[item],
                "reviewerName": "a name",
                "helpful": [0, 1],
                "reviewText": texts[row % 1000],
                "overall": ratings[row],
                "summary": texts[row % 997][:40],
                "unixReviewTime": int(times[row]),
                "reviewTime": "05 21, 2014",
            }
            file.write(json.dumps(review) + "\n")


def write_meta(path: Path, items: Sequence[str], rng: np.random.Generator) -> None:
    """Write meta_*.json.gz: one Python literal per line, made as long as real ones by its related items."""
    related = rng.integers(len(items), size=(1000, 60))
    with gzip.open(path, "wt", 1) as file:
        for row, item in enumerate(items):
            others = [items[other] for other in related[row % 1000]]
            words = [WORDS[(row * 7 + k * k) % len(WORDS)] for k in range(60)]
            record = {
                "asin": item,
                "title": " ".join(words[:8]) + f" &amp; No. {row}",
                "price": 9.99,
                "imUrl": "http://host/I/41.jpg",
                "related": {
                    "also_bought": others[:30],
                    "also_viewed": others[30:],
                    "bought_together": others[:2],
                },
                "salesRank": {"Sports &amp; Outdoors": row},
                "brand": f"Brand {row % 997}",
                "categories": [["Sports & Outdoors", words[1], words[2]]],
                "description": "It's " + " ".join(words),
            }
            file.write(f"{record!r}\n")


def write_images(path: Path, items: Sequence[str], topics: np.ndarray, rng: np.random.Generator) -> None:
    """Write image_features_*.b: records of a 10-byte id and 4,096 float32, clustered by topic [n]."""
    noise = rng.standard_normal((997, 4096), dtype=np.float32)
    centres = rng.standard_normal((TOPICS, 4096), dtype=np.float32)
    with open(path, "wb") as file:
        for start in range(0, len(items), 500):
            ids = items[start : start + 500]
            rows = np.arange(start, start + len(ids))
            block = np.empty(len(ids), IMAGE)
            block["id"], block["vector"] = ids, noise[rows % 997] + centres[topics[rows]]
            file.write(block.tobytes())


def make_files(work: Path, args: argparse.Namespace) -> list[Path]:
    """Write the three raw files to a folder. Returns their paths: reviews, metadata, image features."""
    rng = np.random.default_rng(args.seed)
    users, items = make_ids("A", 14, args.users, 1), make_ids("B", 10, args.metadata, 2)
    paths = [work / "reviews_Made_5.json.gz", work / "meta_Made.json.gz", work / "image_features_Made.b"]
    pairs = draw_pairs(args.users, args.items, args.interactions, args.seed)
    write_reviews(paths[0], pairs, users, items, rng)
    # Items with interactions, the first --items, are scattered over the other files.
    order = rng.permutation(len(items))
    write_meta(paths[1], [items[index] for index in order], rng)
    others = order >= args.items
    order = order[~others | (np.cumsum(others) <= args.images - args.items)]
    write_images(paths[2], [items[index] for index in order], order % TOPICS, rng)
    return paths


# ---------------------------------------------------------------- measurements


class Usage(typing.NamedTuple):
    """What a command used, and how it ended."""

    seconds: float
    cpu_seconds: float
    gigabytes: float  # peak resident memory
    code: int  # exit code


def run_module(command: Sequence[str]) -> Usage:
    """Run `python -m` with a module of this repository and its arguments."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    return Usage(
        time.perf_counter() - started,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024 / 1e9,
        os.waitstatus_to_exitcode(status),
    )


def time_plain_pass(paths: Sequence[Path]) -> float:
    """Seconds to read, decompress and hash the files."""
    started = time.perf_counter()
    for path in paths:
        with reading(path, {}) as file:
            while file.read(1 << 20):
                pass
    return time.perf_counter() - started


def measure(args: argparse.Namespace, work: Path) -> bool:
    """Make the files in a folder, run the tools, print. Returns whether they succeeded within the limits."""
    paths = make_files(work, args)
    sizes = (f"{path.name} {path.stat().st_size / 1e6:,.0f} MB" for path in paths)
    print(f"raw files: {', '.join(sizes)}", flush=True)
    plain = time_plain_pass(paths)
    names = ("--interactions", "--meta", "--image_features")
    flags = [word for flag, path in zip(names, paths, strict=True) for word in (flag, str(path))]
    folder = ["made", "--data_root", str(work)]
    used = run_module(["data.prepare", *folder, *flags])
    print(
        f"data.prepare: {used.seconds:.1f} s, {used.cpu_seconds:.1f} s of CPU "
        f"({used.seconds / 60 / args.minutes:.2f} of the limit, {used.seconds / plain:.1f} times a plain "
        f"pass of {plain:.1f} s), peak memory {used.gigabytes:.2f} GB "
        f"({used.gigabytes / args.gigabytes:.2f} of the limit)",
        flush=True,
    )
    passed = not used.code and used.seconds <= 60 * args.minutes and used.gigabytes <= args.gigabytes
    if args.check and not used.code:
        used = run_module(["data.check", *folder])
        print(
            f"data.check: {used.seconds:.1f} s, {used.cpu_seconds:.1f} s of CPU, "
            f"peak memory {used.gigabytes:.2f} GB"
        )
    return passed and not used.code


def parse_arguments() -> argparse.Namespace:
    """The parsed command line."""
    parser = argparse.ArgumentParser(
        description="Time and peak memory of data.prepare on synthetic raw files in Amazon's format.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--users", type=int, default=35_598, help="users")
    parser.add_argument("--items", type=int, default=18_357, help="items with interactions")
    parser.add_argument("--interactions", type=int, default=296_337, help="lines of the reviews file")
    parser.add_argument("--metadata", type=int, default=532_197, help="metadata records, at least --items")
    parser.add_argument(
        "--images", type=int, default=100_000, help="image feature records of 16 kB each, at least --items"
    )
    parser.add_argument(
        "--check", type=int, default=0, choices=(0, 1), help="1 runs data.check on the result"
    )
    parser.add_argument("--seed", type=int, default=2025, help="seed of the files")
    parser.add_argument("--minutes", type=float, default=10, help="limit of the time")
    parser.add_argument("--gigabytes", type=float, default=4, help="limit of the peak memory")
    args = parser.parse_args()
    if args.items > min(args.images, args.metadata):
        parser.error("--images and --metadata: give at least as many as --items")
    return args


def main() -> int:
    """Measure and print. Returns 1 if a limit is exceeded or a tool fails, else 0."""
    args = parse_arguments()
    with tempfile.TemporaryDirectory() as work:
        passed = measure(args, Path(work))
    return int(not passed)


if __name__ == "__main__":
    sys.exit(main())
