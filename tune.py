"""Hyperparameter search: many short trainings (trials), compared on VALIDATION; TEST is never scored.

    python tune.py --study lgn_demo --trials 40 --dataset demo --model lgn --epochs 80 --patience 4
    python tune.py --study lgn_demo --trials 40 ...   # the same command again: helps the first, or continues
    python tune.py --study NAME --trials 30 --space lr=1e-3..3e-2:log layer=1..4 item_knn_k=5,10 --dataset ...
    python tune.py --study lgn_demo --best            # the best trials, and the command of the best

Flags of main.py hold for every trial; docs/tune.md explains the rest. A study is one SQLite file, and any
number of processes may work on it at the same time: each runs trials until the study has --trials finished
ones. A trial that was stopped or killed is queued again and resumed from its last checkpoint.
"""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import re
import sys
import typing
from collections.abc import Sequence
from pathlib import Path

from cli import RESUME_HINT, Parser, one_process, run_command
from main import check_files
from models.registry import checked
from parse import make_parser as main_parser
from parse import parse_args
from utils import TrainingError, UserError
from world import Config, usable_precision

if typing.TYPE_CHECKING:
    from training.space import Space

# ---------------------------------------------------------------- command line


def make_parser() -> Parser:
    """The flags of the search; all others are those of main.py."""
    parser = Parser(
        prog="python tune.py",
        allow_abbrev=False,
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python tune.py --study NAME (--trials N | --best) [flags] [flags of main.py]",
    )
    parser.add_argument("--study", required=True, metavar="NAME", help="name of the study")
    action = parser.add_mutually_exclusive_group(required=True)
    action.add_argument(
        "--trials",
        type=int,
        metavar="N",
        help="run trials until the study has N finished ones, over all processes",
    )
    action.add_argument(
        "--best",
        action="store_true",
        help="print the best trials and the command of the best, without training; a study of a class of "
        "your own needs --model FILE.py:CLASS too",
    )
    add_search_flags(parser)
    return parser


def add_search_flags(parser: Parser) -> None:
    """Add the flags that have a default."""
    parser.add_argument(
        "--storage", metavar="FILE", help="SQLite file of the study (default runs/tune/NAME.db)"
    )
    parser.add_argument(
        "--space",
        nargs="+",
        action="extend",
        default=[],
        metavar="SETTING=VALUES",
        help="what to search: SETTING=LOW..HIGH, SETTING=LOW..HIGH:log or SETTING=a,b,c (default: what the "
        "model recommends, without settings given as flags)",
    )
    parser.add_argument(
        "--pruner",
        choices=("median", "none"),
        default="median",
        help="median: end a trial whose best value is below the median of the others at the same epoch, "
        "after five complete trials and --warm_up evaluations (default); none: only --patience ends it early",
    )
    parser.add_argument(
        "--warm_up",
        type=int,
        default=3,
        metavar="N",
        help="evaluations before a trial may be pruned (default 3)",
    )


class Request(typing.NamedTuple):
    """A parsed command line."""

    args: argparse.Namespace  # the flags of the search
    base: Config  # the settings of every trial that are not searched
    given: set[str]  # names of the settings given as flags
    space: Space  # what --space asks for
    notes: list[str]  # lines for the user


def parse(argv: Sequence[str] | None) -> Request:
    """Parse a command line. Raises UserError for flags that are unknown or do not fit a search."""
    args, rest = make_parser().parse_known_args(argv)
    if importlib.util.find_spec("optuna") is None:
        raise UserError("tune.py needs optuna: pip install -c constraints.txt -e '.[tune]'")
    from training.space import parse_space

    check_search_flags(args, rest)
    config, notes = parse_args(rest)
    given = set(vars(main_parser(type(config)).parse_args(rest)))
    check_base(config)
    if "path" not in given:
        config = dataclasses.replace(config, path=f"runs/tune/{args.study}")
    if args.best:
        check_storage(storage_path(args))
    else:
        check_files(config)
    return Request(args, config, given, parse_space(args.space, type(config)), notes)


