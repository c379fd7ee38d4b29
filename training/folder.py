"""The folder of a run: its name, config.json, and the record of what the run was made with."""

from __future__ import annotations

import platform
import subprocess
import time
import typing
from pathlib import Path

import numpy as np
import torch

from models.registry import slug, source_hash
from utils import UserError, write_json
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
    record = provenance()
    if source := source_hash(config.model):
        record["model_sha256"] = source
    write_json(folder / "config.json", {**config.as_dict(), "provenance": record})


def provenance() -> dict[str, typing.Any]:
    """Versions of interpreter and libraries, platform, and the git commit of the code.

    git_commit and git_dirty are None where git cannot tell: outside a checkout, or without git.
    """
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
    command = ["git", "-C", str(Path(__file__).parents[1]), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
