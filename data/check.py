"""Check a dataset folder before training on it: list all faults, test whether the features match the ids.

    python -m data.check baby_raw
    python -m data.check baby --data_root shared --text_feat shared/baby/text_feat_recon_d128.npy
    python -m data.check shop --require_features 1

The folder is read as the trainer reads it, except that one fault does not hide the next. Each section is
printed as soon as it is done. The last section looks for the most common silent error, features in another
order than the ids: the nearest neighbours of an item by features should share more users with it than other
items do.

  lift     shared users of feature neighbours, relative to the mean over random permutations of the rows
  z        distance of the lift from 1 in standard deviations of that null distribution
  pass     z >= 4
  fail     lift + 4 standard deviations < 1.5, so that useful features in the right order would show;
           or the features fit significantly better when all rows, or a fifth of them, are shifted by 1 to 3;
           or a fifth of the rows has z < 4 and less than a third of the best fifth's excess over a lift of 1
  unknown  anything else: too little data to decide
"""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import scipy.sparse as sp

from cli import Parser, run_tool
from data.feature_files import open_features
from data.findings import Findings
from data.folders import dataset_folder, find_inter_table
from data.formats import SPLITS, Interactions
from data.interaction_checks import check_id_maps, check_splits, describe, read_tables
from data.progress import progress_bar
from data.row_order import N_NEIGHBOURS, judge, measure_fit
from utils import UserError
from world import MODALITIES

FEATURES = (*MODALITIES, "user_text")

# {name: (path, memory-mapped matrix)} of the feature files.
Arrays = dict[str, tuple[Path, np.ndarray]]


# ---------------------------------------------------------------- feature files


def find_features(args: argparse.Namespace, folder: Path) -> dict[str, Path]:
    """{name: path} of the feature files given as flags or, if none is given, present in the folder."""
    given = {name: Path(path) for name in FEATURES if (path := getattr(args, f"{name}_feat"))}
    usual = {name: folder / f"{name}_feat.npy" for name in FEATURES}
    return given or {name: path for name, path in usual.items() if path.exists()}


def open_all(paths: dict[str, Path], findings: Findings) -> Arrays:
    """Memory-map the feature files; one that cannot be opened or has no rows becomes a problem."""
    arrays = {}
    for name, path in paths.items():
        try:
            array = open_features(path)
        except UserError as error:
            findings.problem(str(error))
            continue
        if len(array):
            arrays[name] = path, array
        else:
            findings.problem(f"{path}: has no rows; row r must hold the features of id r")
    return arrays


def check_presence(paths: dict[str, Path], folder: Path, required: bool, findings: Findings) -> None:
    """Warn if there is no item feature file; a problem if one is required."""
    if any(name in paths or (folder / f"{name}_feat.npy").exists() for name in MODALITIES):
        return
    text = "no feature file: only --model mf, lgn, itemknn and ease can be trained on this folder"
    if required:
        findings.problem(
            f"{text}, but --require_features 1 asks for one; make it with python -m data.features"
        )
    else:
        findings.warn(text)


