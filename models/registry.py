"""The models that --model names, and how a class from a user's own file joins them.

    find_model("lgn_mm")                     # model.RecGOAT
    find_model("my_model.py:MyModel")        # class MyModel of that file
    config_class("itemknn")                  # Config with the settings of ItemKNN

Only find_model imports a model, so that names, labels and settings of built-in models are known without
loading torch. A name that was stored by a run is never enough to import a user's file: the user has to name
it again (parse.py).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import importlib.util
import keyword
import sys
import traceback
import typing
from collections.abc import Mapping
from pathlib import Path

from models.settings import (
    BM3_SETTINGS,
    EASE_SETTINGS,
    ITEMKNN_SETTINGS,
    LATTICE_SETTINGS,
    MGCN_SETTINGS,
    SMORE_SETTINGS,
)
from utils import UserError, content_hash, did_you_mean
from world import GROUPS, Config

if typing.TYPE_CHECKING:
    from models.base import Recommender


class Entry(typing.NamedTuple):
    """A built-in model."""

    target: str  # "module:Class"
    label: str  # what tables call it
    summary: str  # for --help
    settings: Mapping[str, typing.Any] = {}  # the same as the class has
    parallel: bool = False  # whether several processes can share its columns (layers/columns.py)


MODELS = {
    "mf": Entry("models.mf:MF", "MF", "matrix factorisation", parallel=True),
    "lgn": Entry("models.lightgcn:LightGCN", "LightGCN", "LightGCN", parallel=True),
    "vbpr": Entry("models.vbpr:VBPR", "VBPR", "VBPR", parallel=True),
    "freedom": Entry("models.freedom:FREEDOM", "FREEDOM", "FREEDOM", parallel=True),
    "bm3": Entry("models.bm3:BM3", "BM3", "BM3", BM3_SETTINGS),
    "lattice": Entry("models.lattice:LATTICE", "LATTICE", "LATTICE", LATTICE_SETTINGS),
    "mgcn": Entry("models.mgcn:MGCN", "MGCN", "MGCN", MGCN_SETTINGS),
    "smore": Entry("models.smore:SMORE", "SMORE", "SMORE", SMORE_SETTINGS),
    "itemknn": Entry(
        "models.itemknn:ItemKNN",
        "ItemKNN",
        "item-based cosine similarity, without training",
        ITEMKNN_SETTINGS,
    ),
    "ease": Entry("models.ease:EASE", "EASE", "EASE, a linear autoencoder in closed form", EASE_SETTINGS),
    "lgn_mm": Entry("model:RecGOAT", "RecGOAT", "RecGOAT", parallel=True),
}


def is_external(model: str) -> bool:
    """Whether --model names a class in a user's file ("FILE.py:CLASS") rather than a built-in model."""
    return ":" in model


def label(model: str) -> str:
    """What tables call a model: "RecGOAT" for "lgn_mm", "MyModel" for "my_model.py:MyModel"."""
    if is_external(model):
        return model.rpartition(":")[2]
    return MODELS[model].label if model in MODELS else model


def slug(model: str) -> str:
    """The model's name in file names: "lgn_mm", or "MyModel" for "my_model.py:MyModel"."""
    return label(model) if is_external(model) else model


@functools.cache
def find_model(model: str) -> type[Recommender]:
    """The class that --model names. Raises UserError if there is none."""
    if is_external(model):
        return load_class(model)
    module, _, name = built_in(model).target.partition(":")
    return getattr(importlib.import_module(module), name)


def built_in(model: str) -> Entry:
    """The entry of a built-in model. Raises UserError if there is none of this name."""
    if model not in MODELS:
        raise UserError(
            f"--model {model}: choose from {', '.join(MODELS)}, or name a class of your own as FILE.py:CLASS"
            f"{did_you_mean(model, MODELS)}"
        )
    return MODELS[model]


def load_class(model: str) -> type[Recommender]:
    """Import "FILE.py:CLASS". Raises UserError if the file or the class is missing or cannot be used."""
    from models.base import Recommender

    file, _, name = model.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise UserError(f"--model {model}: {file} is not a Python file; name a class as FILE.py:CLASS")
    module_name = f"user_model_{content_hash(str(path.resolve()))[:16]}"
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None and spec.loader is not None  # a .py file always has a loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        frames = traceback.extract_tb(error.__traceback__)
        lines = [frame.lineno for frame in frames if Path(frame.filename).resolve() == path.resolve()]
        place = f", line {lines[-1]}" if lines else ""
        raise UserError(f"{path}{place}: {type(error).__name__}: {error}; correct the file") from error
    found = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Recommender)):
        raise UserError(f"--model {model}: {path} has no class {name} that extends models.base.Recommender")
    return found


def forget_classes() -> None:
    """Have the files of users' classes read again when they are named next: they may have been edited."""
    find_model.cache_clear()
    config_class.cache_clear()


@functools.cache
def config_class(model: str) -> type[Config]:
    """Config, with the settings that the model class adds. Raises UserError if one of them is not usable."""
    own = own_fields(find_model(model).settings if is_external(model) else built_in(model).settings)
    if not own:
        return Config
    taken = {"help", "preset", "config", *dir(Config)}.union(
        *(field.metadata["alias"] for field in dataclasses.fields(Config))
    )
    for name, kind, field in own:
        if (
            name in taken
            or not name.isidentifier()
            or keyword.iskeyword(name)
            or kind not in (int, float, str)
            or field.metadata.get("group") not in GROUPS
        ):
            raise UserError(
                f"--model {model}: setting '{name}' must have a new name and be made by world.setting with a "
                "number or text as its default"
            )
    return dataclasses.make_dataclass(
        "Config", own, bases=(Config,), frozen=True, namespace={"__doc__": Config.__doc__}
    )


def own_fields(settings: Mapping[str, typing.Any]) -> list[tuple[str, type, dataclasses.Field]]:
    """The settings of a model as dataclass fields: (name, type, field)."""
    fields = {
        name: value if isinstance(value, dataclasses.Field) else dataclasses.field(default=value)
        for name, value in settings.items()
    }
    return [(name, type(field.default), field) for name, field in fields.items()]


def checked(config: Config) -> Config:
    """The config itself. Raises UserError for settings that its model cannot be built with."""
    find_model(config.model).check(config)
    return config


def source_hash(model: str) -> str | None:
    """SHA-256 of the file of a user's class, for the record of a run; None for a built-in model."""
    return content_hash(Path(model.rpartition(":")[0]).read_bytes()) if is_external(model) else None
