"""Tables of a report: test results, published results, cost, list of runs."""

import collections
import csv
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from reporting.blocks import Cell, Mark, Number, Table, Text, mean_with_sd
from reporting.groups import Group, Section
from reporting.runs import Run
from training.beyond import BEYOND
from training.cold import COLD_KINDS
from utils import UserError

PUBLISHED = Path(__file__).parent / "published.csv"
SPLIT_NAMES = {"train": "training", "valid": "validation", "test": "TEST"}
SECONDS = ("epoch_seconds", "evaluation_seconds")


# ---------------------------------------------------------------- conditions of the runs


def describe_protocol(section: Section) -> Text:
    """How the runs of a section selected their epoch and how they were scored."""
    run = section.first
    protocol = run.result.get("protocol", {})
    metric = protocol.get("selection_metric", run.config.selection_metric)
    masked = " and ".join(SPLIT_NAMES[name] for name in protocol.get("masked_at_test", ["train"]))
    dropout = ", dropout active while scoring" if run.config.eval_dropout else ""
    split = SPLIT_NAMES[run.config.select_on]
    return Text(
        f"Best epoch selected by {metric} on {split}; {masked} items masked at test{dropout}; "
        f"hash of the interactions: {run.interactions_hash[:8]}."
    )


def environment(run: Run) -> dict[str, str]:
    """Code version, software and hardware of a run, which may differ between comparable runs."""
    versions = run.result.get("versions", {})
    commit = str(versions.get("git_commit"))[:8]
    return {
        "git commit": commit + (" with uncommitted changes" if versions.get("git_dirty") else ""),
        **{name: str(versions.get(name)) for name in ("torch", "numpy", "python", "platform")},
        "device": str(run.result.get("device")),
        "threads": str(run.config.threads),
    }


def environment_notes(section: Section) -> list[Text]:
    """The environment that the runs of a section share, and a note for every part in which they differ."""
    # A dict in place of a set of names, because it keeps the order of the rows.
    seen: dict[str, dict[str, dict[str, None]]] = collections.defaultdict(
        lambda: collections.defaultdict(dict)
    )
    for group in section.groups:
        for run in group.runs:
            for part, value in environment(run).items():
                seen[part][value][group.name] = None
    shared = [f"{part} {next(iter(values))}" for part, values in seen.items() if len(values) == 1]
    notes = [Text(f"All runs: {', '.join(shared)}.")] if shared else []
    for part, values in seen.items():
        if len(values) > 1:
            listed = "; ".join(f"{value} ({', '.join(names)})" for value, names in values.items())
            notes.append(Text(f"The runs differ in {part}: {listed}."))
    return notes


def features_notes(section: Section) -> list[Text]:
    """A warning for every kind of features of which the rows have different ones, or have not recorded them.

    A model that uses no features has none. Rows with and without some features may share a table.
    """
    seen: dict[str, dict[str, list[str]]] = collections.defaultdict(lambda: collections.defaultdict(list))
    unknown = []
    for group in section.groups:
        features = group.first.features
        if features is None:
            unknown.append(group.name)
        for kind, digest in (features or {}).items():
            seen[kind][digest[:8]].append(group.name)
    notes = []
    for kind, rows in seen.items():
        if len(rows) > 1:
            listed = "; ".join(f"{digest} ({', '.join(names)})" for digest, names in rows.items())
            text = f"The rows were trained on different {kind} features, of these hashes: {listed}."
            notes.append(Text(text.replace("neighbours features", "neighbours"), warning=True))
    if unknown and len(section.groups) > 1:
        names = ", ".join(unknown)
        notes.append(Text(f"Not recorded by their version, and not compared: the features of {names}."))
    return notes


# ---------------------------------------------------------------- test results


def marks(means: Sequence[float]) -> list[Mark]:
    """ "best" for the largest and "second" for the second largest of several means; "" for all others."""
    if len(means) == 1:
        return [""]
    found: dict[float, Mark] = dict(zip(sorted(set(means), reverse=True), ("best", "second")))
    return [found.get(mean, "") for mean in means]


