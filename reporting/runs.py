"""Read run folders: settings, result and evaluations of each run.

runs = [read_run(folder) for folder in find_run_folders(["runs"])]

Only JSON is read: for a run of a user's own model (--model file.py:Class), that file is not imported.
"""

import dataclasses
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from incoming import read_object
from models.registry import config_class, find_model, is_external, label
from outgoing import json_text
from parse import make_config
from training.folder import known_settings
from training.records import LEAVE_OUT, read_evaluations, read_result
from training.records import read_settings as read_config
from utils import UserError
from world import Config

DATASET_LABELS = {"baby": "Baby", "sports": "Sports", "electronics": "Electronics"}
CONFIG_FIELDS = {field.name for field in dataclasses.fields(Config)}

SettingValue = int | float | str | tuple | None


@dataclasses.dataclass(frozen=True)
class Run:
    """One run folder.

    config: the settings that every model has; its `model` is meaningless for a user's own model.
    settings: all stored settings, including those that only a user's own model has.
    result: contents of result.json, {} if there is none.
    evaluations: lines of metrics.jsonl, one per evaluated epoch.
    """

    folder: Path
    config: Config
    settings: dict[str, SettingValue]
    result: dict[str, Any]
    evaluations: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """Name of the run's row in tables: --name, or the model's label."""
        return self.config.name or label(str(self.settings["model"]))

    @property
    def dataset(self) -> str:
        """Name of the dataset as papers write it."""
        name = Path(self.config.dataset).name
        return DATASET_LABELS.get(name.removesuffix("_raw"), name)

    @property
    def status(self) -> str:
        """One of finished, interrupted, failed and unfinished; of a trial of tune.py, tuned or pruned."""
        return self.result.get("status", "unfinished")

    @property
    def reached_limit(self) -> bool:
        """Whether --epochs ended the training, rather than --patience; True if that is unknown."""
        return self.result.get("epochs", self.config.epochs) >= self.config.epochs

    @property
    def interactions_hash(self) -> str:
        """Hash of the interactions; "unknown" for runs of versions that did not store it."""
        return self.result.get("data", {}).get("interactions", "unknown")

    @property
    def features(self) -> dict[str, str] | None:
        """Hashes of the features that the run was trained on, by kind; {} for a model that uses none.

        None if the run is of a version that did not store them.
        """
        stored = self.result.get("data", {}).get("features")
        if stored is None and not is_external(str(self.settings["model"])):
            needs = find_model(self.config.model).data_needs(self.config)
            return None if needs.features or needs.neighbours or needs.user_features else {}
        return stored

    @property
    def protocol(self) -> str:
        """Evaluation protocol as JSON, for comparison."""
        return json_text(self.result.get("protocol"), sort_keys=True)

    @property
    def metrics(self) -> list[str]:
        """["recall@10", "recall@20", "ndcg@10", ...] at the run's cut-offs."""
        return [f"{name}@{k}" for name in ("recall", "ndcg") for k in sorted(self.config.topks)]

    def setting(self, name: str) -> SettingValue:
        """Value of a setting; "unset" if the run's model does not have it."""
        return self.settings.get(name, "unset")


# ---------------------------------------------------------------- reading


def read_run(folder: Path) -> Run:
    """Read a run folder. Raises UserError if one of its files is damaged."""
    config, settings = read_settings(folder / "config.json")
    path = folder / "result.json"
    result = read_result(path) if path.exists() else {}
    run = Run(folder, config, settings, result, read_evaluations(folder / "metrics.jsonl"))
    if run.status == "finished" and not set(run.metrics) <= result["test"].keys():
        raise UserError(f"{path}: lacks test metrics; {LEAVE_OUT}")
    return run


def read_settings(path: Path) -> tuple[Config, dict[str, SettingValue]]:
    """The Config and all settings of a config.json. Raises UserError for settings that do not exist."""
    stored, extra = read_config(path), {}
    if is_external(stored.get("model", "")):
        # A report must not run code of strangers, so the user's class cannot say which settings it defines
        # and what they may be. They are kept as they are stored.
        names = stored.keys() - CONFIG_FIELDS - {"provenance"}
        extra = {name: comparable(stored[name]) for name in [*sorted(names), "model"]}
        stored = {name: value for name, value in stored.items() if name not in extra}
    try:
        cls = config_class(stored.get("model", Config.model))
        config = make_config(cls, known_settings(stored, path, cls))
    except UserError as error:
        raise UserError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return config, {field.name: getattr(config, field.name) for field in dataclasses.fields(config)} | extra


def comparable(value: Any) -> SettingValue:
    """A JSON value as one that can be compared and hashed: lists become tuples, objects their JSON text."""
    if isinstance(value, list):
        return tuple(map(comparable, value))
    return json_text(value, sort_keys=True) if isinstance(value, dict) else value


def find_run_folders(paths: Iterable[str | Path]) -> list[Path]:
    """Run folders at or below these paths, each once. Raises UserError for a path without any."""
    found: dict[Path, Path] = {}
    for path in map(Path, paths):
        if is_run_folder(path):
            folders = [path]
        else:
            below = sorted(file.parent for file in path.rglob("config.json"))
            folders = [folder for folder in below if is_run_folder(folder)]
        if not folders:
            raise UserError(
                f"{path}: no run folder here or below (a run folder contains a config.json with provenance); "
                "name the folder given to main.py as --path, such as runs"
            )
        found |= {folder.resolve(): folder for folder in folders}
    return list(found.values())


def is_run_folder(folder: Path) -> bool:
    """Whether a folder has the config.json of a run, rather than that of an export, which lacks provenance.

    A damaged config.json counts as one of a run, so that read_run says what is wrong with it.
    """
    path = folder / "config.json"
    if not path.exists():
        return False
    try:
        return "provenance" in read_object(path, LEAVE_OUT)
    except UserError:
        return True
