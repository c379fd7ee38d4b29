"""A study of tune.py in an SQLite file, and how several processes share its trials. Needs optuna.

A process owns a trial as long as it holds the lock of the trial's run folder. A trial that is marked as
running although nobody holds that lock was killed; the next process queues it again, to be resumed from its
last checkpoint.
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import sqlite3
import typing
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

import numpy as np
import optuna
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from data.formats import interactions_hash
from dataloader import Dataset
from incoming import ANY, COUNT, TEXT, Schema, check
from models.registry import config_class, is_external, label
from training.folder import make_run_folder
from training.space import Space
from utils import InUse, UserError, content_hash, lock_file
from world import Config

# What a study and its trials record beside the values of optuna. The file may come from others.
STUDY = {"settings": {str: ANY}, "space": {str: TEXT}, "data": TEXT}
TRIAL = {"number": COUNT, "epoch": COUNT, "folder": TEXT}
OTHER_STUDY = "it was not written by this program; name another study with --study or --storage"

STORAGE_ERRORS = (SQLAlchemyError, optuna.exceptions.StorageInternalError)

# ---------------------------------------------------------------- the file


@contextlib.contextmanager
def storage_errors(path: Path, kind: type[Exception]) -> Iterator[None]:
    """Turn errors of the database into one line of the given exception."""
    try:
        yield
    except STORAGE_ERRORS as error:
        reason = str(error.__cause__ or error).splitlines()[0][:100]
        raise kind(
            f"{path}: the study cannot be read or written ({reason}); repair the file or name another with "
            "--storage"
        ) from None


def study_lock(path: Path) -> contextlib.AbstractContextManager[None]:
    """Exclusive access to a study's file. SQLite alone may refuse one of two processes that write at once."""
    return lock_file(Path(f"{path}.lock"), wait=True)


def open_storage(path: Path) -> optuna.storages.RDBStorage:
    """The database of an SQLite file, created if there is none.

    Raises UserError for the tables of another version of optuna.
    """

    # A URL would give ?, % and braces of the path a meaning; a connection is opened by the path as it is.
    def connect() -> sqlite3.Connection:
        return sqlite3.connect(path.absolute(), timeout=60, check_same_thread=False)

    try:
        return optuna.storages.RDBStorage("sqlite:///study.db", engine_kwargs={"creator": connect})
    except RuntimeError as error:
        raise UserError(
            f"{path}: was written by another version of optuna ({str(error)[:100]}); install that version or "
            "name another file with --storage"
        ) from None


def load_study(name: str, path: Path) -> optuna.Study:
    """A study of a file that exists. Raises UserError if the file has none of this name."""
    with storage_errors(path, UserError), study_lock(path):
        storage = open_storage(path)
        names = optuna.get_all_study_names(storage)
        if name not in names:
            raise UserError(f"{path}: has no study '{name}'; it has {', '.join(names) or 'none'}")
        return optuna.load_study(storage=storage, study_name=name)


