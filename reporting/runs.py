"""Run folders as a report sees them: read, grouped into rows, and refused where they must not stand together."""

import collections
import dataclasses
import json
from pathlib import Path

import numpy as np

from utils import UserError
from world import Config, settings_of

USUAL = {"mf": "MF", "lgn": "LightGCN", "vbpr": "VBPR", "freedom": "FREEDOM", "lgn_mm": "RecGOAT"}
DATASETS = {"baby": "Baby", "sports": "Sports", "electronics": "Electronics"}
COMPARED = [
    field.name for field in dataclasses.fields(Config) if not field.metadata["free"] and field.name != "seed"
]


# ---------------------------------------------------------------- reading


@dataclasses.dataclass(frozen=True)
class Run:
    """A run folder, read. result: {} where there is no result.json; lines: the evaluations of metrics.jsonl."""

    folder: Path
    config: Config
    result: dict
    lines: list

    @property
    def name(self):
        """What tables call this run."""
        return self.config.name or USUAL[self.config.model]

    @property
    def dataset(self):
        """The dataset's name as papers write it."""
        name = Path(self.config.dataset).name
        return DATASETS.get(name.removesuffix("_raw"), name)

    @property
    def status(self):
        """finished, interrupted, failed or unfinished."""
        return self.result.get("status", "unfinished")

    @property
    def interactions(self):
        """Hash of the interactions, "unknown" in a run older than this entry."""
        return self.result.get("data", {}).get("interactions", "unknown")


def read_json(path):
    """A JSON object of a run folder. Raises UserError if the file does not hold one."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(
            f"{path}: cannot be read ({str(error)[:80]}); mend it or leave this run out"
        ) from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: holds no JSON object; mend it or leave this run out")
    return value


def read_lines(path):
    """The lines of a metrics.jsonl as dicts, without one that is half-written; [] where there is no file."""
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines() if path.exists() else []:
        try:
            lines.append(json.loads(text))
        except ValueError:
            continue
    return [line for line in lines if isinstance(line, dict) and "epoch" in line]


def read_run(folder):
    """A run folder -> Run. Raises UserError if a file in it is damaged."""
    try:
        config = Config(**settings_of(read_json(folder / "config.json"), folder / "config.json"))
    except UserError as error:
        raise UserError(
            str(error) if str(folder) in str(error) else f"{folder / 'config.json'}: {error}"
        ) from None
    result = read_json(folder / "result.json") if (folder / "result.json").exists() else {}
    run = Run(folder, config, result, read_lines(folder / "metrics.jsonl"))
    if not all(isinstance(result.get(part, {}), dict) for part in ("test", "data", "protocol", "versions")):
        raise UserError(
            f"{folder / 'result.json'}: is no result of this program; mend it or leave this run out"
        )
    if run.status == "finished" and not all(
        isinstance(result.get("test", {}).get(metric), float) for metric in metrics_of(run)
    ):
        raise UserError(f"{folder / 'result.json'}: lacks test metrics; mend it or leave this run out")
    return run


def find_folders(paths):
    """Run folders among these folders and below them, each once. Raises UserError for a path without any."""
    found = {}
    for path in map(Path, paths):
        folders = (
            [path]
            if (path / "config.json").exists()
            else sorted(file.parent for file in path.rglob("config.json"))
        )
        if not folders:
            raise UserError(
                f"{path}: no run folder is there or below (a run folder holds config.json); name one, as runs"
            )
        found |= {folder.resolve(): folder for folder in folders}
    return list(found.values())


def metrics_of(run):
    """['recall@10', 'recall@20', 'ndcg@10', ...] at the cut-offs of a run."""
    return [f"{name}@{k}" for name in ("recall", "ndcg") for k in sorted(run.config.topks)]


# ---------------------------------------------------------------- what may stand together


@dataclasses.dataclass(frozen=True)
class Group:
    """The runs of one row, in the order of their seeds. varied: settings that tell it from other rows of its name."""

    runs: list
    varied: tuple = ()

    @property
    def first(self):
        """A run to ask for what all runs share."""
        return self.runs[0]

    @property
    def name(self):
        """What the row is called."""
        return label(self.first, self.varied)

    def values(self, metric):
        """Test metric of every run."""
        return [run.result["test"][metric] for run in self.runs]


def label(run, settings):
    """'RecGOAT, item_knn_k 20'"""
    return ", ".join([run.name, *(f"{setting} {getattr(run.config, setting)}" for setting in settings)])


def make_groups(runs, varied):
    """Finished runs -> Groups: by dataset, name, and the settings in `varied` that differ within a name."""
    named, groups = collections.defaultdict(list), collections.defaultdict(list)
    for run in runs:
        named[run.dataset, run.name].append(run)
    for key, members in named.items():
        apart = tuple(
            setting for setting in varied if len({getattr(run.config, setting) for run in members}) > 1
        )
        for run in members:
            groups[key, apart, tuple(getattr(run.config, setting) for setting in apart)].append(run)
    return [
        Group(sorted(members, key=lambda run: run.config.seed), apart)
        for (_, apart, _), members in groups.items()
    ]


def check_group(group):
    """Raise UserError unless the runs of a Group differ in their seeds and in nothing else that counts."""
    for other in group.runs[1:]:
        changes = differences(group.first, other)
        if changes:
            raise UserError(
                f"{group.name} on {other.dataset}: {group.first.folder} and {other.folder} differ in {', '.join(changes)} and "
                "have no common mean; report them apart or train with a --name each (--list shows all)"
            )
    for run, other in zip(group.runs, group.runs[1:]):
        if run.config.seed == other.config.seed:
            raise UserError(
                f"{group.name} on {run.dataset}: {run.folder} and {other.folder} have the same seed, {run.config.seed}; "
                "leave one out (--list shows all)"
            )


def differences(run, other):
    """['lr (0.001, 0.01)', ...]: in what two runs differ that a mean over seeds must not hide."""
    pairs = {name: (getattr(run.config, name), getattr(other.config, name)) for name in COMPARED}
    hashes = [each.result.get("data", {}) for each in (run, other)]
    pairs |= {
        f"data: {part}": tuple(str(data.get(part, "unknown"))[:12] for data in hashes)
        for part in ("interactions", "all")
    }
    pairs["protocol"] = tuple(
        json.dumps(each.result.get("protocol"), sort_keys=True) for each in (run, other)
    )
    return [f"{name} ({one}, {two})" for name, (one, two) in pairs.items() if one != two]


def split_groups(groups):
    """Groups -> lists of Groups that may stand in one table, in the order of the varied settings, else of the first metric."""
    sections = collections.defaultdict(list)
    for group in groups:
        run = group.first
        sections[
            run.dataset,
            run.interactions,
            json.dumps(run.result.get("protocol"), sort_keys=True),
            run.config.topks,
        ].append(group)
    return [sorted(section, key=place) for section in sections.values()]


def place(group):
    """Sort key of a row: its name and the values of its varied settings, behind all others; else its mean of the first metric."""
    if group.varied:
        return 1, group.first.name, *(getattr(group.first.config, setting) for setting in group.varied)
    return 0, np.mean(group.values(metrics_of(group.first)[0]))
