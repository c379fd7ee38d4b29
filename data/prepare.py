"""Make a dataset folder from raw files: Amazon's of 2014, or tables of your own with any ids.

    python -m data.prepare sports --interactions reviews_Sports_and_Outdoors_5.json.gz \\
        --meta meta_Sports_and_Outdoors.json.gz --image_features image_features_Sports_and_Outdoors.b
    python -m data.prepare mine --interactions orders.csv --user_column customer --item_column sku --core 2
    python -m data.prepare mine --convert txt      # the .inter table of data/mine/ as .txt files
    python -m data.prepare gowalla --train_test downloads/gowalla    # train.txt, test.txt alone

Steps: of repeated (user, item) pairs the earliest is kept (without times, the first in the file); users and
items with fewer than --core interactions are dropped until none is left (k-core); the remaining users and
items are numbered by first appearance in the file; each interaction goes to train, valid or test.

The folder is built under a temporary name and renamed at the end, so it is complete or absent. It holds no
dates and no paths: the same files and flags give the same bytes. prepare.json records settings, input SHA-256
and counts.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from cli import Parser, run_tool
from data.folders import inter_path
from data.formats import SPLITS, read_inter, read_interactions, read_txt
from data.hold_out import split_train
from data.interaction_log import InteractionLog, distinct_rows, k_core, read_log
from data.raw import COLUMNS, Inputs
from data.splits import RULES, TEST, TRAIN, VALID, split
from data.writers import (
    new_folder,
    write_ids,
    write_images,
    write_inter,
    write_interactions,
    write_reordered,
    write_texts,
    write_txt,
)
from utils import UserError, write_json

MARK = "prepare.json"
FEATURES = ("text", "image", "audio", "user_text")
SHARES = {"valid_share": 0.1, "test_share": 0.1}
COLD_SHARE = 0.2
# Flags that need no --interactions, and those that they may be combined with.
MODES: dict[str, tuple[str, ...]] = {"convert": (), "train_test": ("valid_share", "seed")}
# Flags that prepare.json records.
SETTINGS = (
    "core",
    "split",
    "seed",
    *SHARES,
    "cold_share",
    "format",
    "columns",
    "user_column",
    "item_column",
    "rating_column",
    "time_column",
)


# ---------------------------------------------------------------- statistics


def count_row(name: str, user: np.ndarray, item: np.ndarray) -> dict[str, Any]:
    """One row of the table of counts."""
    per_user = np.unique(user, return_counts=True)[1]
    return {
        "": name,
        "interactions": len(user),
        "users": len(per_user),
        "items": len(np.unique(item)),
        "min per user": int(per_user.min()),
        "median": float(np.median(per_user)),
        "mean": round(float(per_user.mean()), 2),
        "max": int(per_user.max()),
    }


def split_counts(log: InteractionLog, label: np.ndarray) -> list[dict[str, Any]]:
    """Rows of counts: of all interactions, then of each split.

    Cold users and items are those of a split that are not in train.
    """
    rows = [count_row("kept", log.user, log.item)]
    for code, name in enumerate(SPLITS):
        row = count_row(name, log.user[label == code], log.item[label == code])
        for kind, ids in (("users", log.user), ("items", log.item)):
            is_cold = ~np.isin(np.unique(ids[label == code]), ids[label == TRAIN])
            row[f"cold {kind}"] = int(is_cold.sum())
        rows.append(row)
    return rows


def as_table(rows: list[dict[str, Any]]) -> list[str]:
    """Rows of counts as aligned lines, with one column per key."""
    columns = list(rows[-1])
    cells = [columns]
    for row in rows:
        numbers = [f"{row[column]:,}" if column in row else "" for column in columns[1:]]
        cells.append([row[""], *numbers])
    widths = [max(map(len, column)) for column in zip(*cells)]
    lines = []
    for name, *numbers in cells:
        aligned = [number.rjust(width) for number, width in zip(numbers, widths[1:])]
        lines.append("  ".join([name.ljust(widths[0]), *aligned]))
    return lines


def cut_times(log: InteractionLog, label: np.ndarray) -> list[str]:
    """The first times of valid and test in a temporal split, as text."""
    assert log.time is not None
    cuts = [log.time[label == code].min() for code in (VALID, TEST)]
    # Seconds since 1970 of the years 1973 to 2286; other numbers are not dates.
    if not all(1e8 < cut < 1e10 for cut in cuts):
        return [f"{cut:.15g}" for cut in cuts]
    return [datetime.fromtimestamp(cut, UTC).strftime("%Y-%m-%d %H:%M:%S") for cut in cuts]


def report(folder: Path, args: argparse.Namespace, made: dict[str, Any]) -> Iterator[str]:
    """What was made, as lines. made: the entries of prepare.json."""
    read, distinct, kept = made["counts"][:3]
    yield f"{folder}: {args.core}-core, split {args.split}, seed {args.seed}"
    yield from as_table(made["counts"])
    yield f"density {100 * kept['interactions'] / kept['users'] / kept['items']:.4f} %"
    if n_repeated := read["interactions"] - distinct["interactions"]:
        yield (
            f"note: {n_repeated:,} repeated (user, item) pairs left out; the earliest is kept, without times "
            "the first in the file"
        )
    if "cuts" in made:
        yield f"valid from {made['cuts'][0]}, test from {made['cuts'][1]}"
    for row in made["counts"][3:]:
        users, items = row["cold users"], row["cold items"]
        if users or items:
            yield f"note: {row['']}: {users:,} users and {items:,} items have no train interaction"
    for name, counts in made.items():
        if isinstance(counts, dict):
            filled = counts["missing"] and name.endswith(".npy")
            numbers = ", ".join(f"{key} {count:,}" for key, count in counts.items())
            yield f"{name}: {numbers}{'; missing rows have the mean of the others' if filled else ''}"


# ---------------------------------------------------------------- prepare


def prepare(args: argparse.Namespace, folder: Path) -> None:
    """Make a dataset folder from raw files, and print what it holds."""
    inputs: Inputs = {}
    wanted = {role: getattr(args, f"{role}_column") for role in COLUMNS}
    columns = args.columns.split(",") if args.columns else None
    with new_folder(folder) as work:
        raw = read_log(args.interactions, wanted, columns, inputs)
        distinct = raw.take(distinct_rows(raw))
        keep = k_core(distinct.user, distinct.item, args.core)
        if not keep.any():
            raise UserError(
                f"{args.interactions}: nothing is left of {args.core} interactions per user and item; give a "
                "smaller --core"
            )
        log = distinct.take(keep)
        label = split(log, args.split, split_shares(args), args.seed)
        write_interactions(work, folder.name, log, label, args.format)
        # Make sure that the trainer accepts the folder.
        read_interactions(work, args.format)
        counts = [count_row("read", raw.user, raw.item), count_row("distinct", distinct.user, distinct.item)]
        made = {"counts": counts + split_counts(log, label), **write_content(args, work, log, inputs)}
        if args.split == "temporal":
            made["cuts"] = cut_times(log, label)
        settings = {key: value for key, value in vars(args).items() if key in SETTINGS and value is not None}
        files = [{"file": Path(path).name, **facts} for path, facts in inputs.items()]
        record = {"settings": settings, "inputs": files, **made}
        write_json(work / MARK, record)
    print("\n".join(report(folder, args, made)))


def write_content(
    args: argparse.Namespace, work: Path, log: InteractionLog, inputs: Inputs
) -> dict[str, Any]:
    """Write id maps, texts and features. Returns {file name: counts} of the latter two."""
    write_ids(work / "user_ids.tsv", log.user_ids)
    write_ids(work / "item_ids.tsv", log.item_ids)
    users = {name: code for code, name in enumerate(log.user_ids)}
    items = {name: code for code, name in enumerate(log.item_ids)}
    made: dict[str, Any] = {}
    if args.meta:
        path = work / "item_text.jsonl"
        made[path.name] = write_texts(path, args.meta, args.item_column, items, inputs)
    if args.image_features:
        path = work / "image_feat.npy"
        made[path.name] = write_images(path, args.image_features, items, inputs)
    for kind in FEATURES:
        if value := getattr(args, f"{kind}_feat"):
            path = work / f"{kind}_feat.npy"
            index = users if kind == "user_text" else items
            made[path.name] = write_reordered(path, f"{kind}_feat", value, index, inputs)
    return made


def split_shares(args: argparse.Namespace) -> list[float]:
    """Shares of valid and test, and with --split cold that of cold items.

    Raises UserError if they leave nothing to train on, or the rule of the split does not use them.
    """
    given = {name: getattr(args, name) for name in SHARES}
    if args.split in ("mmrec", "leave_one_out"):
        for name, share in given.items():
            if share is not None:
                raise UserError(
                    f"--{name}: --split {args.split} has its own rule; use it with --split random, temporal "
                    "or cold"
                )
    shares = [SHARES[name] if share is None else share for name, share in given.items()]
    if not (min(shares) > 0 and sum(shares) < 1):
        raise UserError(
            f"--valid_share {shares[0]} --test_share {shares[1]}: both must be above 0, and less than 1 "
            "together"
        )
    return [*shares, cold_share(args)] if args.split == "cold" else shares


def valid_share(args: argparse.Namespace) -> float:
    """Share of train that --train_test moves to valid. Raises UserError unless it is between 0 and 1."""
    share: float = SHARES["valid_share"] if args.valid_share is None else args.valid_share
    if not 0 < share < 1:
        raise UserError(f"--valid_share {share}: must be above 0 and below 1")
    return share


def cold_share(args: argparse.Namespace) -> float:
    """Share of items that --split cold holds out. Raises UserError unless it leaves items on both sides."""
    if args.cold_share is None:
        return COLD_SHARE
    if args.split != "cold":
        raise UserError(f"--cold_share: --split {args.split} holds no items out; use it with --split cold")
    if not 0 < args.cold_share < 1:
        raise UserError(f"--cold_share {args.cold_share}: must be above 0 and below 1")
    return args.cold_share


# ---------------------------------------------------------------- convert


def convert(folder: Path, data_format: str) -> None:
    """Write the interactions of a dataset folder in the other format too, and print what was written."""
    to_txt = data_format == "txt"
    name = "train.txt" if to_txt else f"{folder.resolve().name.removesuffix('_raw')}.inter"
    target = folder / name
    if target.exists():
        raise UserError(f"{target}: exists already; remove it to make it again")
    # Raises an error for anything that the trainer would refuse.
    read_interactions(folder, "inter" if to_txt else "txt")
    if to_txt:
        parts = read_inter(inter_path(folder))
    else:
        parts = {split: read_txt(folder / f"{split}.txt") for split in SPLITS}
    label = np.repeat(range(3), [len(part) for part in parts.values()])
    table = pd.concat(parts.values(), ignore_index=True)
    if to_txt:
        write_txt(folder, table["user"].to_numpy(), table["item"].to_numpy(), label, table["user"].max() + 1)
    else:
        inter = pd.DataFrame({"userID": table["user"], "itemID": table["item"], "x_label": label})
        write_inter(target, inter.sort_values(["userID", "x_label"], kind="stable"))
    loss = "; .txt files hold no ratings and times" if to_txt else ""
    print(f"{target}: {len(table):,} interactions written{loss}")


# ---------------------------------------------------------------- command line


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python -m data.prepare",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="%(prog)s NAME --interactions FILE [flags] | NAME --convert {txt,inter} | "
        "NAME --train_test DIR [--valid_share X] [--seed N]",
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
        help="write the interactions of the existing folder NAME in this format too",
    )
    parser.add_argument(
        "--train_test",
        metavar="DIR",
        help="make the folder NAME from train.txt and test.txt of DIR: a share (--valid_share, default 0.1) "
        "of each user's train items becomes valid (--seed)",
    )
    add_input_flags(
        parser.add_argument_group("raw files (.csv, .tsv, .jsonl, .json, each also .gz, or .parquet)")
    )
    add_split_flags(parser.add_argument_group("filter and split"))
    return parser


def add_input_flags(group: argparse._ArgumentGroup) -> None:
    """Flags that name the raw files."""
    group.add_argument(
        "--interactions",
        metavar="FILE",
        help="ratings_*.csv, reviews_*.json.gz, or a table of user, item[, rating, timestamp]",
    )
    group.add_argument(
        "--columns", metavar="A,B,...", help="columns of a CSV or TSV file without a header line"
    )
    for role, names in COLUMNS.items():
        none = "; '' for none" if role in ("rating", "time") else ""
        group.add_argument(
            f"--{role}_column",
            metavar="COLUMN",
            help=f"its {role} column (default: the first present of {', '.join(names)}){none}",
        )
    group.add_argument(
        "--meta",
        metavar="FILE",
        help="meta_*.json.gz, or a table of the item column and some of title, brand, categories, "
        "description; becomes item_text.jsonl",
    )
    group.add_argument(
        "--image_features", metavar="FILE", help="Amazon's image_features_*.b; becomes image_feat.npy"
    )
    for kind in FEATURES:
        group.add_argument(
            f"--{kind}_feat",
            metavar="FILE.npy=IDS",
            help=f"features of your own, reordered into {kind}_feat.npy; IDS lists the original id of each "
            "row: one per line, or ROW <tab> ID",
        )


def add_split_flags(group: argparse._ArgumentGroup) -> None:
    """Flags of the k-core filter, the split and the output."""
    group.add_argument(
        "--core",
        type=int,
        default=5,
        metavar="K",
        help="minimum interactions of every user and item; 1 keeps all (default 5)",
    )
    group.add_argument(
        "--split",
        choices=RULES,
        default="mmrec",
        help="mmrec: per user, n < 10: n - 2 / 1 / 1, else 8:1:1; random: 8:1:1 over all; leave_one_out: "
        "each user's last for test, the one before for valid; temporal: the same two cuts in time for all "
        "users; cold: a share of the items is held out entirely, the interactions with the others as "
        "random (default mmrec)",
    )
    for name in SHARES:
        group.add_argument(
            f"--{name}",
            type=float,
            metavar="X",
            help=f"share of {name.removesuffix('_share')} with --split random, temporal or cold "
            "(default 0.1)",
        )
    group.add_argument(
        "--cold_share",
        type=float,
        metavar="X",
        help="share of the items that --split cold holds out, half for valid and half for test "
        f"(default {COLD_SHARE})",
    )
    group.add_argument("--seed", type=int, default=2025, metavar="N", help="seed of the split (default 2025)")
    group.add_argument(
        "--format",
        choices=("inter", "txt"),
        default="inter",
        help="format of the interactions; inter keeps ratings and times (default inter)",
    )


def check_flags(args: argparse.Namespace, parser: Parser) -> None:
    """Raise UserError for flags that contradict each other or are out of range."""
    if args.name in ("", "..", ".") or Path(args.name).name != args.name:
        raise UserError(f"NAME '{args.name}': give a plain folder name; --data_root names its parent")
    for mode, flags in MODES.items():
        if value := getattr(args, mode):
            for key, other in vars(args).items():
                if key not in ("name", "data_root", mode, *flags) and other != parser.get_default(key):
                    raise UserError(f"--{mode} {value}: cannot be combined with --{key}; leave it out")
    if not (args.interactions or args.convert or args.train_test):
        raise UserError(
            "--interactions FILE, --convert or --train_test is needed (python -m data.prepare --help lists "
            "the flags)"
        )
    if args.image_features and args.image_feat:
        raise UserError("--image_features and --image_feat both make image_feat.npy; give one")
    for flag, low in (("core", 1), ("seed", 0)):
        if getattr(args, flag) < low:
            raise UserError(f"--{flag} {getattr(args, flag)}: must be at least {low}")
    names = args.columns.split(",") if args.columns else []
    if repeated := next((name for name in names if names.count(name) > 1), None):
        raise UserError(
            f"--columns {args.columns}: names {repeated} twice; give each column a name of its own"
        )
    if args.train_test:
        valid_share(args)
    else:
        split_shares(args)
    cold_share(args)


def command(args: argparse.Namespace) -> None:
    """Prepare or convert a dataset folder."""
    check_flags(args, make_parser())
    folder = Path(args.data_root) / args.name
    if args.convert:
        convert(folder, args.convert)
    elif args.train_test:
        print(split_train(folder, Path(args.train_test), valid_share(args), args.seed))
    else:
        prepare(args, folder)


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code, see cli.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
