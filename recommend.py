"""Top-K lists, similar items and vectors of a trained run, on original ids.

    python recommend.py --checkpoint runs/baby_raw_lgn_20260131-120000_2025 --output lists.tsv
    python recommend.py --checkpoint RUN --users A1HK2FQW6KXQB2,A19K65VY14D13R --topk 10 --exclude train,valid
    python recommend.py --checkpoint RUN --explain --output lists.tsv       # and why: docs/recommend.md
    python recommend.py --checkpoint RUN --new_users histories.tsv          # users that were not in training
    python recommend.py --checkpoint RUN --similar_items B000YDDF6O
    python recommend.py --checkpoint RUN --export_embeddings vectors.safetensors --export_faiss items.faiss
    python recommend.py --checkpoint RUN --cold_items data/new_items        # items that were not in training

The lists are those that the evaluation ranks: with the run's own --exclude (the default) the metrics of
result.json can be computed from them. Original ids are read from user_ids.tsv and item_ids.tsv of the dataset
folder, titles from item_text.jsonl; without these files ids are the numbers of the interaction files. How a
model builds the vectors of new users and cold items is documented with the model:
Recommender.new_user_vectors and cold_item_vectors.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
import typing
from collections.abc import Sequence
from pathlib import Path

from cli import Parser, one_process, run_tool
from recommending.flags import (
    FORMATS,
    FREE,
    HUB_FILES,
    SIMILAR_BY,
    TOPK,
    add_run_flags,
    checkpoint_path,
    parse_splits,
)
from training.records import read_result
from utils import UserError, check_output
from world import Config

if typing.TYPE_CHECKING:
    from recommending.vectors import Vectors


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python recommend.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        description=__doc__,
    )
    parser.add_argument(
        "--checkpoint", required=True, metavar="RUN", help="run folder (its best.pt) or checkpoint"
    )
    parser.add_argument(
        "--model",
        default="",
        metavar="FILE.py:CLASS",
        help="for a run of a class of your own: the file to run",
    )
    group = parser.add_argument_group("what to make (default: lists for all users)")
    what = group.add_mutually_exclusive_group()
    for flag, metavar, text in (
        (
            "--users",
            "FILE|ID,...",
            "lists for these users: ids separated by commas, or a file with one a line",
        ),
        ("--new_users", "FILE", "lists for users that were not in training: lines 'user item item ...'"),
        ("--similar_items", "FILE|ID,...", "the items most similar to these, see --similar_by"),
    ):
        what.add_argument(flag, default="", metavar=metavar, help=text)
    add_export_flags(parser)
    add_list_flags(parser)
    add_run_flags(parser)
    return parser


def add_list_flags(parser: Parser) -> None:
    """Flags for how lists are made and written."""
    how = parser.add_argument_group("how")
    how.add_argument(
        "--cold_items",
        default="",
        metavar="DIR",
        help="further candidates that were not in training: DIR contains their text_feat.npy, ... (as the "
        "run has), item_ids.tsv and optionally item_text.jsonl; only for models that learn from features of "
        "items",
    )
    how.add_argument(
        "--explain",
        action="store_true",
        default=False,
        help="and why: the parts of each score (of ID vector, text, images, evidence), which sum to it, and "
        "the items of the user that add most to it; for users of the run",
    )
    how.add_argument(
        "--similar_by",
        default=SIMILAR_BY[0],
        choices=SIMILAR_BY,
        help="similarity of items: the cosine of their vectors, or the weights of the neighbourhood term, "
        "which are larger the more often two items are bought together (default vectors; weights for a "
        "model that has no vectors)",
    )
    how.add_argument("--topk", type=int, default=TOPK, metavar="K", help=f"length of a list (default {TOPK})")
    how.add_argument(
        "--exclude",
        default="",
        metavar="SPLIT,...",
        help="leave out a user's items of these splits: train, valid, test, or none (default: those masked "
        "in the run's test, usually train)",
    )
    how.add_argument(
        "--format",
        default=FORMATS[0],
        choices=FORMATS,
        help="tsv and parquet: a row for each item; jsonl: a line for each user (default tsv)",
    )
    how.add_argument("--output", default="", metavar="FILE", help="where to write (default: stdout)")


def add_export_flags(parser: Parser) -> None:
    """Add the flags that write vectors in place of lists."""
    group = parser.add_argument_group("vectors for other programs, in place of lists (docs/recommend.md)")
    for flag, metavar, text in (
        (
            "--export_embeddings",
            "FILE",
            "FILE.npz or FILE.safetensors: user [U, d], item [I, d] in float32, ids, and the item-to-item "
            "weights of a run that has them",
        ),
        ("--export_faiss", "FILE", "an inner-product index of the items for faiss, with the ids of its rows"),
        (
            "--export_hub",
            "FOLDER",
            "a folder in the layout of the Hugging Face Hub: embeddings, ids, settings and a model card; "
            "nothing is uploaded",
        ),
    ):
        group.add_argument(flag, default="", metavar=metavar, help=text)


def check_flags(args: argparse.Namespace) -> None:
    """Raise UserError for flags that cannot be followed, before anything is loaded."""
    if args.topk < 1:
        raise UserError(f"--topk {args.topk}: must be at least 1")
    if args.explain and (args.new_users or args.similar_items or exports(args) or args.cold_items):
        raise UserError(
            "--explain is for lists of users and items of the run: leave out --new_users, --similar_items, "
            "--cold_items and the exports"
        )
    check_combination(args)
    if args.format == "parquet" and not exports(args):
        if not args.output:
            raise UserError("--format parquet needs --output FILE")
        if importlib.util.find_spec("pyarrow") is None:
            raise UserError(
                "--format parquet needs pyarrow: pip install -c constraints.txt -e '.[features]', "
                "or take tsv or jsonl"
            )
    if args.export_embeddings and not args.export_embeddings.endswith((".npz", ".safetensors")):
        raise UserError(f"--export_embeddings {args.export_embeddings}: name it .npz or .safetensors")
    if args.export_hub:
        check_hub_folder(Path(args.export_hub))
    for target in filter(None, (args.export_embeddings, args.export_faiss, args.output)):
        check_output(target)
    check_packages(args)
    check_request(args)


def check_combination(args: argparse.Namespace) -> None:
    """Raise UserError for a flag that would have no effect beside the others."""
    lists = [f"--{name}" for name in ("output", "users", "new_users", "similar_items") if vars(args)[name]]
    lists += ["--format"] * (args.format != FORMATS[0]) + ["--topk"] * (args.topk != TOPK)
    if exports(args) and lists:
        raise UserError(
            "--export_embeddings, _faiss and _hub write all vectors to files of their own; "
            f"{' and '.join(lists)} are for lists: leave them out"
        )
    if args.exclude and (args.new_users or args.similar_items or exports(args)):
        raise UserError("--exclude is for lists of users of the run: leave it out")
    if args.similar_by != SIMILAR_BY[0] and not args.similar_items:
        raise UserError(f"--similar_by {args.similar_by} needs --similar_items")


def check_hub_folder(folder: Path) -> None:
    """Raise UserError if files in the folder would be lost that no earlier export has written."""
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    foreign = sorted(name for name in names - {*HUB_FILES} if not name.startswith("."))
    if foreign or (names & {*HUB_FILES} and HUB_FILES[0] not in names):
        raise UserError(
            f"--export_hub {folder}: has other files than those of an export "
            f"({', '.join(foreign or sorted(names))[:60]}); name a new folder"
        )


def exports(args: argparse.Namespace) -> list[str]:
    """The files and folders that vectors are to be written to."""
    return [*filter(None, (args.export_embeddings, args.export_faiss, args.export_hub))]


def check_packages(args: argparse.Namespace) -> None:
    """Raise UserError if an export needs a package that is not installed."""
    safetensors = args.export_hub or args.export_embeddings.endswith(".safetensors")
    for wanted, package in ((safetensors, "safetensors"), (args.export_faiss, "faiss")):
        if wanted and importlib.util.find_spec(package) is None:
            raise UserError(f"this export needs {package}: pip install -c constraints.txt -e '.[export]'")


def check_request(args: argparse.Namespace) -> None:
    """Raise UserError for splits or paths that do not exist."""
    parse_splits(args.exclude, Config())
    for path, what in (
        (checkpoint_path(args.checkpoint), "a run folder or a checkpoint"),
        (args.new_users, "a file of histories"),
        (args.cold_items, "a folder of features"),
    ):
        if path and not Path(path).exists():
            raise UserError(f"{path}: cannot be read (no such file or folder); name {what}")


def command(args: argparse.Namespace) -> None:
    """Make what parsed arguments ask for."""
    one_process("recommend.py")
    check_flags(args)
    # Importing torch takes seconds: what is wrong with a command line has been said by now.
    import torch

    with torch.inference_mode():
        make(args)


def make(args: argparse.Namespace) -> None:
    """Load the run, and write lists or vectors."""
    from recommending.lists import make_lists
    from recommending.trained import load_run, tell
    from recommending.vectors import make_vectors
    from recommending.writers import WRITERS, open_output

    started = time.perf_counter()
    given = {name: value for name, value in vars(args).items() if name in FREE}
    model, dataset, config = load_run(checkpoint_path(args.checkpoint), given, args.model)
    vectors = make_vectors(model, dataset, config, args.cold_items)
    if exports(args):
        export(args, vectors, config)
        return
    lists = make_lists(args, vectors, model, dataset, config)
    with open_output(args.output, args.format == "parquet") as file:
        WRITERS[args.format](lists, file)
    tell(
        f"{args.output or 'stdout'}: {len(lists.names)} lists of up to {args.topk} from {len(vectors.item)} "
        f"items, {time.perf_counter() - started:.1f} s"
    )


def export(args: argparse.Namespace, vectors: Vectors, config: Config) -> None:
    """Write vectors to what parsed arguments name."""
    from recommending.export import export_arrays, export_hub, export_index
    from recommending.trained import tell

    files: list[str] = []
    if args.export_embeddings:
        files += export_arrays(vectors, args.export_embeddings)
    if args.export_faiss:
        files += export_index(vectors, args.export_faiss)
        if vectors.weights is not None:
            tell("note: this run's scores have a term of item-to-item weights, which the index is without")
    if args.export_hub:
        files += export_hub(vectors, config, result_of(args.checkpoint), args.export_hub)
    user, item = tuple(vectors.user.shape), tuple(vectors.item.shape)
    tell(f"{', '.join(files)}: user {user}, item {item}, float32, and their ids")


def result_of(run: str) -> dict[str, typing.Any]:
    """The result.json that belongs to best.pt of a run; {} if there is none, and for another checkpoint."""
    checkpoint = checkpoint_path(run)
    path = checkpoint.with_name("result.json")
    return read_result(path) if checkpoint.name == "best.pt" and path.exists() else {}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code, see cli.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
