"""Time and peak memory of data.prepare on raw Amazon files made here in their true format.

    python benchmarks/prepare.py                     # the size of Sports: 296,337 interactions, 532,197 metadata records
    python benchmarks/prepare.py --users 192403 --items 63001 --interactions 1689188 --metadata 500000     # of Electronics
    python benchmarks/prepare.py --check 1           # data.check on the result as well

reviews_*_5.json.gz, meta_*.json.gz (Python literals, as Amazon's of 2014) and image_features_*.b are written to a
temporary folder and removed. Prints seconds and peak memory over the bars, and over one bare pass through the same files
(decompress, hash) in the same run. Exits 1 if a bar is missed.
"""

import argparse
import gzip
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT)]

from data.raw import IMAGE, reading

TOPICS = 300
WORDS = (
    "light sturdy steel grip bike camp trail winter water cover strap holder blade rope training foam tactical folding pump pad rifle "
    "scope paddle yoga glove helmet bottle tent lantern knife"
).split()


def names(prefix, length, count, seed):
    """`count` different ids of `length` characters: [count] strings."""
    order = np.random.default_rng(seed).permutation(count)
    return [
        f"{prefix}{np.base_repr(number * 7919 + 36**5, 36):0>{length - len(prefix)}}"
        for number in order.tolist()
    ]


