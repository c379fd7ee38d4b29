"""Say everything that is wrong with a dataset folder, or worth knowing, before a training does.

    python -m data.check baby_raw
    python -m data.check baby --text_feat data/baby/text_feat_d128.npy

Interactions and features are read as the trainer reads them, but one fault does not hide the next. Then the commonest
silent error of the field is looked for: features in another order than the ids. If the features fit, the nearest
neighbours of an item by its features have more users in common than other items have.

How: S = mean over items i and their 10 nearest neighbours j of cos(users of i, users of j), over all splits. Its null
distribution: the same neighbour graph with the items' interactions dealt out anew at random (a permutation test; for a
range of rows their own interactions stay and only those of their neighbours are dealt out, since popularity differs).
  lift   S over its mean under the null
  z      distance from that mean in standard deviations of the null
  pass     z >= 4
  fail     lift + 4 standard deviations < 1.5: had the features fitted with a lift of 1.5, it would have been seen;
           or the features fit the ids better when all or a fifth of the rows are moved by 1 to 3 places;
           or a fifth of the rows has z < 4 and, with 4 standard deviations, less than a third of what the best fifth
           has above 1
  unknown  anything else: too little data to say
"""

import argparse
import dataclasses
import hashlib
import math
import sys
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd
import scipy.sparse as sp
import torch
from tqdm import tqdm

from cli import Parser, run_tool
from data.feature_files import open_features
from data.formats import SPLITS, dataset_folder, inter_path, join_splits, read_inter, read_txt
from utils import UserError

FEATURES = ("text", "image", "audio", "user_text")
NEIGHBOURS = 10
PERMUTATIONS = 100
SHIFTS = (-3, -2, -1, 1, 2, 3)
BLOCKS = 5  # ranges of rows that are looked at one by one
LEAST = 100  # rows below which nothing is said
LIFT, Z = 1.5, 4.0  # what would be seen in features that fit, and how many standard deviations are evidence
MOST_QUERIES = 4000  # rows whose neighbours are looked for
MOST_PRODUCTS = 2.5e11  # multiplications for them; more rows are sampled to stay below


@dataclasses.dataclass
class Findings:
    """What was found. problems: the trainer would refuse it, or it would mislead; notes: worth knowing; lines: figures."""

    problems: list = dataclasses.field(default_factory=list)
    notes: list = dataclasses.field(default_factory=list)
    lines: list = dataclasses.field(default_factory=list)
    verdicts: list = dataclasses.field(default_factory=list)

    def verdict(self):
        """fail with any problem, unknown if nothing could be said of some features, else pass."""
        return "fail" if self.problems else "unknown" if "unknown" in self.verdicts else "pass"


# ---------------------------------------------------------------- interactions


def read_tables(folder, data_format, found):
    """{split: table of columns user, item, rating, line, file} of whatever lines can be read; the rest goes to found.problems."""
    if data_format == "txt" or (data_format == "auto" and (folder / "train.txt").exists()):
        return {split: tolerant(folder / f"{split}.txt", read_txt, bad_txt_lines, found) for split in SPLITS}
    tables = tolerant(inter_path(folder), read_inter, bad_inter_lines, found)
    return tables if isinstance(tables, dict) else {split: tables for split in SPLITS}


def tolerant(path, read, bad_lines, found):
    """read(path), if need be without the lines that it cannot take; an empty table if that is not enough."""
    try:
        return read(path)
    except UserError as error:
        found.problems.append(str(error))
    empty = pd.DataFrame(
        {
            "user": np.zeros(0, np.int64),
            "item": np.zeros(0, np.int64),
            "rating": np.nan,
            "line": 0,
            "file": "",
        }
    )
    try:
        lines = path.read_bytes().split(b"\n")
        bad = bad_lines(lines)
        found.problems += [f"{path}: {len(bad)} lines cannot be read: {some(bad)}"] if len(bad) > 1 else []
        for number in bad:
            lines[number - 1] = b""  # the others keep their numbers
        with tempfile.TemporaryDirectory() as work:
            rest = Path(work) / path.name
            rest.write_bytes(b"\n".join(lines))
            tables = read(rest)
    except (UserError, OSError):
        return empty
    for table in tables.values() if isinstance(tables, dict) else [tables]:
        table["file"] = str(path)
    return tables


def some(values, most=5):
    """The first of many values as text."""
    return ", ".join(map(str, values[:most])) + (", ..." if len(values) > most else "")


def is_id(word):
    """Whether bytes are an id of at most ten digits."""
    return word.isdigit() and len(word) <= 10


