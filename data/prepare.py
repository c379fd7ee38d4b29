"""Make a dataset folder from raw files: Amazon's of 2014, or tables of one's own with any ids.

    python -m data.prepare sports --interactions reviews_Sports_and_Outdoors_5.json.gz --meta meta_Sports_and_Outdoors.json.gz \\
        --image_features image_features_Sports_and_Outdoors.b
    python -m data.prepare mine --interactions orders.csv --user_column customer --item_column sku --core 2 --split temporal
    python -m data.prepare mine --convert txt                 # train.txt, valid.txt, test.txt from the .inter table in data/mine/

What is done, in this order: of repeated (user, item) pairs the earliest is kept (without times the first in the file);
users and items with fewer than --core interactions are dropped until none is left (k-core); users and items are numbered
by first appearance in the file among what is left; each interaction goes to train, valid or test.

The folder is built beside its place and renamed at the end, so it is whole or not there. It holds no dates and no
paths: the same files and flags give the same bytes. prepare.json keeps the settings, the SHA-256 of every input and the counts.
"""

import argparse
import contextlib
import dataclasses
import json
import os
import shutil
import sys
from datetime import datetime, timezone
from pathlib import Path

import numpy as np
import pandas as pd

from cli import Parser, run_tool
from data.feature_files import open_features
from data.formats import SPLITS, inter_path, read_inter, read_interactions, read_txt
from data.raw import COLUMNS, IMAGE, TEXTS, image_records, item_records, reading, row_ids, tables
from utils import UserError, atomic_write, lock_file, write_text

TRAIN, VALID, TEST = range(3)
MARK = "prepare.json"
FEATURES = ("text", "image", "audio", "user_text")
SHARES = {"valid_share": 0.1, "test_share": 0.1}
SETTINGS = (
    "core",
    "split",
    "seed",
    *SHARES,
    "format",
    "columns",
    "user_column",
    "item_column",
    "rating_column",
    "time_column",
)


# ---------------------------------------------------------------- interactions


@dataclasses.dataclass(frozen=True)
class Log:
    """Interactions in the order of the file, n rows. ids[code] is the original id of a user or an item."""

    user: np.ndarray  # [n] int64
    item: np.ndarray  # [n] int64
    rating: np.ndarray | None  # [n] float64
    time: np.ndarray | None  # [n] float64
    user_ids: list
    item_ids: list

    def __len__(self):
        return len(self.user)

    def take(self, rows):
        """The log with these rows alone (mask or positions), users and items numbered by first appearance in them."""
        user, users = pd.factorize(self.user[rows])
        item, items = pd.factorize(self.item[rows])
        return Log(
            user,
            item,
            *(None if column is None else column[rows] for column in (self.rating, self.time)),
            [self.user_ids[code] for code in users],
            [self.item_ids[code] for code in items],
        )


def read_log(path, wanted, columns, inputs):
    """A table of interactions -> Log, codes by first appearance. Raises UserError for a table without rows; see raw.tables."""
    codes, parts = {"user": {}, "item": {}}, []
    for _, frame in tables(path, wanted, columns, inputs):
        for role, known in codes.items():
            local, unique = pd.factorize(frame[role])
            frame[role] = np.array([known.setdefault(name, len(known)) for name in unique], dtype=np.int64)[
                local
            ]
        parts.append({name: frame[name].to_numpy() for name in frame})
    if not sum(len(part["user"]) for part in parts):
        raise UserError(f"{path}: holds no interactions")
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    return Log(
        whole["user"].astype(np.int64),
        whole["item"].astype(np.int64),
        whole.get("rating"),
        whole.get("time"),
        list(codes["user"]),
        list(codes["item"]),
    )


def distinct(log):
    """[m] positions of one interaction a (user, item) pair, the earliest, without times the first; in the order in which the
    pairs first appear."""
    pair = log.user * len(log.item_ids) + log.item
    _, first = np.unique(pair, return_index=True)
    if log.time is None:
        return np.sort(first)
    order = np.argsort(log.time, kind="stable")
    _, earliest = np.unique(pair[order], return_index=True)
    return order[earliest][np.argsort(first)]


def core(user, item, k):
    """[n] bool: what is left when users and items with fewer than k interactions are dropped until there are none."""
    keep = np.ones(len(user), bool)
    while True:
        enough_u, enough_i = (np.bincount(ids[keep], minlength=ids.max() + 1) >= k for ids in (user, item))
        left = keep & enough_u[user] & enough_i[item]
        if left.sum() == keep.sum():
            return keep
        keep = left


