"""Group runs into table rows and tables, and refuse groups whose runs must not be averaged.

groups = make_groups(runs, vary=["item_knn_k"])     # one group of seeds per table row
sections = make_sections(groups)                    # groups that may share a table
"""

import collections
import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from outgoing import json_text
from reporting.runs import CONFIG_FIELDS, Run, SettingValue
from utils import UserError, content_hash
from world import Config

# Settings in which the seeds of one row must agree. Free settings, such as threads, do not affect the result,
# apart from epochs, see differences().
COMPARED_SETTINGS = [
    field.name for field in dataclasses.fields(Config) if not field.metadata["free"] and field.name != "seed"
]


@dataclasses.dataclass(frozen=True)
class Group:
    """Runs of one table row, ordered by seed. varied: settings in which rows of the same name differ."""

    runs: list[Run]
    varied: tuple[str, ...] = ()

    @property
    def first(self) -> Run:
        """A representative run, for everything that the runs have in common."""
        return self.runs[0]

    @property
    def name(self) -> str:
        """Label of the row, such as "RecGOAT" or "RecGOAT, item_knn_k 20"."""
        return self.name_without(())

    def name_without(self, settings: Sequence[str]) -> str:
        """Label of the row without the values of these settings."""
        shown = [setting for setting in self.varied if setting not in settings]
        return ", ".join(
            [self.first.name, *(f"{name} {in_words(self.first.setting(name))}" for name in shown)]
        )

    def values(self, metric: str) -> list[float]:
        """Test metric of every run."""
        return [run.result["test"][metric] for run in self.runs]

    def mean(self, metric: str) -> float:
        """Test metric averaged over the runs."""
        return float(np.mean(self.values(metric)))


def in_words(value: SettingValue) -> str:
    """The value of a setting in a label."""
    return "none" if value == "" else str(value)


@dataclasses.dataclass(frozen=True)
class Section:
    """Groups that share a table: same data, protocol and cut-offs.

    number: 1, or a higher one for further sections on the same dataset.
    """

    groups: list[Group]
    number: int = 1

    @property
    def first(self) -> Run:
        """A representative run."""
        return self.groups[0].first

    @property
    def dataset(self) -> str:
        """Name of the dataset as papers write it."""
        return self.first.dataset

    @property
    def metrics(self) -> list[str]:
        """["recall@10", ...] at the common cut-offs."""
        return self.first.metrics

    @property
    def title(self) -> str:
        """The dataset, with the section's number from the second on."""
        return self.dataset + (f" ({self.number})" if self.number > 1 else "")

    @property
    def slug(self) -> str:
        """The title as a prefix of file names."""
        return file_name(self.dataset) + (f"_{self.number}" if self.number > 1 else "")


def file_name(text: str) -> str:
    """Text in lower case with everything but letters and digits replaced by underscores."""
    return "".join(character if character.isalnum() else "_" for character in text.lower())


# ---------------------------------------------------------------- rows


def make_groups(runs: Sequence[Run], vary: Sequence[str] = ()) -> list[Group]:
    """Group finished runs by dataset and name, and by those settings in `vary` that differ within a name."""
    named, groups = collections.defaultdict(list), collections.defaultdict(list)
    for run in runs:
        named[run.dataset, run.name].append(run)
    for key, members in named.items():
        varied = tuple(name for name in vary if len({run.setting(name) for run in members}) > 1)
        for run in members:
            groups[key, varied, tuple(run.setting(name) for name in varied)].append(run)
    return [
        Group(sorted(members, key=lambda run: run.config.seed), varied)
        for (_, varied, _), members in groups.items()
    ]


def check_group(group: Group) -> None:
    """Raise UserError unless the runs of a group differ in their seeds and in nothing else that matters."""
    where = f"{group.name} on {group.first.dataset}"
    # All pairs, because runs that --patience ended may be averaged with either of two that may not.
    for run, other in itertools.combinations(group.runs, 2):
        changes = differences(run, other)
        if changes:
            raise UserError(
                f"{where}: {run.folder} and {other.folder} differ in {', '.join(changes)}, so their "
                "mean would be meaningless; report them separately or train each with its own --name "
                "(--list shows all runs)"
            )
    for run, other in zip(group.runs, group.runs[1:]):
        if run.config.seed == other.config.seed:
            raise UserError(
                f"{where}: {run.folder} and {other.folder} have the same seed, {run.config.seed}; "
                "leave one of them out (--list shows all runs)"
            )


def differences(run: Run, other: Run) -> list[str]:
    """Differences that a mean over seeds must not hide, as ["lr (0.001, 0.01)", ...].

    epochs is among them unless --patience ended both runs, whose results then do not depend on it.
    """
    own_settings = sorted((run.settings.keys() | other.settings.keys()) - CONFIG_FIELDS)
    limit = ["epochs"] if run.reached_limit or other.reached_limit else []
    names = [*COMPARED_SETTINGS, *limit, *own_settings]
    pairs: dict[str, tuple] = {name: (run.setting(name), other.setting(name)) for name in names}
    # With --missing each seed has other features, of which the settings and the hash of "features" tell all.
    for part in ("interactions", "features" if run.config.missing else "all"):
        found = [each.result.get("data", {}).get(part, "unknown") for each in (run, other)]
        hashes = [value if isinstance(value, str) else content_hash(json_text(value)) for value in found]
        pairs[f"data: {part}"] = tuple(text[:12] for text in hashes)
    pairs["protocol"] = run.protocol, other.protocol
    return [f"{name} ({left}, {right})" for name, (left, right) in pairs.items() if left != right]


# ---------------------------------------------------------------- tables


def make_sections(groups: Sequence[Group]) -> list[Section]:
    """Collect the groups that may share a table, and put the rows of each table in order."""
    tables = collections.defaultdict(list)
    for group in groups:
        run = group.first
        tables[run.dataset, run.interactions_hash, run.protocol, run.config.topks].append(group)
    sections: dict[str, Section] = {}
    for members in tables.values():
        section = Section(sorted(members, key=row_order))
        # By file name, so that "A b" and "A_b", or "A" (2) and "A_2", do not overwrite each other's files.
        while section.slug in sections:
            section = dataclasses.replace(section, number=section.number + 1)
        sections[section.slug] = section
    return list(sections.values())


def row_order(group: Group) -> tuple:
    """Sort key of a row: by the mean of the first metric; rows with varied settings last, by their values."""
    if group.varied:
        values = (setting_order(group.first.setting(name)) for name in group.varied)
        return 1, group.first.name, *values
    return 0, group.mean(group.first.metrics[0])


def setting_order(value: SettingValue) -> tuple[bool, float, str]:
    """Sort key of a setting's value: numbers by size, then everything else by its text."""
    if isinstance(value, (int, float)):
        return False, value, ""
    return True, 0.0, str(value)