def bad_txt_lines(lines):
    """Numbers from 1 of the lines that are not 'user item item ...'."""
    return [number for number, line in enumerate(lines, 1) if not all(map(is_id, line.split()))]


def bad_inter_lines(lines):
    """Numbers from 1 of the lines that do not fit the header of a .inter table."""
    names = lines[0].rstrip(b"\r").split(b"\t")

    def good(line):
        row = dict(zip(names, line.rstrip(b"\r").split(b"\t")))
        return (
            line.count(b"\t") < len(names)
            and is_id(row.get(b"userID", b""))
            and is_id(row.get(b"itemID", b""))
            and row.get(b"x_label") in (b"0", b"1", b"2")
            and is_rating(row.get(b"rating", b"1"))
        )

    return [number for number, line in enumerate(lines[1:], 2) if line.strip() and not good(line)]


def is_rating(word):
    """Whether bytes are a positive number."""
    try:
        return 0 < float(word) < math.inf
    except ValueError:
        return False


def check_splits(tables, source, least, found):
    """Examine {split: table} and say what is wrong. Returns the distinct pairs as Interactions, None if a split has none.

    least: (users, items) known from the features.
    """
    for split, table in tables.items():
        if not len(table):
            found.problems.append(f"the {split} split is empty; every split needs at least one interaction")
        if repeated := table.duplicated(["user", "item"]).sum():
            found.notes.append(f"{split}: {repeated} repeated lines; the trainer merges them")
    whole = pd.concat([table.assign(split=split) for split, table in tables.items()], ignore_index=True)
    first = whole.drop_duplicates(["user", "item"])
    say_overlaps(
        whole.drop_duplicates(["user", "item", "split"]).merge(
            first, on=["user", "item"], suffixes=("", "_first")
        ),
        found,
    )
    clean = {split: first[first["split"] == split].drop(columns="split") for split in SPLITS}
    if not all(map(len, clean.values())):
        return None
    try:
        return join_splits(clean, source, least[1], least[0])
    except UserError as error:
        found.problems.append(str(error))
        return None


def say_overlaps(pairs, found):
    """A problem for every two splits that share pairs. pairs: each pair of a split beside its first split."""
    shared = pairs[pairs["split"] != pairs["split_first"]]
    for (split, other), rows in shared.groupby(["split", "split_first"]):
        row = rows.iloc[0]
        found.problems.append(
            f"{len(rows)} pairs of {split} are also in {other}, the first in {row.file}, line {row.line} "
            f"(user {row.user}, item {row['item']}); keep every pair in one split only"
        )


def describe(data, found):
    """Counts of Interactions, cold users and items."""
    total = sum(len(getattr(data, split)) for split in SPLITS)
    found.lines.append(f"{data.n_users:,} users, {data.n_items:,} items, {total:,} distinct interactions")
    found.lines.append(
        f"{'split':<8}{'interactions':>14}{'users':>12}{'items':>12}{'least a user':>14}{'median':>8}{'most':>8}"
        f"{'cold users':>12}{'cold items':>12}"
    )
    known = [np.unique(column) for column in data.train.T]
    for split in SPLITS:
        pairs = getattr(data, split)
        here = [np.unique(column, return_counts=True) for column in pairs.T]
        cold = [int((~np.isin(ids, seen)).sum()) for (ids, _), seen in zip(here, known)]
        per_user = here[0][1]
        found.lines.append(
            f"{split:<8}{len(pairs):>14,}{len(here[0][0]):>12,}{len(here[1][0]):>12,}{per_user.min():>14}"
            f"{np.median(per_user):>8g}{per_user.max():>8}{cold[0]:>12,}{cold[1]:>12,}"
        )
        for kind, count in zip(("users", "items"), cold):
            if count:
                found.notes.append(f"{split}: {count:,} cold {kind}, without a train interaction")
    for at, kind, total in ((0, "users", data.n_users), (1, "items", data.n_items)):
        idle = total - len(np.unique(np.concatenate([getattr(data, split)[:, at] for split in SPLITS])))
        if idle:
            found.notes.append(f"{idle:,} of {total:,} {kind} have no interaction at all")
    without = data.n_users - len(np.unique(data.test[:, 0]))
    if without:
        found.notes.append(
            f"{without:,} of {data.n_users:,} users have no test item; they are left out of the metrics"
        )


