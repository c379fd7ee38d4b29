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
import contextlib
import dataclasses
import functools
import importlib.util
import re
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import torch
from tqdm import tqdm

from cli import RESUME_HINT, Parser, run_command
from data.formats import interactions_hash
from dataloader import Dataset, Needs
from models.registry import checked, find_model
from outgoing import printable, shell_command, shell_comment
from parse import make_parser as main_parser
from parse import parse_args, restored_config
from procedure import Metrics, Result, fit, format_metrics
from session import load, make_model, set_up
from training.folder import provenance
from training.parallel import one_process
from training.run import Run, start_run
from training.runlog import RunLog
from training.step import usable_graph
from training.stop import Stop
from utils import Diverged, TrainingError, UserError, write_text
from world import Config, recipe_settings, seed_everything, usable_precision

# optuna is an optional package: without it, --help works and everything else names the remedy.
HAS_OPTUNA = importlib.util.find_spec("optuna") is not None
if HAS_OPTUNA:
    import optuna
    from optuna.trial import TrialState

    from training.space import check_space, default_space, parse_space
    from training.study import (
        Claim,
        Search,
        claim_trial,
        complete_trials,
        join_study,
        load_study,
        requeue,
        storage_errors,
        stored_space,
        study_record,
        trial_record,
    )

# All settings that loading a dataset reads. Trials that agree in them share one dataset.
DATASET_SETTINGS = tuple(
    field.name
    for field in dataclasses.fields(Config)
    if field.metadata["group"] == "data" or field.name in ("model", "topks")
)
# Settings of the search process that the best trial does not need as a run of its own, with their defaults.
PROCESS_SETTINGS = {"path": "runs", "max_minutes": 0.0}
# With fewer complete trials, an estimate of the importance of settings would be noise.
MIN_TRIALS_FOR_IMPORTANCE = 10


# ---------------------------------------------------------------- one trial


@functools.lru_cache(maxsize=1)
def load_once(config: Config, needs: Needs, device: torch.device) -> Dataset:
    """The dataset of a config; the last one is kept in memory."""
    return load(config, needs, device)[0]


def shared_dataset(config: Config, device: torch.device) -> Dataset:
    """The dataset of a trial, loaded anew only if it differs from that of the trial before."""
    settings = {name: getattr(config, name) for name in DATASET_SETTINGS}
    return load_once(Config(**settings), find_model(config.model).data_needs(config), device)


def train_trial(search: Search, claim: Claim, device: torch.device, stop: Callable[[], bool]) -> Result:
    """Train a trial, or continue it from its checkpoint. Returns the content of its result.json."""
    trial, config, folder = claim
    with search.exclusive():
        # A trial that is resumed may repeat epochs that were reported before it was killed.
        reported = search.study.trials[trial.number].intermediate_values

    def watch(epoch: int, metrics: Metrics) -> bool:
        """Report an evaluation to the study. Returns whether the trial is to be pruned."""
        with search.exclusive():
            if epoch not in reported:
                trial.report(metrics[config.selection_metric], epoch)
            return trial.should_prune()

    dataset = shared_dataset(config, device)
    seed_everything(config.seed)
    run = start_run(make_model(config, dataset, device), dataset, config, folder, device)
    if config.resume:
        run.resume()
    return fit(run, stop, watch, end=finish_trial, echo=False)


def finish_trial(run: Run, log: RunLog) -> Result:
    """Log the end of a trial. Returns its result, which has validation metrics only."""
    config, progress, best = run.config, run.progress, run.progress.best
    assert best is not None  # training ends after an evaluation
    complete = progress.out_of_patience(config) or progress.epoch >= run.epochs
    status = "tuned" if complete else "pruned"
    log.finish(config, best["epoch"], valid_best=best["metrics"])
    metrics = format_metrics(best["metrics"], config.topks)
    log.say(f"{status} after epoch {progress.epoch}; best epoch {best['epoch']}: {metrics}")
    return {
        "status": status,
        "best_epoch": best["epoch"],
        "epochs": progress.epoch,
        "valid": best["metrics"],
        "seconds": progress.seconds,
        "seconds_to_best": best["seconds"],
        "device": str(run.device),
        "versions": provenance(),
    }