def join_study(
    name: str, path: Path, settings: Mapping[str, typing.Any], space: Space, data: str
) -> optuna.Study:
    """The study of this name, created if there is none.

    settings: those of every trial; data: from data_hashes. Raises UserError if the study exists with other
    settings, another space or other data.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    # The lock also covers the creation of the tables, which two processes must not do at once.
    with storage_errors(path, UserError), study_lock(path):
        study = optuna.create_study(
            storage=open_storage(path), study_name=name, direction="maximize", load_if_exists=True
        )
        texts = {key: optuna.distributions.distribution_to_json(value) for key, value in space.items()}
        if "settings" in study.user_attrs:
            check_unchanged(study, settings, texts, data)
        else:
            study.set_user_attr("space", texts)
            study.set_user_attr("data", data)
            # Written last: a study that has its settings is complete.
            study.set_user_attr("settings", settings)
    return study


def data_hashes(dataset: Dataset) -> str:
    """Hash of the interactions, a space, and hash of all else that trials are trained on.

    The features are hashed as they are in the files, whatever the settings of the trials make of them.
    """
    features = sorted(dataset.feature_hashes.items())
    # The mean text features of users have no hash of their own.
    others = content_hash(features, dataset.user_features is not None)
    return f"{interactions_hash(dataset.interactions)} {others}"


def changed_data(before: str, now: str) -> list[str]:
    """What differs between the data of two results of data_hashes, in words."""
    old, new = before.split(" "), now.split(" ")
    changes = ["the interactions"] if old[0] != new[0] else []
    if len(old) == 1:
        return [*changes, "the features, which the version that began the study did not record"]
    return [*changes, "the features"] if old[1:] != new[1:] else changes


def pruner(name: str, warm_up: int) -> optuna.pruners.BasePruner:
    """What --pruner names; warm_up: epochs before a trial may be pruned."""
    if name == "median":
        return optuna.pruners.MedianPruner(n_warmup_steps=warm_up)
    return optuna.pruners.NopPruner()


def check_unchanged(
    study: optuna.Study, settings: Mapping[str, typing.Any], space: Mapping[str, str], data: str
) -> None:
    """Raise UserError if these settings, this space or these data differ from those of the study."""
    stored = study_record(study)
    before, now = dict(stored["settings"]), dict(settings)
    if is_external(now["model"]) and label(now["model"]) == label(before["model"]):
        before["model"] = now["model"]  # the file of the class may have moved
    compared = [
        field.name
        for field in dataclasses.fields(config_class(now["model"]))
        if (not field.metadata["free"] or field.name == "epochs") and field.name not in space
    ]
    changes = [
        f"--{name} {before.get(name)} -> {now[name]}" for name in compared if before.get(name) != now[name]
    ]
    names = {**space, **stored["space"]}
    changes += [f"--space {name}" for name in names if space.get(name) != stored["space"].get(name)]
    changes += changed_data(stored["data"], data)
    if changes:
        raise UserError(
            f"study '{study.study_name}' was started with other settings or data "
            f"({', '.join(changes)[:200]}); continue it with those, or name another --study"
        )


def stored_space(study: optuna.Study) -> Space:
    """The search space that a study was created with."""
    try:
        return {
            name: optuna.distributions.json_to_distribution(text)
            for name, text in study_record(study)["space"].items()
        }
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"study '{study.study_name}': its space is damaged ({str(error)[:60]}); {OTHER_STUDY}"
        ) from None


def study_record(study: optuna.Study) -> dict[str, typing.Any]:
    """What join_study recorded with a study. Raises UserError if it is incomplete or of other types."""
    return complete(study.user_attrs, STUDY, f"study '{study.study_name}'", STUDY.keys())


def trial_record(
    study: optuna.Study,
    trial: optuna.Trial | optuna.trial.FrozenTrial,
    names: Iterable[str] = ("number", "epoch"),
) -> dict[str, typing.Any]:
    """What was recorded with a trial. Raises UserError if it is of other types or lacks one of `names`."""
    return complete(trial.user_attrs, TRIAL, f"study '{study.study_name}', trial {trial.number}", names)


def complete(
    record: dict[str, typing.Any], schema: Schema, source: str, names: Iterable[str]
) -> dict[str, typing.Any]:
    """A record that fits a schema and has these names. Raises UserError for any other."""
    missing = [name for name in names if name not in record]
    if missing:
        raise UserError(f"{source}: lacks {', '.join(missing)}; {OTHER_STUDY}")
    return check(record, schema, source, OTHER_STUDY)


def complete_trials(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """The trials that were neither pruned nor stopped, best first."""
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return sorted(trials, key=lambda trial: -trial.value)


# ---------------------------------------------------------------- the trials


@dataclasses.dataclass(frozen=True)
class Search:
    """The work of one process: trials of a study, until the study has `target` finished ones."""

    study: optuna.Study
    path: Path  # the SQLite file
    base: Config  # the settings of every trial that are not searched
    space: Space
    target: int

    def exclusive(self) -> contextlib.AbstractContextManager[None]:
        """Exclusive access to the study; every read and write of it needs this."""
        return study_lock(self.path)

    def trials(self, *states: TrialState) -> list[optuna.trial.FrozenTrial]:
        """The trials in these states."""
        return self.study.get_trials(deepcopy=False, states=states)

    def finished(self) -> int:
        """How many trials count towards the target: complete and pruned ones."""
        return len(self.trials(TrialState.COMPLETE, TrialState.PRUNED))


class Claim(typing.NamedTuple):
    """A trial for this process to run. config.resume is set if another process has begun it."""

    trial: optuna.Trial
    config: Config
    folder: Path


@contextlib.contextmanager
def claim_trial(search: Search) -> Iterator[Claim | None]:
    """The next trial to run, its folder locked for the length of the block; None if none is left to start.

    What is drawn depends on the seed, the number of the trial and the trials finished before it. A single
    process thus produces the same study in one run and in several.
    """
    with contextlib.ExitStack() as stack:
        claim = None
        with search.exclusive():
            for trial in search.trials(TrialState.RUNNING):
                if not is_in_use(run_folder(search.study, trial)):
                    requeue(search.study, trial.number)
            numbers = taken_numbers(search)
            if len(numbers) < search.target:
                claim = draw_trial(search, next(n for n in itertools.count() if n not in numbers))
                # A process that has just queued this trial again may still hold the folder, for a moment.
                stack.enter_context(lock_file(claim.folder / ".lock", wait=True))
                # Absolute: the next process may be started in another working directory.
                claim.trial.set_user_attr("folder", str(claim.folder.absolute()))
        yield claim


def taken_numbers(search: Search) -> list[int]:
    """The numbers of the trials that are finished or running."""
    trials = search.trials(TrialState.COMPLETE, TrialState.PRUNED, TrialState.RUNNING)
    return [trial_record(search.study, trial, ("number",))["number"] for trial in trials]


def draw_trial(search: Search, number: int) -> Claim:
    """Take a queued trial, or draw the settings of a new one with this number."""
    seed = int(np.random.SeedSequence([search.base.seed, number]).generate_state(1)[0])
    search.study.sampler = optuna.samplers.TPESampler(seed=seed)
    trial = search.study.ask(search.space)
    folder = run_folder(search.study, trial)
    # A trial that was queued again keeps its number.
    number = trial.user_attrs.get("number", number)
    trial.set_user_attr("number", number)
    name = f"{search.base.name or search.study.study_name}_{number}"
    config = dataclasses.replace(search.base, **trial.params, name=name)
    if folder:
        return Claim(trial, dataclasses.replace(config, resume=str(folder)), folder)
    return Claim(trial, config, make_run_folder(config))


def requeue(study: optuna.Study, number: int) -> None:
    """Mark a running trial as failed, and queue its parameters, run folder and reported values once more."""
    trial = study.trials[number]
    study.tell(number, state=TrialState.FAIL)
    # Without a folder it was killed while being drawn; the next trial is drawn from the same seed.
    if "folder" in trial.user_attrs:
        study.add_trial(
            optuna.create_trial(
                state=TrialState.WAITING,
                params=trial.params,
                distributions=trial.distributions,
                user_attrs=trial.user_attrs,
                intermediate_values=trial.intermediate_values,
            )
        )


def run_folder(study: optuna.Study, trial: optuna.Trial | optuna.trial.FrozenTrial) -> Path | None:
    """The run folder recorded with a trial; None if there is none, or none that is a run folder."""
    record = trial_record(study, trial, ())
    folder = Path(record["folder"]) if "folder" in record else None
    return folder if folder and (folder / "config.json").is_file() else None


def is_in_use(folder: Path | None) -> bool:
    """Whether a process holds the lock of a run folder. False if there is no such folder.

    Raises UserError if the lock cannot be tried.
    """
    if not folder:
        return False
    try:
        with lock_file(folder / ".lock"):
            return False
    except InUse:
        return True