def check_maps(folder, data, found):
    """item_ids.tsv, user_ids.tsv and item_text.jsonl, where they are, need a line for every id."""
    for name, rows in (
        ("user_ids.tsv", data.n_users),
        ("item_ids.tsv", data.n_items),
        ("item_text.jsonl", data.n_items),
    ):
        path = folder / name
        if path.exists():
            lines = path.read_bytes().removesuffix(b"\n").split(b"\n")
            if len(lines) != rows:
                found.problems.append(
                    f"{path}: has {len(lines)} lines for {rows} ids; line r + 1 must be about id r"
                )
            elif name.endswith(".tsv") and [line.split(b"\t")[0] for line in lines] != [
                b"%d" % row for row in range(rows)
            ]:
                found.problems.append(
                    f"{path}: does not list the ids 0 to {rows - 1} in order in its first column"
                )


# ---------------------------------------------------------------- features


def blocks_of(array, cells=2**23):
    """Yield (start, float64 block) of a memory-mapped matrix."""
    step = max(1, cells // array.shape[1])
    for start in tqdm(range(0, len(array), step), desc="features", unit="block", leave=False, delay=2):
        yield start, np.asarray(array[start : start + step], dtype=np.float64)


def row_facts(array):
    """Norm [n] float64 (NaN for a row that is not finite in float32) and size [n] of the group of equal rows that each row is in."""
    norm, digest = np.empty(len(array)), np.empty(len(array), "S16")
    for start, block in blocks_of(array):
        with np.errstate(over="ignore"):
            finite = np.isfinite(block.astype(np.float32)).all(axis=1)
        norm[start : start + len(block)] = np.where(
            finite, np.linalg.norm(np.where(finite[:, None], block, 0), axis=1), np.nan
        )
        digest[start : start + len(block)] = [
            hashlib.blake2b(row.tobytes(), digest_size=16).hexdigest()[:16] for row in block
        ]
    _, group, size = np.unique(digest, return_inverse=True, return_counts=True)
    return norm, size[group]


def check_features(name, path, array, found):
    """Statistics of one feature file. Returns [n] bool: the rows that tell something of their id."""
    norm, group = row_facts(array)
    broken, zero = np.isnan(norm), norm == 0
    good = norm[~broken]
    spread = (
        f"norm {good.min():.4g} to {good.max():.4g}, mean {good.mean():.4g}"
        if len(good)
        else "no row to measure"
    )
    repeated = int((group > 1).sum())
    found.lines.append(
        f"{name}: {path}: {array.dtype} {array.shape[0]:,} x {array.shape[1]:,}, {spread}; rows: {zero.sum():,} zero, "
        f"{broken.sum():,} with NaN or Inf, {repeated:,} not unique, at most {group.max()} the same"
    )
    if broken.any():
        found.problems.append(
            f"{path}: {broken.sum():,} rows hold NaN, Inf or a number too large for float32, the first is row "
            f"{broken.argmax()}; replace them"
        )
    if zero.any():
        found.notes.append(f"{path}: {zero.sum():,} rows are zero; they have no neighbours")
    if group.max() > NEIGHBOURS:
        found.notes.append(
            f"{path}: {group.max():,} rows are the same: missing features that were filled in, or a text that items share"
        )
    return ~broken & ~zero & (group <= NEIGHBOURS)


# ---------------------------------------------------------------- do features fit the ids?


def unit_rows(array, rows):
    """These rows of a matrix scaled to length 1: torch float32 [len(rows), dim]."""
    out = torch.empty(len(rows), array.shape[1])
    for start in range(0, len(rows), 4096):
        part = np.asarray(array[rows[start : start + 4096]], dtype=np.float64)
        out[start : start + 4096] = torch.from_numpy(part / np.linalg.norm(part, axis=1, keepdims=True))
    return out


def neighbour_matrix(array, rows, queries, n):
    """Sparse [len(queries), n]: 1 at the nearest other `rows` by cosine. queries: ascending positions in rows."""
    x = unit_rows(array, rows)
    k, chosen = min(NEIGHBOURS, len(rows) - 1), []
    for part in tqdm(
        torch.from_numpy(queries).split(256), desc="neighbours", unit="block", leave=False, delay=2
    ):
        similarity = x[part] @ x.T
        similarity[torch.arange(len(part)), part] = -torch.inf
        chosen.append(rows[similarity.topk(k, dim=1).indices.numpy()])
    columns = np.concatenate(chosen)
    return sp.csr_matrix(
        (np.ones(columns.size, np.float32), (np.repeat(np.arange(len(columns)), k), columns.ravel())),
        (len(columns), n),
    )


def together(around, own):
    """[q] sums over a query's neighbours j of cos(history of the query, history of j).

    around: sparse [q, others], the summed histories of its neighbours; own: its history; histories have length 1.
    """
    return np.asarray(around.multiply(own).sum(axis=1)).ravel()


@dataclasses.dataclass(frozen=True)
class Fit:
    """Evidence over some rows."""

    first: int
    last: int
    lift: float
    error: float  # standard deviation of the lift under the null
    p: float  # permutation p-value, one-sided
    shift: int  # move of the rows under which they fit significantly better, 0 for none

    @property
    def z(self):
        return (self.lift - 1) / self.error


def evidence(ids, observed, null, moved):
    """Fit of the queries `ids`. observed: [q], null: [permutations, q], moved: {shift: [q]} sums of `together`."""
    total, chance = observed.sum(), null.sum(axis=1)
    mean, error = chance.mean(), np.inf
    if mean and chance.std():  # else everybody or nobody met: that says nothing
        error = chance.std() / mean
    gains = {shift: sums - observed for shift, sums in moved.items()}
    scores = {
        shift: gain.mean() / (gain.std() / math.sqrt(len(gain)) or np.inf) for shift, gain in gains.items()
    }
    best = max(scores, key=scores.get)
    return Fit(
        int(ids[0]),
        int(ids[-1]),
        total / mean if mean else 1.0,
        error,
        (1 + (chance >= total).sum()) / (1 + len(null)),
        best if scores[best] > Z + 1 else 0,
    )


def measure_fit(array, usable, history, seed):
    """Fits of all rows and of BLOCKS ranges of rows, or None if there are too few of them.

    usable: [n] bool rows that may be used; history: sparse [n, others] 0/1, who met whom.
    """
    rng = np.random.default_rng(seed)
    rows = np.flatnonzero(usable & (np.diff(history.indptr) > 0))
    if len(rows) < LEAST:
        return None
    rows = np.sort(
        rng.permutation(rows)[: max(MOST_QUERIES, int(MOST_PRODUCTS / (MOST_QUERIES * array.shape[1])))]
    )
    queries = np.sort(rng.permutation(len(rows))[:MOST_QUERIES])
    near, ids, n = neighbour_matrix(array, rows, queries, len(array)), rows[queries], len(array)
    history = sp.diags_array(1 / np.sqrt(np.maximum(np.diff(history.indptr), 1)).astype(np.float32)) @ history
    own, null, null_own = history[ids], [], []
    for _ in tqdm(range(PERMUTATIONS), desc="permutations", leave=False, delay=2):
        owner = np.arange(n)
        owner[rows] = rng.permutation(rows)
        dealt = history[owner]
        around = near @ dealt
        null.append(together(around, dealt[ids]))
        itself = (owner[near.indices].reshape(len(ids), -1) == ids[:, None]).sum(axis=1)  # of cosine 1
        null_own.append(together(around, own) - itself)
    null, null_own, observed = np.array(null), np.array(null_own), together(near @ history, own)
    moved = {}
    for shift in SHIFTS:
        dealt = history[(np.arange(n) + shift) % n]
        moved[shift] = together(near @ dealt, dealt[ids])
    everything = np.arange(len(ids))
    return [
        evidence(ids[part], observed[part], chance[:, part], {s: sums[part] for s, sums in moved.items()})
        for part, chance in (
            (everything, null),
            *((part, null_own) for part in np.array_split(everything, BLOCKS)),
        )
    ]


def judge(fits):
    """('pass' | 'fail' | 'unknown', reason) of what measure_fit says."""
    if fits is None:
        return "unknown", f"fewer than {LEAST} rows with features of their own and interactions"
    whole, *parts = fits
    for fit in (whole, *parts):
        if fit.shift:
            return (
                "fail",
                f"row r seems to hold the features of id r {fit.shift:+d} in rows {fit.first} to {fit.last}",
            )
    if whole.z >= Z:
        like_chance = 1 + (max(fit.lift for fit in parts) - 1) / 3
        bad = [fit for fit in parts if fit.z < Z and fit.lift + Z * fit.error < like_chance]
        if bad:
            ranges = " and ".join(f"rows {fit.first} to {fit.last} (lift {fit.lift:.2f})" for fit in bad)
            return "fail", f"the others fit, but {ranges} are like chance"
        return "pass", "neighbours by features belong together"
    if whole.lift + Z * whole.error < LIFT:
        return "fail", (
            "neighbours by features have no more in common than chance: rows in another order than the ids, or features "
            "that say nothing"
        )
    return "unknown", "too little data to tell"


def check_fit(name, path, array, usable, data, seed, found):
    """Whether the rows of a feature file belong to the ids; the verdict goes to found."""
    pairs = np.concatenate([getattr(data, split) for split in SPLITS])
    n_rows = data.n_users if name == "user_text" else data.n_items
    if len(array) != n_rows:
        return
    history = sp.csr_matrix((np.ones(len(pairs), np.float32), pairs.T), (data.n_users, data.n_items))
    fits = measure_fit(array, usable, history if name == "user_text" else history.T.tocsr(), seed)
    verdict, reason = judge(fits)
    figures = (
        f"lift {fits[0].lift:.2f} +- {fits[0].error:.2f}, z {fits[0].z:.1f}, p {fits[0].p:.2g}; lift by rows: "
        + " ".join(f"{fit.lift:.2f}" for fit in fits[1:])
        if fits
        else "not measured"
    )
    found.lines.append(f"{name} and ids: {figures}: {verdict} ({reason})")
    found.verdicts.append(verdict)
    if verdict == "fail":
        found.problems.append(f"{path}: does not fit the ids: {reason}")
    if verdict == "unknown":
        found.notes.append(f"{path}: whether it fits the ids is unknown: {reason}")


# ---------------------------------------------------------------- all of it


def open_all(args, folder, found):
    """{name: (path, memory-mapped matrix)} of the features that are named or, if none is, lie in the folder."""
    named = {name: getattr(args, f"{name}_feat") for name in FEATURES}
    if not any(named.values()):
        named = {
            name: folder / f"{name}_feat.npy" for name in FEATURES if (folder / f"{name}_feat.npy").exists()
        }
    arrays = {}
    for name, path in named.items():
        try:
            arrays.update({name: (path, open_features(path))} if path else {})
        except UserError as error:
            found.problems.append(str(error))
    if not named:
        found.notes.append(f"{folder}: holds no features; only --model mf and lgn can be trained")
    return arrays


def check(folder, args):
    """Findings of a dataset folder."""
    found = Findings()
    arrays = open_all(args, folder, found)
    rows = {
        kind: max(
            (len(array) for name, (_, array) in arrays.items() if (name == "user_text") == (kind == "users")),
            default=0,
        )
        for kind in ("users", "items")
    }
    tables = read_tables(folder, args.data_format, found)
    data = check_splits(tables, folder, (rows["users"], rows["items"]), found)
    if data:
        describe(data, found)
        check_maps(folder, data, found)
    for name, (path, array) in arrays.items():
        usable = check_features(name, path, array, found)
        if not data:
            continue
        kind = "users" if name == "user_text" else "items"
        expected = data.n_users if kind == "users" else data.n_items
        if len(array) != expected:
            found.problems.append(
                f"{path}: has {len(array)} rows for {expected} {kind}; row r must hold the features of id r"
            )
        check_fit(name, path, array, usable, data, args.seed, found)
    return found


def make_parser():
    """The flags, with their defaults."""
    parser = Parser(
        prog="python -m data.check",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        description=__doc__,
        epilog="Exit code: 0 pass or unknown, 1 fail, 2 bad usage.",
    )
    parser.add_argument("name", metavar="NAME", help="name of the dataset folder")
    parser.add_argument(
        "--data_root",
        default="data",
        metavar="DIR",
        help="folder that holds the dataset folders (default data)",
    )
    parser.add_argument(
        "--data_format",
        choices=("auto", "txt", "inter"),
        default="auto",
        help="as for main.py (default auto)",
    )
    for name in FEATURES:
        parser.add_argument(
            f"--{name}_feat",
            default="",
            metavar="FILE.npy",
            help=f"{name} features (if none is named, those in the folder: {name}_feat.npy)",
        )
    parser.add_argument(
        "--seed",
        type=int,
        default=2025,
        metavar="N",
        help="seed of the permutations and samples (default 2025)",
    )
    return parser


def command(args):
    """Check a folder, print everything. Returns the verdict."""
    folder, note = dataset_folder(argparse.Namespace(dataset=args.name, data_root=args.data_root))
    found = check(folder, args)
    found.notes[:0] = [note.removeprefix("note: ")] if note else []
    print(
        "\n".join(
            [
                f"{folder}:",
                *found.lines,
                *(f"note: {note}" for note in found.notes),
                *(f"problem: {problem}" for problem in found.problems),
            ]
        )
    )
    verdict = found.verdict()
    print(f"verdict: {verdict}" + (f", {len(found.problems)} problems" if found.problems else ""))
    return verdict


def main(argv=None):
    """Run a command line. Returns the exit code: 0 pass or unknown, 1 fail, and see utils.run_tool."""
    verdicts = []
    code = run_tool(lambda args: verdicts.append(command(args)), make_parser(), argv)
    return code or int(verdicts[0] == "fail")


if __name__ == "__main__":
    sys.exit(main())