def check_base(config: Config) -> None:
    """Raise UserError for settings of main.py that no search has."""
    if config.select_on != "valid":
        raise UserError(
            "--select_on test: a search on the test split leaks; drop it, or add --select_on valid to "
            "--recipe released"
        )
    for name in ("resume", "checkpoint", "projector"):
        if getattr(config, name):
            raise UserError(
                f"--{name} is not a flag of a search: repeat the command of a study to continue it, and add "
                "other flags to the command of its best trial"
            )


def storage_path(args: argparse.Namespace) -> Path:
    """The SQLite file of the study."""
    return Path(args.storage or f"runs/tune/{args.study}.db")


def check_storage(path: Path) -> None:
    """Raise UserError if there is no file of the study."""
    if not path.exists():
        raise UserError(f"{path}: does not exist; name the file of the study with --storage")


def check_search_flags(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raise UserError for flags of the search that cannot be used. rest: the words of main.py's flags."""
    if not re.fullmatch(r"[\w-][\w.-]*", args.study, re.ASCII):
        raise UserError(
            f"--study {args.study[:60]}: names files, so use letters, digits, '_', '-' and '.' (not as the "
            "first character)"
        )
    if args.trials is not None and args.trials < 1:
        raise UserError(f"--trials {args.trials}: must be at least 1")
    if args.warm_up < 0:
        raise UserError(f"--warm_up {args.warm_up}: must be at least 0")
    model_flag = Parser(add_help=False, allow_abbrev=False, prog="python tune.py")
    model_flag.add_argument("--model")
    others = model_flag.parse_known_args(list(rest))[1]
    if args.best and (args.space or others):
        raise UserError(
            f"--best takes its settings from the study; drop {' '.join(others or ['--space'])[:80]}"
        )


def command(request: Request) -> int:
    """Run the search, or print its best trials. Returns the exit code."""
    # Importing torch takes seconds: what is wrong with a command line has been said by now.
    import optuna

    from training.study import load_study, storage_errors
    from trials import conclude

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if not request.args.best:
        return search(request)
    path = storage_path(request.args)
    with storage_errors(path, UserError):
        conclude(load_study(request.args.study, path), path.parent, request.base.model)
    return 0


def search(request: Request) -> int:
    """Run trials until the study has as many finished ones as wanted. Returns the exit code."""
    from session import set_up
    from training.space import check_space, default_space, with_most_neighbours
    from training.step import usable_graph
    from training.stop import Stop
    from training.study import Search, data_hashes, join_study, pruner, storage_errors, stored_space
    from trials import conclude, run_trials, shared_dataset

    args, path = request.args, storage_path(request.args)
    base = checked(request.base)
    space = request.space or default_space(base, request.given)
    check_space(space, base, request.given)
    device = set_up(base)
    base, more = usable_precision(base, device)
    base, off = usable_graph(base, device)
    notes = [*request.notes, *more, *off]
    print(*notes, sep="\n", end="\n" if notes else "")
    # Loaded before the study is created, so that unusable data leave nothing behind.
    dataset = shared_dataset(with_most_neighbours(space, base), device)
    study = join_study(args.study, path, base.as_dict(), space, data_hashes(dataset))
    study.pruner = pruner(args.pruner, args.warm_up * base.eval_every)
    # The space as stored: the order of the settings decides what the sampler draws.
    task = Search(study, path, base, stored_space(study), args.trials)
    with storage_errors(path, TrainingError), Stop(base.max_minutes) as stop:
        run_trials(task, device, stop)
        with task.exclusive():
            conclude(study, path.parent, base.model)
            return 0 if task.finished() >= task.target else stop.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code, as main.py does."""

    def work() -> int | None:
        one_process("tune.py")
        return command(parse(argv))

    return run_command(work, io_hint=RESUME_HINT)


if __name__ == "__main__":
    sys.exit(main())
