"""The folder of a run: its name, config.json, and the record of what the run was made with."""

from __future__ import annotations

import dataclasses
import platform
import subprocess
import time
import typing
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from models.registry import slug, source_hash
from utils import UserError, did_you_mean, write_json
from world import Config


def make_run_folder(config: Config) -> Path:
    """Create <path>/<dataset>_<model>_<time>_<seed>/ with config.json; a taken name gets a counter."""
    name = f"{Path(config.dataset).name}_{slug(config.model)}_{time.strftime('%Y%m%d-%H%M%S')}_{config.seed}"
    for attempt in range(1000):
        folder = Path(config.path) / (f"{name}-{attempt}" if attempt else name)
        try:
            folder.mkdir(parents=True)
            write_config(folder, config)
            return folder
        except FileExistsError:
            continue
        except OSError as error:
            raise UserError(
                f"{folder}: cannot be created or written ({error.strerror}); choose another folder with "
                "--path"
            ) from None
    raise UserError(f"{config.path}: no free name for a run folder; choose another folder with --path")


def write_config(folder: Path, config: Config) -> None:
    """Write config.json: every setting, and what the run was made with."""
    write_json(folder / "config.json", {**config.as_dict(), "provenance": made_with(config)})


def made_with(config: Config) -> dict[str, typing.Any]:
    """The provenance of a run; of a class of your own also the SHA-256 of its file."""
    source = source_hash(config.model)
    return provenance() | ({"model_sha256": source} if source else {})


def provenance() -> dict[str, typing.Any]:
    """Versions of interpreter and libraries, platform, and the git commit of the code.

    git_commit and git_dirty are None where git cannot tell: outside a checkout, or without git.
    """
    import torch  # here, because the command line needs the rest of this module at once

    changed = git("status", "--porcelain", "--untracked-files=no")
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "platform": platform.platform(),
        "git_commit": git("rev-parse", "HEAD"),
        "git_dirty": None if changed is None else bool(changed),
    }


def git(*arguments: str) -> str | None:
    """Output of a git command in the folder of this program; None if it fails."""
    # `git status` would refresh the index, and leave its lock if it is killed meanwhile.
    command = ["git", "--no-optional-locks", "-C", str(Path(__file__).parents[1]), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def known_settings(
    stored: Mapping[str, typing.Any], source: object, cls: type[Config] = Config
) -> dict[str, typing.Any]:
    """The settings among stored entries, as arguments of a Config class; `source` names them in errors.

    Raises UserError for entries that are no settings of this class.
    """
    if not isinstance(stored, Mapping):
        raise UserError(f"{source}: contains no settings")
    names = {field.name for field in dataclasses.fields(cls)}
    unknown = sorted(map(str, stored.keys() - names - {"provenance"}))
    if unknown:
        raise UserError(
            f"{source}: has unknown settings ({', '.join(unknown)[:60]}): misspelt, or of another version"
            f"{did_you_mean(unknown[0], names)}"
        )
    known = ((key, value) for key, value in stored.items() if key in names)
    return {key: cutoffs(value) if isinstance(value, list) else value for key, value in known}


def cutoffs(values: list[typing.Any]) -> tuple[typing.Any, ...]:
    """Values of a list setting in the order of the command line: ascending, without repetitions."""
    return tuple(sorted(set(values))) if all(type(value) is int for value in values) else tuple(values)


def changed_settings(config: Config, given: Mapping[str, typing.Any]) -> list[str]:
    """['--lr 0.001 -> 0.01', ...]: what `given` changes among the settings that a resumed run must keep."""
    return [
        f"--{field.name} {getattr(config, field.name)} -> {given[field.name]}"
        for field in dataclasses.fields(config)
        if field.name in given
        and not field.metadata["free"]
        and given[field.name] != getattr(config, field.name)
    ]
