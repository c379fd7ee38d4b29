"""Search spaces of tune.py: which settings are searched, and the values they are drawn from.

space = parse_space(["lr=1e-4..1e-2:log", "layer=1..4", "fuse_norm=none,l2"], Config)
space["lr"]     # optuna's FloatDistribution(low=0.0001, high=0.01, log=True)

Needs optuna.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
import typing
from collections.abc import Collection, Iterable

from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
    distribution_to_json,
)

from data.feature_files import feature_paths
from data.folders import dataset_folder
from incoming import TEXT
from models.registry import checked, find_model
from utils import UserError
from world import Config

Space = dict[str, BaseDistribution]  # by setting, in the order in which the sampler draws them

SEARCHED_GROUPS = ("data", "model", "alignment", "training")
# Settings of these groups that say what a trial is trained on or how it is compared with others.
NOT_SEARCHED = ("dataset", "data_format", "use_multimodal", "missing", "missing_fill", "model", "recipe")
NEIGHBOURS = ("item_knn_k", "user_knn_k")  # settings that the data limit
RANGES: dict[type, typing.Any] = {int: IntDistribution, float: FloatDistribution}


def searchable_fields(cls: type[Config]) -> dict[str, dataclasses.Field]:
    """The fields of a Config class that can be searched, by name.

    Those that a resumed run may change (paths, the number of epochs, ...) are left out with NOT_SEARCHED.
    """
    return {
        field.name: field
        for field in dataclasses.fields(cls)
        if field.metadata["group"] in SEARCHED_GROUPS
        and not field.metadata["free"]
        and field.name not in NOT_SEARCHED
    }


def parse_space(entries: Iterable[str], cls: type[Config]) -> Space:
    """The space of entries as --space takes them. Raises UserError for an entry that is not usable."""
    space: Space = {}
    fields = searchable_fields(cls)
    for entry in entries:
        name, _, values = entry.partition("=")
        if not values or name in space:
            raise UserError(
                f"--space {entry}: give each setting once, as SETTING=LOW..HIGH, SETTING=LOW..HIGH:log or "
                "SETTING=a,b,c"
            )
        if name not in fields:
            raise UserError(f"--space {entry}: '{name}' cannot be searched; choose from {', '.join(fields)}")
        space[name] = parse_values(fields[name], values, entry)
        if not TEXT.allows(distribution_to_json(space[name])):
            raise UserError(f"--space {entry[:60]}...: the list is too long; give fewer values, or a range")
    return space


def parse_values(field: dataclasses.Field, values: str, entry: str) -> BaseDistribution:
    """The distribution of "LOW..HIGH", "LOW..HIGH:log" or "a,b,c" for a field; `entry` is named in errors."""
    kind: typing.Any = type(field.default)  # int, float or str
    ends = re.fullmatch(r"(.+?)\.\.(.+?)(:log)?", values)
    with contextlib.suppress(ValueError):  # a word that is not a number
        if ends and kind in RANGES:
            low, high, log = kind(ends[1]), kind(ends[2]), bool(ends[3])
            # The comparison is false for NaN too.
            if low < high < float("inf") and (low > 0 or not log):
                return RANGES[kind](low, high, log=log)
        else:
            choices = list(dict.fromkeys(kind(word) for word in values.split(",")))
            if len(choices) > 1:
                return CategoricalDistribution(choices)
    raise UserError(
        f"--space {entry}: give at least two values of type {kind.__name__} (a,b,c), or a range of numbers "
        "LOW..HIGH with LOW below HIGH, and LOW above 0 for :log"
    )


def default_space(config: Config, given: Collection[str]) -> Space:
    """The space that the config's model class recommends, without the settings given as flags."""
    modalities = list(feature_paths(config, dataset_folder(config)[0]))
    space = parse_space(find_model(config.model).search_space(config, modalities), type(config))
    return {name: distribution for name, distribution in space.items() if name not in given}


def check_space(space: Space, config: Config, given: Collection[str]) -> None:
    """Raise UserError if a setting is both searched and given as a flag, or a value of it is not allowed.

    config: the settings of every trial that are not searched.
    """
    for name, distribution in space.items():
        if name in given:
            raise UserError(f"--{name} is both given as a flag and searched; drop it or its --space entry")
        for value in extremes(distribution):
            checked(dataclasses.replace(config, **{name: value}))


def with_most_neighbours(space: Space, config: Config) -> Config:
    """A config with the largest numbers of neighbours that are searched: data that fit it fit every trial."""
    most = {name: max(extremes(space[name])) for name in NEIGHBOURS if name in space}
    return dataclasses.replace(config, **most)


def extremes(distribution: typing.Any) -> tuple[typing.Any, ...]:
    """The choices of a distribution, or the ends of its range."""
    return getattr(distribution, "choices", None) or (distribution.low, distribution.high)