def results_table(section: Section) -> Table:
    """The main table: one row per group, one column per metric."""
    columns = []
    for metric in section.metrics:
        column_marks = marks([group.mean(metric) for group in section.groups])
        columns.append(
            [
                mean_with_sd(group.values(metric), mark=mark)
                for group, mark in zip(section.groups, column_marks)
            ]
        )
    leaks = " (leaks)" if section.first.config.select_on == "test" else ""
    return Table(
        f"Test results, {section.dataset}",
        f"{section.slug}_results",
        ["method", "recdim", "seeds", *section.metrics],
        [
            [group.name + leaks, group.first.config.recdim, len(group.runs), *cells]
            for group, *cells in zip(section.groups, *columns)
        ],
        "Mean ± sample standard deviation over seeds. Best result bold, second best underlined.",
    )


def read_published() -> list[dict[str, str]]:
    """Rows of published.csv."""
    try:
        with open(PUBLISHED, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))
    except OSError as error:
        reason = error.strerror
        raise UserError(f"{PUBLISHED}: cannot be read ({reason}); restore it from the repository") from None


def published_table(
    section: Section, published: Sequence[dict[str, str]], metrics: Sequence[str], title: str, slug: str
) -> Table | None:
    """Published values of these metrics on the section's dataset; None if there are none."""
    found: dict[tuple, dict[str, float]] = collections.defaultdict(dict)
    for entry in published:
        if entry["dataset"] == section.dataset and entry["metric"] in metrics:
            key = entry["method"], entry["setting"], entry["protocol"], entry["source"]
            found[key][entry["metric"]] = float(entry["value"])
    if not found:
        return None
    metrics = [metric for metric in metrics if any(metric in values for values in found.values())]
    formats = {metric: ".2f" if metric in SECONDS else ".4f" for metric in metrics}
    return Table(
        f"{title}, {section.dataset}",
        f"{section.slug}_{slug}",
        ["method", *metrics, "setting", "protocol", "source"],
        [
            [method, *(Number(values.get(name), format=formats[name]) for name in metrics), *origin]
            for (method, *origin), values in found.items()
        ],
        "Copied from the papers; features, hardware and tuning differ from those of the runs above. "
        "protocol: the part that the test split had in the choice, which makes figures too high.",
    )


def cold_table(section: Section) -> Table | None:
    """Recall and NDCG of warm and cold items at the largest K, a dash for kinds without results.

    None if no row has such results, as on data without cold items.
    """
    k = max(section.first.config.topks)
    names = [(kind, f"{name}@{k}") for kind in COLD_KINDS for name in ("recall", "ndcg")]
    rows: list[list[Cell]] = []
    for group in section.groups:
        found = [run.result.get("cold_items", {}) for run in group.runs]
        if all(entry.get("test") for entry in found):
            columns = ([entry["test"].get(kind, {}).get(name) for entry in found] for kind, name in names)
            cells = (Number(None) if None in values else mean_with_sd(values) for values in columns)
            rows.append([group.name, found[0]["vectors"], *cells])
    if not rows:
        return None
    return Table(
        f"Warm and cold items, {section.dataset}",
        f"{section.slug}_cold",
        ["method", "cold items by", *(f"{kind} {name}" for kind, name in names)],
        rows,
        "Cold items are held out of training entirely. warm, cold: the relevant items are those alone, and "
        "all items are ranked; cold among cold: cold items alone are ranked. Users without such relevant "
        "items are left out of a column. A dash: there are no such users, or fewer cold items than "
        f"{k} to rank. docs/robustness.md has the protocol.",
    )


def beyond_table(section: Section) -> Table | None:
    """Metrics beyond accuracy at the largest K; None if the runs are of versions that did not store them."""
    k = max(section.first.config.topks)
    names = [f"{name}@{k}" for name in BEYOND]
    rows: list[list[Cell]] = []
    for group in section.groups:
        found = [run.result.get("beyond_accuracy", {}).get("test", {}) for run in group.runs]
        if all(set(names) <= values.keys() for values in found):
            columns = ([values[name] for values in found] for name in names)
            formats = (".2f" if name.startswith(("novelty", "popularity")) else ".4f" for name in names)
            rows.append([group.name, *map(mean_with_sd, columns, formats)])
    if not rows:
        return None
    return Table(
        f"Beyond accuracy, {section.dataset}",
        f"{section.slug}_beyond",
        ["method", *names],
        rows,
        "Of the test lists, mean ± sample standard deviation over seeds. coverage: share of all items that "
        "are recommended to anybody. novelty: mean of -log2 of the share of users that have the item in "
        "training. popularity: mean number of training interactions of a recommended item. tail: share of "
        "recommended items outside the most popular ones that account for 80% of the training interactions. "
        "gini: inequality of how often items are recommended, 0 if all equally. "
        "docs/metrics.md has the formulas.",
    )