# ---------------------------------------------------------------- splits


def places(user, order):
    """Place of each interaction among those of its user when they are taken in `order` [n]: [n] int64, and their number [n]."""
    count = np.bincount(user)
    by_user = order[np.argsort(user[order], kind="stable")]
    place = np.empty(len(user), np.int64)
    place[by_user] = np.arange(len(user)) - np.repeat(np.cumsum(count) - count, count)
    return place, count[user]


def split_mmrec(log, rng, shares):
    """MMRec's rule for each user of n interactions, shuffled: with n < 10 one for valid and one for test, else floor(n / 5)
    held out, half of it (floor) for valid. With n < 3 all are train. Returns [n] labels 0, 1, 2."""
    place, n = places(log.user, rng.permutation(len(log)))
    held = np.where(n < 10, 2, n // 5)
    held[n < 3] = 0
    return np.where(place >= held, TRAIN, np.where(place < held // 2, VALID, TEST))


def split_random(log, rng, shares):
    """Interactions drawn at random over all users: floor(share * n) each for valid and test."""
    n = len(log)
    valid, test = (int(share * n) for share in shares)
    label = np.repeat([VALID, TEST, TRAIN], [valid, test, n - valid - test])
    return label[rng.permutation(n)]


def split_leave_one_out(log, rng, shares):
    """Each user's last interaction is test, the one before valid; with fewer than 3 all are train.

    Last in time, among equal times in the file; drawn at random where there are no times.
    """
    order = rng.permutation(len(log)) if log.time is None else np.argsort(log.time, kind="stable")
    place, n = places(log.user, order)
    left = np.where(n < 3, n, n - 1 - place)  # 0: the last one
    return np.select([left == 0, (left == 1) & (n >= 3)], [TEST, VALID], TRAIN)


def split_temporal(log, rng, shares):
    """One cut in time for everybody: train is before the first cut, test from the second on. Equal times stay together."""
    if log.time is None:
        raise UserError("--split temporal: the table has no times; name their column with --time_column")
    ordered = np.sort(log.time)
    valid, test = (ordered[int(len(ordered) * (1 - share))] for share in (sum(shares), shares[1]))
    return (log.time >= valid).astype(np.int64) + (log.time >= test)


RULES = {
    "mmrec": split_mmrec,
    "random": split_random,
    "leave_one_out": split_leave_one_out,
    "temporal": split_temporal,
}


def split(log, rule, shares, seed):
    """[n] int64 labels 0 train, 1 valid, 2 test. Raises UserError if a split is left empty."""
    label = RULES[rule](log, np.random.default_rng(seed), shares)
    for name, count in zip(SPLITS, np.bincount(label, minlength=3)):
        if not count:
            remedy = (
                "change --valid_share or --test_share"
                if rule in ("random", "temporal")
                else "some users need 3 interactions"
            )
            raise UserError(
                f"--split {rule}: leaves the {name} split empty ({len(log)} interactions of {len(log.user_ids)} users, "
                f"{len(np.unique(log.time)) if log.time is not None else 'no'} different times); {remedy}"
            )
    return label


# ---------------------------------------------------------------- statistics


def count_row(name, user, item):
    """One row of the table of statistics."""
    per_user = np.unique(user, return_counts=True)[1]
    return {
        "": name,
        "interactions": len(user),
        "users": len(per_user),
        "items": len(np.unique(item)),
        "least a user": int(per_user.min()),
        "median": float(np.median(per_user)),
        "mean": round(float(per_user.mean()), 2),
        "most": int(per_user.max()),
    }


def statistics(log, label):
    """Rows of counts: all, then every split, with the users and items of a split that train does not know (cold)."""
    rows = [count_row("kept", log.user, log.item)]
    known = [np.unique(ids[label == TRAIN]) for ids in (log.user, log.item)]
    for k, name in enumerate(SPLITS):
        part = [ids[label == k] for ids in (log.user, log.item)]
        rows.append(count_row(name, *part))
        cold = [int((~np.isin(np.unique(ids), seen)).sum()) for ids, seen in zip(part, known)]
        rows[-1].update({"cold users": cold[0], "cold items": cold[1]})
    return rows


def as_table(rows):
    """Rows of counts -> lines, one column a key."""
    names = list(rows[-1])
    cells = [names] + [
        [f"{row.get(name, ''):,}" if name and name in row else row.get(name, "") for name in names]
        for row in rows
    ]
    widths = [max(map(len, column)) for column in zip(*cells)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:]))])
        for row in cells
    ]


