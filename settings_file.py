"""Files of settings, in JSON or YAML: presets, and what --config takes, such as the config.json of a run.

    read_file(preset_path("baby-small"))     # {"dataset": "baby", "model": "lgn_mm", "recdim": 64, ...}

A file holds settings by their names, {"model": "lgn", "recdim": 32}; "about" is a line for its readers.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Mapping
from pathlib import Path

from training.records import read_settings
from utils import UserError, did_you_mean
from world import Config

PRESETS = Path(__file__).parent / "presets"
# What a config.json says about its own run, and is no setting of another.
NOT_SETTINGS = ("about", "provenance", "resume", "evaluate_only", "checkpoint")


def preset_names() -> list[str]:
    """Names of the files in presets/."""
    return sorted(path.stem for path in PRESETS.glob("*.json"))


def preset_path(name: str) -> Path:
    """The file of a preset. Raises UserError if there is none of this name."""
    if name not in preset_names():
        raise UserError(
            f"--preset {name}: choose from {', '.join(preset_names())}{did_you_mean(name, preset_names())}"
        )
    return PRESETS / f"{name}.json"


def read_file(path: Path) -> dict[str, typing.Any]:
    """The settings in a file, by the names of Config's fields. Checks neither names nor values."""
    is_yaml = path.suffix in (".yaml", ".yml")
    stored = read_yaml(path) if is_yaml else read_settings(path, "name a file of settings")
    fields = {name: field for field in dataclasses.fields(Config) for name in names_of(field)}
    named = {fields[key].name if key in fields else key: value for key, value in stored.items()}
    return {
        key: from_text(fields[key], value) if key in fields else value
        for key, value in named.items()
        if key not in NOT_SETTINGS
    }


def names_of(field: dataclasses.Field) -> tuple[str, ...]:
    """The name of a setting and its aliases."""
    return (field.name, *field.metadata["alias"])


def read_yaml(path: Path) -> Mapping[str, typing.Any]:
    """The mapping in a YAML file. Raises UserError for other content, and where PyYAML is missing."""
    try:
        import yaml
    except ImportError:
        remedy = "pip install -c constraints.txt pyyaml, or write JSON"
        raise UserError(f"{path}: reading YAML needs PyYAML: {remedy}") from None
    try:
        with open(path, encoding="utf-8") as file:
            stored = yaml.safe_load(file.read(10**6))
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); name a file of settings") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"{path}: is not YAML ({' '.join(str(error).split())[:80]})") from None
    if not isinstance(stored, Mapping) or not all(isinstance(key, str) for key in stored):
        raise UserError(f"{path}: contains no settings; write lines as 'recdim: 64'")
    return stored


def from_text(field: dataclasses.Field, value: typing.Any) -> typing.Any:
    """A value of a setting. YAML reads 1e-3, without a point, as text."""
    if isinstance(field.default, float) and isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value
