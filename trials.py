"""The trials of a search: how one process runs them, and what the study then says. Needs optuna.

run_trials(search, device, stop)            # until the study has as many finished ones as wanted
conclude(study, folder, model)              # print the best, and write the command of the best
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import sys
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import optuna
import torch
from optuna.trial import TrialState
from tqdm import tqdm

from cli import is_out_of_memory
from dataloader import Dataset, Needs
from models.registry import checked, find_model, is_external
from outgoing import printable, shell_command, shell_comment
from parse import restored_config
from procedure import fit, format_metrics
from session import load, make_model
from training.evaluation import Metrics, Result
from training.folder import provenance
from training.run import Run, start_run
from training.runlog import RunLog
from training.study import (
    STORAGE_ERRORS,
    Claim,
    Search,
    claim_trial,
    complete_trials,
    requeue,
    study_record,
    trial_record,
)
from utils import Diverged, TrainingError, UserError, write_text
from world import Config, recipe_settings, seed_everything

# All settings that loading a dataset reads. Trials that agree in them share one dataset.
DATASET_SETTINGS = tuple(
    field.name
    for field in dataclasses.fields(Config)
    if field.metadata["group"] == "data" or field.name in ("model", "topks", "seed")
)
# Settings of the search process that the best trial does not need as a run of its own, with their defaults.
PROCESS_SETTINGS = {"path": "runs", "max_minutes": 0.0}
# With fewer complete trials, an estimate of the importance of settings would be noise.
MIN_TRIALS_FOR_IMPORTANCE = 10


# ---------------------------------------------------------------- one trial


class Unusable(Exception):
    """A model cannot be built with the settings of a trial, although each is allowed by itself."""


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
    try:
        model = make_model(checked(config), dataset, device)
    except UserError as error:
        raise Unusable(str(error)) from None
    run = start_run(model, dataset, config, folder, device)
    if config.resume:
        run.resume()
    return fit(run, stop, watch, end=finish_trial, echo=False)


def finish_trial(run: Run, log: RunLog) -> Result:
    """Log the end of a trial. Returns its result, which has validation metrics only."""
    config, progress, best = run.config, run.progress, run.progress.best
    assert best is not None  # training ends after an evaluation
    status = "tuned" if run.is_complete else "pruned"
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

    A trial that diverges or exhausts the memory, or whose settings are unusable, counts as pruned. Errors
    that have other causes than its settings, such as a full disk, queue it again and propagate. Any other
    exception is a bug, marks the trial as failed and propagates.
    """
    trial = claim.trial
    try:
        result = train_trial(search, claim, device, stop)
    except (Diverged, Unusable) as error:
        return prune(search, trial, str(error).split(";")[0])
    except (TrainingError, UserError, OSError, *STORAGE_ERRORS):
        with search.exclusive():
            requeue(search.study, trial.number)
        raise
    except BaseException as error:
        if isinstance(error, Exception) and is_out_of_memory(error):
            return prune(search, trial, "out of memory")
        with search.exclusive():
            search.study.tell(trial, state=TrialState.FAIL)
        raise
    with search.exclusive():
        return record_result(search, claim, result)


def prune(search: Search, trial: optuna.Trial, reason: str) -> str:
    """Record a trial that cannot be trained to its end as pruned. Returns a line about it."""
    with search.exclusive():
        search.study.tell(trial, state=TrialState.PRUNED)
        return trial_line(trial, reason)


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
    """Config of a trial as a run of its own. model: that of the command, which names a user's own class."""
    source = f"study '{study.study_name}'"
    settings = study_record(study)["settings"]
    named = model if is_external(model) else ""
    return restored_config(settings, source, named, **trial.params, **PROCESS_SETTINGS)


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