def cut_dates(log, label):
    """The times of a temporal split's two cuts as text: [valid, test]."""
    cuts = [log.time[label == k].min() for k in (VALID, TEST)]
    if not all(1e8 < cut < 1e10 for cut in cuts):  # seconds since 1970, between 1973 and 2286
        return [f"{cut:.15g}" for cut in cuts]
    return [datetime.fromtimestamp(cut, timezone.utc).strftime("%Y-%m-%d %H:%M:%S") for cut in cuts]


# ---------------------------------------------------------------- files


def whole(column):
    """Float64 column as integers where it holds nothing else, so that it is written without '.0'."""
    return (
        column.astype(np.int64)
        if (column == np.trunc(column)).all() and abs(column).max() < 2**62
        else column
    )


def write_inter(path, table):
    """table: columns userID, itemID, [rating], [timestamp], x_label -> tab-separated with a header."""
    with atomic_write(path) as file:
        table.to_csv(file, sep="\t", index=False, lineterminator="\n")


def write_txt(folder, user, item, label, n_users):
    """train.txt, valid.txt, test.txt: a line for every user of 0 .. n_users - 1, items in their order here.

    train.txt comes last: a folder is read as one of .txt files if it has it.
    """
    order = np.argsort(user, kind="stable")
    for k in (TEST, VALID, TRAIN):
        rows = order[label[order] == k]
        parts = np.split(item[rows], np.cumsum(np.bincount(user[rows], minlength=n_users))[:-1])
        lines = (" ".join(map(str, [number, *items.tolist()])) + "\n" for number, items in enumerate(parts))
        write_text(Path(folder) / f"{SPLITS[k]}.txt", "".join(lines))


def write_interactions(folder, name, log, label, form):
    """The interactions in one of the two formats; .inter keeps ratings and times."""
    if form == "txt":
        return write_txt(folder, log.user, log.item, label, len(log.user_ids))
    time = None if log.time is None else whole(log.time)
    columns = {
        "userID": log.user,
        "itemID": log.item,
        "rating": log.rating,
        "timestamp": time,
        "x_label": label,
    }
    table = pd.DataFrame({key: column for key, column in columns.items() if column is not None})
    write_inter(
        folder / f"{name.removesuffix('_raw')}.inter", table.sort_values(["userID", "x_label"], kind="stable")
    )


def write_features(path, blocks, rows, dim, dtype):
    """A .npy [rows, dim] from blocks of (row numbers, vectors); a row that none has gets the mean of those there are.

    Nothing but one block is in memory. Of a repeated row the first counts, and vectors with NaN or Inf are left out.
    Returns {"found", "missing", "unfit" (of the missing, those with NaN or Inf)}.
    """
    dtype = np.dtype(dtype).newbyteorder("=")
    found, unfit, total = np.zeros(rows, bool), np.zeros(rows, bool), np.zeros(dim)
    with atomic_write(path) as file:
        header = {"descr": np.lib.format.dtype_to_descr(dtype), "fortran_order": False, "shape": (rows, dim)}
        np.lib.format.write_array_header_1_0(file, header)
        start, size = file.tell(), dim * dtype.itemsize

        def put(row, vector):
            file.seek(start + int(row) * size)
            file.write(vector.tobytes())

        for numbers, vectors in blocks:
            for row, vector in zip(numbers, vectors.astype(dtype, copy=False)):
                finite = np.isfinite(vector).all()
                unfit[row] |= not finite
                if finite and not found[row]:
                    found[row] = True
                    total += vector
                    put(row, vector)
        mean = (total / max(1, found.sum())).astype(dtype)
        for row in np.flatnonzero(~found):
            put(row, mean)
    return {"found": int(found.sum()), "missing": int((~found).sum()), "unfit": int((unfit & ~found).sum())}


def chosen_rows(names, vectors, index):
    """(row numbers, vectors) of those names that the dataset has. index: {original id: row}."""
    here = [at for at, name in enumerate(names) if name in index]
    return [index[names[at]] for at in here], vectors[here]