def draw_pairs(users, items, count, seed):
    """[count, 2] different (user, item) pairs, at least 5 a user and 5 an item, half of a user's within a topic (item % TOPICS)."""
    rng = np.random.default_rng(seed)
    weight = rng.pareto(1.2, items) + 1
    must = np.stack(
        [rng.permutation(5 * items) % users, np.arange(5 * items) % items], 1
    )  # 5 users for each item
    more = np.repeat(np.arange(users), 12)  # then 5 items for each user
    fill = rng.integers(users, size=4 * count)
    user = np.concatenate([must[:, 0], more, fill])
    item = np.concatenate([must[:, 1], rng.choice(items, len(more) + len(fill), p=weight / weight.sum())])
    near = rng.random(len(user)) < 0.5
    near[: len(must)] = False
    item = np.where(near, np.minimum(item // TOPICS * TOPICS + user % TOPICS, items - 1), item)
    first = np.sort(np.unique(user * items + item, return_index=True)[1])  # different pairs, in this order
    user, item = user[first], item[first]
    rank = np.empty(len(user), np.int64)
    by_user = np.argsort(user, kind="stable")
    degree = np.bincount(user)
    rank[by_user] = np.arange(len(user)) - np.repeat(np.cumsum(degree) - degree, degree)
    needed = (first < len(must)) | (rank < 5)
    chosen = np.concatenate([np.flatnonzero(needed), np.flatnonzero(~needed)])[:count]
    if needed.sum() > count or len(chosen) < count:
        sys.exit(
            "error: --interactions: not enough for 5 of every user and item, or more than there are pairs"
        )
    return np.stack([user, item], 1)[rng.permutation(chosen)]


def write_reviews(path, pairs, users, items, rng):
    """reviews_*_5.json.gz: a JSON object a line, with a text of about 500 characters."""
    texts = [" ".join(rng.choice(WORDS, 80)) for _ in range(1000)]
    times = rng.integers(10**9, 14 * 10**8, len(pairs)) // 86400 * 86400
    ratings = rng.integers(1, 6, len(pairs)).astype(float)
    with gzip.open(path, "wt", 1) as file:
        for at, (user, item) in enumerate(pairs.tolist()):
            file.write(
                json.dumps(
                    {
                        "reviewerID": users[user],
                        "asin": items[item],
                        "reviewerName": "a name",
                        "helpful": [0, 1],
                        "reviewText": texts[at % 1000],
                        "overall": ratings[at],
                        "summary": texts[at % 997][:40],
                        "unixReviewTime": int(times[at]),
                        "reviewTime": "05 21, 2014",
                    }
                )
                + "\n"
            )


def write_meta(path, items, rng):
    """meta_*.json.gz: a Python literal a line, with the lists of related items that make the real lines long."""
    related = rng.integers(len(items), size=(1000, 60))
    with gzip.open(path, "wt", 1) as file:
        for at, name in enumerate(items):
            near = [items[other] for other in related[at % 1000]]
            words = [WORDS[(at * 7 + k * k) % len(WORDS)] for k in range(60)]
            file.write(
                repr(
                    {
                        "asin": name,
                        "title": " ".join(words[:8]) + f" &amp; No. {at}",
                        "price": 9.99,
                        "imUrl": "http://host/I/41.jpg",
                        "related": {
                            "also_bought": near[:30],
                            "also_viewed": near[30:],
                            "bought_together": near[:2],
                        },
                        "salesRank": {"Sports &amp; Outdoors": at},
                        "brand": f"Brand {at % 997}",
                        "categories": [["Sports & Outdoors", words[1], words[2]]],
                        "description": "It's " + " ".join(words),
                    }
                )
                + "\n"
            )


def write_images(path, items, topics, rng):
    """image_features_*.b: a 10-byte id and 4096 float32 a record, around the centre of the item's topic."""
    noise = rng.standard_normal((997, 4096), dtype=np.float32)
    centres = rng.standard_normal((TOPICS, 4096), dtype=np.float32)
    with open(path, "wb") as file:
        for start in range(0, len(items), 500):
            block = np.empty(len(items[start : start + 500]), IMAGE)
            at = np.arange(start, start + len(block))
            block["id"], block["vector"] = items[start : start + 500], noise[at % 997] + centres[topics[at]]
            file.write(block.tobytes())


def make_files(work, args):
    """The three raw files in `work`. Returns their paths."""
    rng = np.random.default_rng(args.seed)
    users, items = names("A", 14, args.users, 1), names("B", 10, args.metadata, 2)
    paths = [work / "reviews_Made_5.json.gz", work / "meta_Made.json.gz", work / "image_features_Made.b"]
    write_reviews(
        paths[0], draw_pairs(args.users, args.items, args.interactions, args.seed), users, items, rng
    )
    order = rng.permutation(len(items))  # the items with interactions lie anywhere in the other files
    write_meta(paths[1], [items[at] for at in order], rng)
    order = order[(order < args.items) | (np.cumsum(order >= args.items) <= args.images - args.items)]
    write_images(paths[2], [items[at] for at in order], order % TOPICS, rng)
    return paths


def bare_pass(paths):
    """Seconds to read, decompress and hash the files."""
    started = time.perf_counter()
    for path in paths:
        with reading(path, {}) as file:
            while file.read(1 << 20):
                pass
    return time.perf_counter() - started


def timed(command):
    """Run a command of this repository. Returns (seconds, those of CPU time, peak memory in GB, its exit code)."""
    started = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT)
    _, status, usage = os.wait4(process.pid, 0)
    return (
        time.perf_counter() - started,
        usage.ru_utime + usage.ru_stime,
        usage.ru_maxrss * 1024 / 1e9,
        os.waitstatus_to_exitcode(status),
    )


def main():
    """Make the files, measure, print. Returns 1 if a bar is missed or a tool fails, else 0."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--users", type=int, default=35598, help="users (default 35598)")
    parser.add_argument("--items", type=int, default=18357, help="items with interactions (default 18357)")
    parser.add_argument(
        "--interactions", type=int, default=296337, help="lines of the reviews file (default 296337)"
    )
    parser.add_argument("--metadata", type=int, default=532197, help="metadata records (default 532197)")
    parser.add_argument(
        "--images",
        type=int,
        default=100000,
        help="image feature records of 16 kB each, at least --items (default 100000)",
    )
    parser.add_argument(
        "--check", type=int, default=0, choices=(0, 1), help="1 runs data.check on the result"
    )
    parser.add_argument("--seed", type=int, default=2025, help="seed of the files")
    parser.add_argument("--minutes", type=float, default=10, help="bar for the time")
    parser.add_argument("--gigabytes", type=float, default=4, help="bar for peak memory")
    args = parser.parse_args()
    if not args.items <= min(args.images, args.metadata):
        parser.error("--images and --metadata: at least as many as --items")
    with tempfile.TemporaryDirectory() as work:
        work = Path(work)
        paths = make_files(work, args)
        print(
            "raw files: " + ", ".join(f"{path.name} {path.stat().st_size / 1e6:,.0f} MB" for path in paths),
            flush=True,
        )
        floor = bare_pass(paths)
        flags = [
            word
            for flag, path in zip(("--interactions", "--meta", "--image_features"), paths)
            for word in (flag, str(path))
        ]
        seconds, cpu, memory, code = timed(["data.prepare", "made", "--data_root", str(work), *flags])
        print(
            f"data.prepare: {seconds:.1f} s, {cpu:.1f} s of CPU ({seconds / 60 / args.minutes:.2f} of the bar, {seconds / floor:.1f} times "
            f"one bare pass of {floor:.1f} s), peak memory {memory:.2f} GB ({memory / args.gigabytes:.2f} of the bar)",
            flush=True,
        )
        if args.check and not code:
            spent, cpu, peak, code = timed(["data.check", "made", "--data_root", str(work)])
            print(f"data.check: {spent:.1f} s, {cpu:.1f} s of CPU, peak memory {peak:.2f} GB")
    return int(code != 0 or seconds > 60 * args.minutes or memory > args.gigabytes)


if __name__ == "__main__":
    sys.exit(main())