def run_trial(search: Search, claim: Claim, device: torch.device, stop: Callable[[], bool]) -> str:
    """Train a trial and record the outcome in the study. Returns a line about it.

    A trial that diverges counts as pruned. Any other exception marks it as failed and propagates.
    """
    trial = claim.trial
    try:
        result = train_trial(search, claim, device, stop)
    except Diverged as error:
        with search.exclusive():
            search.study.tell(trial, state=TrialState.PRUNED)
            return trial_line(trial, str(error).split(";")[0])
    except BaseException:
        with search.exclusive():
            search.study.tell(trial, state=TrialState.FAIL)
        raise
    with search.exclusive():
        return record_result(search, claim, result)


def record_result(search: Search, claim: Claim, result: Result) -> str:
    """Record the result of a trial that ended without an exception. Returns a line about it."""
    study, trial, metric = search.study, claim.trial, claim.config.selection_metric
    if result["status"] == "interrupted":
        requeue(study, trial.number)
        return trial_line(trial, f"stopped after epoch {result['epoch']} and queued again")
    value = result["valid"][metric]
    trial.set_user_attr("epoch", result["best_epoch"])
    if result["status"] == "pruned":
        study.tell(trial, state=TrialState.PRUNED)
    else:
        study.tell(trial, value)
    return trial_line(
        trial,
        f"{metric} {value:.4f} at epoch {result['best_epoch']}, {result['status']} after {result['epochs']}, "
        f"{result['seconds']:.0f} s",
    )


def trial_line(trial: optuna.Trial, outcome: str) -> str:
    """'trial   3  ndcg@10 0.0412 at epoch 45, ...  lr 0.0012  layer 3'"""
    return f"trial {trial.user_attrs['number']:3d}  {outcome}  {format_params(trial.params)}"


def format_params(params: Mapping[str, typing.Any]) -> str:
    """'lr 0.0012  layer 3'"""
    return "  ".join(
        f"{name} {value:.3g}" if isinstance(value, float) else printable(f"{name} {value}")
        for name, value in params.items()
    )


# ---------------------------------------------------------------- the search


def run_trials(search: Search, device: torch.device, stop: Callable[[], bool]) -> None:
    """Run trials until the study has as many finished ones as wanted, or stop() is true."""
    bar = tqdm(total=search.target, unit="trial", disable=None, dynamic_ncols=True)
    with contextlib.closing(bar):
        while update_bar(bar, search) < search.target and not stop():
            with claim_trial(search) as claim:
                if claim:
                    tqdm.write(run_trial(search, claim, device, stop))
                    sys.stdout.flush()  # a redirected log is read during the search
            if not claim:
                # Other processes run the last trials. If one of them dies, this process takes over its trial.
                time.sleep(1)


def update_bar(bar: tqdm, search: Search) -> int:
    """Show the study's finished trials, of all processes, on the bar. Returns their number."""
    with search.exclusive():
        count, trials = search.finished(), complete_trials(search.study)
    bar.n = min(count, search.target)
    bar.set_postfix({f"best {search.base.selection_metric}": f"{trials[0].value:.4f}"} if trials else {})
    return count


# ---------------------------------------------------------------- the best trial


def config_of_trial(study: optuna.Study, trial: optuna.trial.FrozenTrial, model: str) -> Config:
    """Config of a trial as a run of its own. model: --model, which a study of a user's own class needs."""
    source = f"study '{study.study_name}'"
    settings = study_record(study)["settings"]
    return restored_config(settings, source, model, **trial.params, **PROCESS_SETTINGS)


def command_line(config: Config) -> str:
    """The main.py command of a config: every setting that differs from the defaults of its recipe."""
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    defaults |= recipe_settings(config.recipe, vars(config))
    words = ["python", "main.py", "--dataset", config.dataset, "--model", config.model]
    for name, value in vars(config).items():
        if value != defaults[name] and name not in ("dataset", "model"):
            words += [f"--{name}", ",".join(map(str, value)) if isinstance(value, tuple) else str(value)]
    return shell_command(words)


def summary(
    study: optuna.Study, trials: Sequence[optuna.trial.FrozenTrial], metric: str, count: int = 10
) -> str:
    """The first `count` of the complete trials as a table, and the importance of each setting."""
    lines = [f"{'trial':>5} {'valid ' + metric:>16} {'epoch':>6}  settings"]
    for trial in trials[:count]:
        record = trial_record(study, trial)
        lines.append(
            f"{record['number']:>5} {trial.value:>16.4f} {record['epoch']:>6}  {format_params(trial.params)}"
        )
    if len(trials) >= MIN_TRIALS_FOR_IMPORTANCE:
        lines.append("importance  " + format_params(optuna.importance.get_param_importances(study)))
    return "\n".join(lines)