def write_images(path, source, index, inputs):
    """An Amazon image feature file -> [items, 4096] float32 in item order; see write_features. index: {original id: row}."""
    blocks = (chosen_rows(names, vectors, index) for names, vectors in image_records(source, inputs))
    return checked(write_features(path, blocks, len(index), IMAGE["vector"].shape[0], np.float32), source)


def write_reordered(path, flag, value, index, inputs, block=4096):
    """'FILE.npy=IDS': the rows of FILE.npy, whose original ids are in IDS, brought into the order of index; see write_features."""
    source, _, names_path = value.rpartition("=")
    if not source:
        raise UserError(
            f"--{flag} {value}: give FILE.npy=IDS, where the file IDS names the original id of every row"
        )
    array = open_features(source)
    names = row_ids(names_path, len(array), inputs)
    with reading(source, inputs):
        pass  # for the checksum
    blocks = (
        chosen_rows(names[at : at + block], np.asarray(array[at : at + block]), index)
        for at in range(0, len(array), block)
    )
    return checked(write_features(path, blocks, len(index), array.shape[1], array.dtype), names_path)


def checked(counts, source):
    """The counts of write_features. Raises UserError if nothing was found."""
    if not counts["found"]:
        raise UserError(
            f"{source}: has features for none of the {counts['missing']} ids of the dataset; are its ids those of the "
            "interactions?"
        )
    return counts


