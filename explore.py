"""Look at what a run recommends and why, in one HTML page that needs no other file and no server.

    python explore.py --checkpoint RUN                               # RUN/explore.html
    python explore.py --checkpoint RUN --compare RUN2 --output both.html
    python explore.py --checkpoint RUN --pictures toy_shop/pictures  # with thumbnails

The page has the lists of all users with held-out items (of more than 20,000 an even sample), for each item
the parts of its score and the items of the user that speak for it, the neighbours of every item by modality,
by ID vector and by buyers, a map of all items, and with --compare whom each of two runs serves better.
How to read it: docs/explore.md.
"""

from __future__ import annotations

import argparse
import importlib.util
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from cli import Parser, one_process, run_tool
from recommending.flags import FREE, add_run_flags, checkpoint_path, parse_splits
from utils import UserError, check_output, write_text
from world import Config


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python explore.py",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        argument_default=argparse.SUPPRESS,
        description=__doc__,
    )
    for flag, required, text in (
        ("--checkpoint", True, "run folder (its best.pt) or checkpoint"),
        ("--compare", False, "a second run on the same data"),
    ):
        parser.add_argument(flag, required=required, default="", metavar="RUN", help=text)
    parser.add_argument(
        "--model",
        default="",
        metavar="FILE.py:CLASS",
        help="for runs of a class of your own: the file to run",
    )
    parser.add_argument(
        "--compare_model",
        default="",
        metavar="FILE.py:CLASS",
        help="for --compare with a run of another class of your own (default: --model)",
    )
    parser.add_argument("--topk", type=int, default=10, metavar="K", help="length of a list (default 10)")
    parser.add_argument(
        "--exclude",
        default="",
        metavar="SPLIT,...",
        help="leave out a user's items of these splits: train, valid, test, or none (default: those masked "
        "in the test of the first run, usually train)",
    )
    parser.add_argument(
        "--pictures", default="", metavar="DIR", help="pictures of items, named by item id, as thumbnails"
    )
    parser.add_argument(
        "--map",
        default="pca",
        choices=("pca", "umap"),
        help="places of items: two principal components, or UMAP if umap-learn is installed (default pca)",
    )
    parser.add_argument(
        "--output", default="", metavar="FILE.html", help="where to write (default: explore.html beside it)"
    )
    add_run_flags(parser)
    return parser


def check_flags(args: argparse.Namespace) -> Path:
    """The file to write. Raises UserError for flags that cannot be followed, before anything is loaded."""
    for run in filter(None, (args.checkpoint, args.compare)):
        if not checkpoint_path(run).exists():
            raise UserError(
                f"{run}: cannot be read (no such file or folder); name a run folder or a checkpoint"
            )
    if args.topk < 1:
        raise UserError(f"--topk {args.topk}: must be at least 1")
    if args.compare_model and not args.compare:
        raise UserError("--compare_model is for a run that --compare names: add --compare, or drop it")
    if args.pictures and not Path(args.pictures).is_dir():
        raise UserError(f"--pictures {args.pictures}: no such folder")
    if args.pictures and importlib.util.find_spec("PIL") is None:
        raise UserError(
            "--pictures needs the package pillow: install it with pip install -c constraints.txt -e "
            "'.[features]', or leave the flag out"
        )
    if args.map == "umap" and importlib.util.find_spec("umap") is None:
        raise UserError("--map umap needs the package umap-learn: install it, or take pca")
    parse_splits(args.exclude, Config())
    run = Path(args.checkpoint)
    path = Path(args.output) if args.output else (run if run.is_dir() else run.parent) / "explore.html"
    check_output(path)
    return path


def command(args: argparse.Namespace) -> None:
    """Write the page that parsed arguments ask for."""
    one_process("explore.py")
    path = check_flags(args)
    # Importing torch takes seconds: what is wrong with a command line has been said by now.
    import torch

    with torch.inference_mode():
        make(args, path)


def models_to_run(paths: Sequence[Path], model: str, compare_model: str) -> list[str]:
    """The class of each checkpoint: "" for a built-in model where --model is meant for the other one.

    Raises UserError if the checkpoints are of two classes of the user's own, and --compare_model is missing.
    """
    from models.registry import is_external
    from parse import checkpoint_settings

    stored = [str(checkpoint_settings(str(path)).get("model")) for path in paths]
    own = [bool(model) and is_external(name) for name in stored]
    if all(own) and len(set(stored)) > 1 and not compare_model:
        raise UserError(
            f"{paths[1]}: was trained with the class {stored[1]}; add --compare_model {stored[1]} to run "
            "that file"
        )
    given = [model, compare_model or model][: len(paths)]
    return [name if each or not any(own) else "" for name, each in zip(given, own, strict=True)]


def make(args: argparse.Namespace, path: Path) -> None:
    """Load the runs and write the page."""
    from exploring.page import make_page
    from exploring.payload import payload
    from exploring.runs import check_same_data, load, run_names
    from exploring.thumbnails import thumbnails
    from recommending.trained import load_run, tell

    started = time.perf_counter()
    given = {name: value for name, value in vars(args).items() if name in FREE}
    folders = [args.checkpoint, *([args.compare] if args.compare else [])]
    paths = [checkpoint_path(folder) for folder in folders]
    models = models_to_run(paths, args.model, args.compare_model)
    runs = [load(*load_run(each, given, model)) for each, model in zip(paths, models, strict=True)]
    n_items = len(runs[0].vectors.item)
    if args.topk > n_items:
        raise UserError(f"--topk {args.topk}: there are only {n_items} items; give a smaller K")
    if args.compare:
        check_same_data(*runs)
    exclude = parse_splits(args.exclude, runs[0].config)
    pictures = {}
    if args.pictures:  # before the lists, which take longer: there may be no picture of these items
        pictures["pictures"], note = thumbnails(args.pictures, runs[0].vectors.item_ids)
        tell(note)
    data = payload(runs, run_names(runs, folders), args.topk, exclude, args.map) | pictures
    write_text(path, make_page(f"{data['runs'][0]['name']} on {data['dataset']}", data))
    tell(
        f"{path}: {len(data['users']['ids'])} users, {n_items} items, {path.stat().st_size / 1e6:.1f} MB, "
        f"{time.perf_counter() - started:.1f} s"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code, see cli.run_tool."""
    return run_tool(command, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