# ---------------------------------------------------------------- cost, list of runs


def seconds_table(section: Section) -> Table:
    """Training and evaluation time, and peak memory."""
    rows: list[list[Cell]] = []
    for group in section.groups:
        medians = [Number(median_of(group, key), format=".3f") for key in SECONDS]
        results = [run.result for run in group.runs]
        total = [result["seconds"] for result in results if result.get("seconds") is not None]
        memory = [result["peak_memory_mb"] for result in results if result.get("peak_memory_mb") is not None]
        rows.append(
            [
                group.name,
                *medians,
                mean_with_sd(total, ".1f") if total else Number(None),
                Number(max(memory, default=None), format=",.0f"),
                ", ".join(sorted({str(result.get("device")) for result in results})),
            ]
        )
    platforms = {environment(run)["platform"] for group in section.groups for run in group.runs}
    return Table(
        f"Time and memory, {section.dataset}",
        f"{section.slug}_seconds",
        ["method", *SECONDS, "run_seconds", "peak memory (MB)", "device"],
        rows,
        "Seconds per epoch and per evaluation: median over the evaluated epochs of all seeds. Seconds per "
        "run: mean ± sample standard deviation over seeds. Peak memory: maximum over seeds. "
        f"Platform: {'; '.join(sorted(platforms))}.",
    )


def median_of(group: Group, key: str) -> float | None:
    """Median of a value that metrics.jsonl has for every evaluation, over all runs; None if it is missing."""
    values = [
        entry[key] for run in group.runs for entry in run.evaluations if isinstance(entry.get(key), float)
    ]
    return float(np.median(values)) if values else None


def runs_table(runs: Sequence[Run], title: str = "Runs", slug: str = "runs") -> Table:
    """All runs with their status, last epoch and first test metric."""
    rows: list[list[Cell]] = []
    for run in runs:
        metric = run.metrics[0]
        rows.append(
            [
                str(run.folder),
                run.name,
                run.dataset,
                run.config.recdim,
                run.config.seed,
                run.status,
                last_epoch(run),
                metric,
                Number(run.result.get("test", {}).get(metric)),
                status_note(run),
            ]
        )
    header = ["folder", "method", "dataset", "recdim", "seed", "status", "epoch", "metric", "test", "note"]
    return Table(title, slug, header, rows)


def every_run_table(runs: Sequence[Run], varied: Sequence[str]) -> Table:
    """All finished runs with these settings, their environment and all metrics, at full precision."""
    results = []
    for run in runs:
        beyond = run.result.get("beyond_accuracy", {}).get("test", {})
        splits = {"valid": run.result.get("valid", {}), "test": {**run.result["test"], **beyond}}
        results.append(
            {f"{split} {name}": value for split, values in splits.items() for name, value in values.items()}
        )
    metrics = list(dict.fromkeys(name for result in results for name in result))
    rows: list[list[Cell]] = [
        [
            run.dataset,
            run.name,
            run.config.recdim,
            run.config.seed,
            run.config.select_on,
            run.result.get("best_epoch", ""),
            run.result.get("epochs", ""),
            Number(run.result.get("seconds")),
            *(str(run.setting(name)) for name in varied),
            *environment(run).values(),
            *(Number(result.get(name)) for name in metrics),
        ]
        for run, result in zip(runs, results)
    ]
    first = ["dataset", "method", "recdim", "seed", "selected on", "best epoch", "epochs", "seconds"]
    return Table("Every run", "runs", [*first, *varied, *environment(runs[0]), *metrics], rows)


def last_epoch(run: Run) -> int:
    """Last epoch that a run trained, or the last that it evaluated if it did not finish."""
    evaluated = run.evaluations[-1]["epoch"] if run.evaluations else 0
    return run.result.get("epochs", run.result.get("epoch", evaluated))


def status_note(run: Run) -> str:
    """Why a run did not finish; for a finished run, a warning if its epoch was selected on test."""
    if run.status == "finished":
        return "leaks: epoch selected on test" if run.config.select_on == "test" else ""
    if run.status == "unfinished":
        return "no result.json: still running, or killed"
    return str(run.result.get("reason") or run.result.get("error") or "")