def write_texts(path, source, wanted, index, inputs):
    """item_text.jsonl: one object an item, in item order: {"item": number, "id": original id, "title", "brand", "categories",
    "description"}, each a string, '' where nothing is known. Returns how many items have each."""
    texts = [dict.fromkeys(TEXTS, "") for _ in index]
    met = np.zeros(len(index), bool)
    for _, name, text in item_records(source, wanted, index, inputs):
        if not met[index[name]]:  # of a repeated id the first counts
            met[index[name]], texts[index[name]] = True, text
    if not met.any():
        raise UserError(
            f"{source}: describes none of the {len(index)} items; are its ids those of the interactions?"
        )
    rows = ({"item": row, "id": name, **texts[row]} for name, row in index.items())
    write_text(path, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return {
        "found": int(met.sum()),
        "missing": int((~met).sum()),
        **{key: sum(text[key] != "" for text in texts) for key in TEXTS},
    }


@contextlib.contextmanager
def built(folder):
    """A folder to fill; it takes the name `folder` when the block ends, and is removed when the block fails.

    What a killed process left is removed by the next. Raises UserError if the folder is there, or being made.
    """
    if folder.exists():
        raise UserError(f"{folder}: exists already; give another NAME, or remove it")
    work = folder.with_name(f".{folder.name}.partial")
    work.mkdir(parents=True, exist_ok=True)
    with lock_file(work / ".lock"):
        for path in work.iterdir():
            if path.name != ".lock":
                path.unlink()
        try:
            yield work
        except UserError as error:
            shutil.rmtree(work)
            raise UserError(str(error).replace(str(work), str(folder))) from None
        except BaseException:
            shutil.rmtree(work)
            raise
        (work / ".lock").unlink()
        os.rename(work, folder)


# ---------------------------------------------------------------- the two things to do


def prepare(args, folder):
    """Make a dataset folder from raw files, and print what it holds."""
    inputs = {}
    wanted = {role: getattr(args, f"{role}_column") for role in ("user", "item", "rating", "time")}
    with built(folder) as work:
        raw = read_log(args.interactions, wanted, args.columns.split(",") if args.columns else None, inputs)
        unique = raw.take(distinct(raw))
        keep = core(unique.user, unique.item, args.core)
        if not keep.any():
            raise UserError(
                f"{args.interactions}: no user and item has {args.core} interactions; give a smaller --core"
            )
        log = unique.take(keep)
        label = split(log, args.split, shares_of(args), args.seed)
        write_interactions(work, folder.name, log, label, args.format)
        read_interactions(work, args.format)  # as the trainer will
        rows = [
            count_row("read", raw.user, raw.item),
            count_row("distinct", unique.user, unique.item),
            *statistics(log, label),
        ]
        told = {"counts": rows, **write_content(args, work, log, inputs)}
        if args.split == "temporal":
            told["cuts"] = cut_dates(log, label)
        settings = {key: value for key, value in vars(args).items() if key in SETTINGS and value is not None}
        files = [{"file": Path(path).name, **facts} for path, facts in inputs.items()]
        write_text(work / MARK, json.dumps({"settings": settings, "inputs": files, **told}, indent=1) + "\n")
    print("\n".join(report(folder, args, told)))


def write_content(args, work, log, inputs):
    """Id maps, texts and features. Returns the counts of each."""
    told = {}
    for kind, ids in (("user", log.user_ids), ("item", log.item_ids)):
        write_text(work / f"{kind}_ids.tsv", "".join(f"{code}\t{name}\n" for code, name in enumerate(ids)))
    users, items = ({name: code for code, name in enumerate(ids)} for ids in (log.user_ids, log.item_ids))
    if args.meta:
        told["item_text.jsonl"] = write_texts(
            work / "item_text.jsonl", args.meta, args.item_column, items, inputs
        )
    if args.image_features:
        told["image_feat.npy"] = write_images(work / "image_feat.npy", args.image_features, items, inputs)
    for kind in FEATURES:
        if value := getattr(args, f"{kind}_feat"):
            index = users if kind == "user_text" else items
            told[f"{kind}_feat.npy"] = write_reordered(
                work / f"{kind}_feat.npy", f"{kind}_feat", value, index, inputs
            )
    return told


def shares_of(args):
    """(valid, test) shares. Raises UserError for shares that leave nothing to train on, or that the split has no use for."""
    if args.split in ("mmrec", "leave_one_out"):
        for name in SHARES:
            if getattr(args, name) is not None:
                raise UserError(
                    f"--{name}: --split {args.split} has its own rule; it goes with --split random or temporal"
                )
    shares = [
        default if getattr(args, name) is None else getattr(args, name) for name, default in SHARES.items()
    ]
    if not (min(shares) > 0 and sum(shares) < 1):
        raise UserError(
            f"--valid_share {shares[0]} --test_share {shares[1]}: both must be above 0, and less than 1 together"
        )
    return shares


def report(folder, args, told):
    """What was made, as lines."""
    read, unique, kept = told["counts"][:3]
    yield f"{folder}: {args.core}-core, split {args.split}, seed {args.seed}"
    yield from as_table(told["counts"])
    yield f"density {100 * kept['interactions'] / kept['users'] / kept['items']:.4f} %"
    if repeated := read["interactions"] - unique["interactions"]:
        yield f"note: {repeated:,} repeated (user, item) pairs left out; the earliest is kept, without times the first in the file"
    if "cuts" in told:
        yield f"valid from {told['cuts'][0]}, test from {told['cuts'][1]}"
    for row in told["counts"][3:]:
        if row["cold users"] or row["cold items"]:
            yield f"note: {row['']}: {row['cold users']:,} users and {row['cold items']:,} items have no train interaction"
    for name, counts in told.items():
        if isinstance(counts, dict):
            yield (
                f"{name}: "
                + ", ".join(f"{key} {count:,}" for key, count in counts.items())
                + (
                    "; the missing have the mean of the found"
                    if counts["missing"] and name.endswith(".npy")
                    else ""
                )
            )


def convert(folder, form):
    """Write the interactions of a dataset folder in its other format beside the first, line order kept; print what was done."""
    target = folder / (
        "train.txt" if form == "txt" else f"{folder.resolve().name.removesuffix('_raw')}.inter"
    )
    if target.exists():
        raise UserError(f"{target}: exists already; remove it to make it again")
    read_interactions(folder, "inter" if form == "txt" else "txt")  # says what is wrong with them
    if form == "txt":
        parts = read_inter(inter_path(folder))
    else:
        parts = {name: read_txt(folder / f"{name}.txt") for name in SPLITS}
    label = np.repeat(range(3), [len(part) for part in parts.values()])
    table = pd.concat(parts.values(), ignore_index=True)
    if form == "txt":
        write_txt(folder, table["user"].to_numpy(), table["item"].to_numpy(), label, table["user"].max() + 1)
    else:
        write_inter(
            target,
            pd.DataFrame({"userID": table["user"], "itemID": table["item"], "x_label": label}).sort_values(
                ["userID", "x_label"], kind="stable"
            ),
        )
    print(
        f"{target}: {len(table):,} interactions written"
        + ("; .txt files hold no ratings and times" if form == "txt" else "")
    )


# ---------------------------------------------------------------- command line


def make_parser():
    """The flags, with their defaults."""
    parser = Parser(
        prog="python -m data.prepare",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s NAME --interactions FILE [flags] | NAME --convert {txt,inter}",
        description=__doc__,
    )
    parser.add_argument("name", metavar="NAME", help="name of the dataset folder")
    parser.add_argument(
        "--data_root",
        default="data",
        metavar="DIR",
        help="folder that holds the dataset folders (default data)",
    )
    parser.add_argument(
        "--convert",
        choices=("txt", "inter"),
        help="write the interactions of the existing folder NAME in this format, from the other",
    )

    raw = parser.add_argument_group("raw files (.csv, .tsv, .jsonl, .json, each also .gz, or .parquet)")
    raw.add_argument(
        "--interactions",
        metavar="FILE",
        help="ratings_*.csv, reviews_*.json.gz, or a table of user, item[, rating, timestamp]",
    )
    raw.add_argument(
        "--columns", metavar="A,B,...", help="the columns of a CSV or TSV file without a header line"
    )
    for role, usual in COLUMNS.items():
        none = "; '' uses none" if role in ("rating", "time") else ""
        raw.add_argument(
            f"--{role}_column",
            metavar="COLUMN",
            help=f"its {role} column (default: the first there is of {', '.join(usual)}){none}",
        )
    raw.add_argument(
        "--meta",
        metavar="FILE",
        help="meta_*.json.gz, or a table of the item column and title, brand, categories, "
        "description or some of these: makes item_text.jsonl",
    )
    raw.add_argument(
        "--image_features", metavar="FILE", help="Amazon's image_features_*.b: makes image_feat.npy"
    )
    for kind in FEATURES:
        raw.add_argument(
            f"--{kind}_feat",
            metavar="FILE.npy=IDS",
            help=f"features of your own, brought into order as {kind}_feat.npy; the "
            "file IDS names the original id of each row: one a line, or ROW <tab> ID",
        )

    how = parser.add_argument_group("how")
    how.add_argument(
        "--core",
        type=int,
        default=5,
        metavar="K",
        help="least interactions of every user and item; 1 keeps all (default 5)",
    )
    how.add_argument(
        "--split",
        choices=RULES,
        default="mmrec",
        help="mmrec: per user, n < 10: n - 2 / 1 / 1, else 8:1:1; random: 8:1:1 over all; leave_one_out: each user's last for test, "
        "the one before for valid; temporal: one cut in time for all (default mmrec)",
    )
    how.add_argument(
        "--valid_share",
        type=float,
        metavar="X",
        help="share of valid with --split random or temporal (default 0.1)",
    )
    how.add_argument(
        "--test_share",
        type=float,
        metavar="X",
        help="share of test with --split random or temporal (default 0.1)",
    )
    how.add_argument("--seed", type=int, default=2025, metavar="N", help="seed of the split (default 2025)")
    how.add_argument(
        "--format",
        choices=("inter", "txt"),
        default="inter",
        help="inter keeps ratings and times (default inter)",
    )
    return parser


def check_flags(args, parser):
    """Raise UserError for flags that do not go together or are out of range."""
    if args.name in ("", "..", ".") or Path(args.name).name != args.name:
        raise UserError(f"NAME '{args.name}': give a plain folder name; --data_root says where it lies")
    if args.convert:
        own = ("name", "data_root", "convert")
        given = [
            key for key, value in vars(args).items() if key not in own and value != parser.get_default(key)
        ]
        if given:
            raise UserError(
                f"--convert {args.convert}: only rewrites the folder NAME and has no use for --{given[0]}"
            )
    elif not args.interactions:
        raise UserError(
            "--interactions FILE or --convert is needed (python -m data.prepare --help lists the flags)"
        )
    if args.image_features and args.image_feat:
        raise UserError("--image_features and --image_feat both make image_feat.npy; give one")
    for flag, least in (("core", 1), ("seed", 0)):
        if getattr(args, flag) < least:
            raise UserError(f"--{flag} {getattr(args, flag)}: must be at least {least}")
    shares_of(args)


def command(args):
    """Do what parsed arguments ask for."""
    check_flags(args, make_parser())
    folder = Path(args.data_root) / args.name
    if args.convert:
        convert(folder, args.convert)
    else:
        prepare(args, folder)


def main(argv=None):
    """Run a command line. Returns the exit code, see utils.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