def conclude(study: optuna.Study, folder: Path, model: str) -> None:
    """Print the best trials and the command of the best, and write it to <folder>/<study>.best.sh."""
    trials = complete_trials(study)
    if not trials:
        print(f"study '{study.study_name}' has no complete trial yet")
        return
    best, config = trials[0], config_of_trial(study, trials[0], model)
    command, path = command_line(config), folder / f"{study.study_name}.best.sh"
    number = trial_record(study, best)["number"]
    comment = shell_comment(
        f"Trial {number} of study {study.study_name}: validation {config.selection_metric} "
        f"{best.value:.4f}, the best of {len(trials)} complete trials."
    )
    appended = shell_comment("Flags given to this script are appended.")
    write_text(path, f'#!/usr/bin/env bash\n{comment}\n{appended}\n{command} "$@"\n')
    print(summary(study, trials, config.selection_metric), f"{path}:", command, sep="\n")


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
    notes: list[str]  # lines for the user


def parse(argv: Sequence[str] | None) -> Request:
    """Parse a command line. Raises UserError for flags that are unknown or do not fit a search."""
    args, rest = make_parser().parse_known_args(argv)
    if not HAS_OPTUNA:
        raise UserError("tune.py needs optuna: pip install -c constraints.txt -e '.[tune]'")
    check_search_flags(args, rest)
    config, notes = parse_args(rest)
    checked(config)
    given = set(vars(main_parser(type(config)).parse_args(rest)))
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
    if "path" not in given:
        config = dataclasses.replace(config, path=f"runs/tune/{args.study}")
    return Request(args, config, given, notes)


def check_search_flags(args: argparse.Namespace, rest: Sequence[str]) -> None:
    """Raise UserError for flags of the search that cannot be used. rest: the words of main.py's flags."""
    if not re.fullmatch(r"[\w-][\w.-]*", args.study, re.ASCII):
        raise UserError(
            f"--study {args.study[:60]}: names files, so use letters, digits, '_', '-' and '.' (not as the "
            "first character)"
        )
    if args.trials is not None and args.trials < 1:
        raise UserError(f"--trials {args.trials}: must be at least 1")
    model_flag = Parser(add_help=False, allow_abbrev=False, prog="python tune.py")
    model_flag.add_argument("--model")
    others = model_flag.parse_known_args(list(rest))[1]
    if args.best and (args.space or others):
        raise UserError(
            f"--best takes its settings from the study; drop {' '.join(others or ['--space'])[:80]}"
        )


def command(request: Request) -> int:
    """Run the search, or print its best trials. Returns the exit code."""
    args, base = request.args, request.base
    path = Path(args.storage or f"runs/tune/{args.study}.db")
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    if args.best:
        with storage_errors(path, UserError):
            conclude(load_study(args.study, path), path.parent, base.model)
        return 0
    space = parse_space(args.space, type(base)) or default_space(base, request.given)
    check_space(space, base, request.given)
    device = set_up(base)
    base, more = usable_precision(base, device)
    base, off = usable_graph(base, device)
    notes = [*request.notes, *more, *off]
    print(*notes, sep="\n", end="\n" if notes else "")
    # Loaded before the study is created, so that unusable data leave nothing behind.
    data = interactions_hash(shared_dataset(base, device).interactions)
    study = join_study(args.study, path, base.as_dict(), space, data)
    if args.pruner == "median":
        study.pruner = optuna.pruners.MedianPruner(n_warmup_steps=args.warm_up * base.eval_every)
    else:
        study.pruner = optuna.pruners.NopPruner()
    # The space as stored: the order of the settings decides what the sampler draws.
    search = Search(study, path, base, stored_space(study), args.trials)
    with storage_errors(path, TrainingError), Stop(base.max_minutes) as stop:
        run_trials(search, device, stop)
        with search.exclusive():
            conclude(study, path.parent, base.model)
            return 0 if search.finished() >= search.target else stop.exit_code


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code, as main.py does."""

    def work() -> int | None:
        one_process("tune.py")
        return command(parse(argv))

    return run_command(work, io_hint=RESUME_HINT)


if __name__ == "__main__":
    sys.exit(main())