def row_blocks(features: np.ndarray, max_cells: int = 2**23) -> Iterator[tuple[int, np.ndarray]]:
    """Yield (first row, float64 block) of a memory-mapped matrix."""
    step = max(1, max_cells // features.shape[1])
    starts = range(0, len(features), step)
    for start in progress_bar(starts, desc="features", unit="block", leave=False, delay=2):
        yield start, np.asarray(features[start : start + step], dtype=np.float64)


def row_statistics(features: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Norm of each row (NaN where the row is not finite in float32), and the number of rows equal to it."""
    norm, digest = np.empty(len(features)), np.empty(len(features), "S16")
    for start, block in row_blocks(features):
        with np.errstate(over="ignore"):
            finite = np.all(np.isfinite(block.astype(np.float32)), axis=1)
        norms = np.linalg.norm(np.where(finite[:, None], block, 0), axis=1)
        norm[start : start + len(block)] = np.where(finite, norms, np.nan)
        digest[start : start + len(block)] = [
            hashlib.blake2b(row.tobytes(), digest_size=8).hexdigest() for row in block
        ]
    _, group, size = np.unique(digest, return_inverse=True, return_counts=True)
    return norm, size[group]


def check_values(name: str, path: Path, features: np.ndarray, findings: Findings) -> np.ndarray:
    """Report norms and missing, zero and repeated rows. Returns [n] bool: rows with features of their own."""
    norm, n_equal = row_statistics(features)
    invalid: np.ndarray = np.isnan(norm)
    zero = norm == 0
    valid = norm[~invalid]
    norms = "no finite row"
    if len(valid):
        norms = f"norm {valid.min():.4g} to {valid.max():.4g}, mean {valid.mean():.4g}"
    findings.figure(
        f"{name}: {path}: {features.dtype} {features.shape[0]:,} x {features.shape[1]:,}, {norms}; "
        f"rows: {zero.sum():,} zero, {invalid.sum():,} with NaN or Inf, {(n_equal > 1).sum():,} repeated "
        f"(largest group of equal rows: {n_equal.max():,})"
    )
    if invalid.any():
        findings.problem(
            f"{path}: {invalid.sum():,} rows hold NaN, Inf or a number too large for float32, the first is "
            f"row {invalid.argmax()}; replace them"
        )
    if zero.any():
        findings.note(f"{path}: {zero.sum():,} rows are zero; they have no neighbours")
    if n_equal.max() > N_NEIGHBOURS:
        findings.note(
            f"{path}: {n_equal.max():,} rows are equal: either missing features filled with one value, or "
            "items that share a text"
        )
    return ~invalid & ~zero & (n_equal <= N_NEIGHBOURS)


def check_row_order(
    name: str,
    path: Path,
    features: np.ndarray,
    usable: np.ndarray,
    data: Interactions,
    seed: int,
    findings: Findings,
) -> None:
    """Report whether the rows of a feature file are in the order of the ids."""
    pairs = np.concatenate([getattr(data, split) for split in SPLITS])
    shape = data.n_users, data.n_items
    history = sp.csr_matrix((np.ones(len(pairs), np.float32), (pairs[:, 0], pairs[:, 1])), shape)
    fits = measure_fit(features, usable, history if name == "user_text" else history.T.tocsr(), seed)
    verdict, reason = judge(fits)
    figures = "not measured"
    if fits:
        whole, *ranges = fits
        lifts = " ".join(f"{fit.lift:.2f}" for fit in ranges)
        figures = (
            f"lift {whole.lift:.2f} +- {whole.error:.2f}, z {whole.z:.1f}, p {whole.p:.2g}; "
            f"lift by range of rows: {lifts}"
        )
    findings.figure(f"{name} and ids: {figures}: {verdict} ({reason})")
    if verdict == "fail":
        findings.problem(f"{path}: does not match the ids: {reason}")
    if verdict == "unknown":
        findings.undecided = True
        findings.note(f"{path}: whether it matches the ids is unknown: {reason}")


# ---------------------------------------------------------------- the whole folder


def check(folder: Path, args: argparse.Namespace, notes: Sequence[str] = ()) -> Findings:
    """Print everything found in a dataset folder. Raises UserError if it holds no interactions."""
    inter_table = find_inter_table(folder, args.data_format)
    findings = Findings()
    findings.figure(f"{folder}:")
    for note in notes:
        findings.note(note)
    paths = find_features(args, folder)
    arrays = open_all(paths, findings)
    user_rows = [len(array) for name, (_, array) in arrays.items() if name == "user_text"]
    item_rows = [len(array) for name, (_, array) in arrays.items() if name != "user_text"]
    tables = read_tables(folder, inter_table, findings)
    data = check_splits(tables, folder, max(user_rows, default=0), max(item_rows, default=0), findings)
    if data:
        describe(data, findings)
        check_id_maps(folder, data, findings)
    for name, (path, features) in arrays.items():
        usable = check_values(name, path, features, findings)
        if not data:
            continue
        kind, n_ids = ("users", data.n_users) if name == "user_text" else ("items", data.n_items)
        if len(features) == n_ids:
            check_row_order(name, path, features, usable, data, args.seed, findings)
        else:
            findings.problem(
                f"{path}: has {len(features)} rows for {n_ids} {kind}; row r must hold the features of id r"
            )
    check_presence(paths, folder, bool(args.require_features), findings)
    return findings


def make_parser() -> Parser:
    """The command line."""
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
        help="format of the interactions, as for main.py (default auto)",
    )
    for name in FEATURES:
        parser.add_argument(
            f"--{name}_feat",
            default="",
            metavar="FILE.npy",
            help=f"{name} features (default: {name}_feat.npy of the folder, if none of these flags is given)",
        )
    parser.add_argument(
        "--require_features",
        type=int,
        choices=(0, 1),
        default=0,
        help="1: a folder without item features fails (default 0: a warning)",
    )
    parser.add_argument(
        "--seed",
        type=int,
        default=2025,
        metavar="N",
        help="seed of the permutations and samples (default 2025)",
    )
    return parser


def command(args: argparse.Namespace) -> str:
    """Check a folder and print everything found. Returns the verdict."""
    if args.seed < 0:
        raise UserError(f"--seed {args.seed}: must be at least 0")
    folder, note = dataset_folder(argparse.Namespace(dataset=args.name, data_root=args.data_root))
    findings = check(folder, args, [note.removeprefix("note: ")] if note else [])
    print(findings.summary(), flush=True)
    return findings.verdict


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code: 0 pass or unknown, 1 fail, and those of cli.run_tool."""
    verdicts: list[str] = []
    code = run_tool(lambda args: verdicts.append(command(args)), make_parser(), argv)
    return code or int(verdicts[0] == "fail")


if __name__ == "__main__":
    sys.exit(main())
