"""Print a table of finished runs, from config.json and result.json in their folders.

    python scripts/table.py runs/demo/*/*/                  # one row per run, sorted by test metrics
    python scripts/table.py --mean runs/lastfm/*/*/*/       # one row per name, statistics over its seeds

The statistics are the mean and the sample standard deviation.
Rows are named after the model or, if the runs lie in different parent folders, after the parent folder.
"""

import json
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

NAMES = {"mf": "MF", "lgn": "LightGCN", "lgn_mm": "RecGOAT"}

# (settings of a run, its result.json)
Run = tuple[dict[str, Any], dict[str, Any]]


def read_run(folder: str) -> Run:
    """Read the settings and the result of a run; the settings gain "group", the name of the parent folder.

    Raises ValueError if the run has not finished.
    """
    try:
        config, result = (
            json.loads((Path(folder) / name).read_text()) for name in ("config.json", "result.json")
        )
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: is not a finished run ({error})") from None
    if "test" not in result:
        raise ValueError(f"{folder}: is not a finished run (result.json holds no test metrics)")
    return {**config, "group": Path(folder).resolve().parent.name}, result


def metric_columns(runs: Sequence[Run], names: Sequence[str] = ("recall", "ndcg")) -> list[str]:
    """Metrics that all runs have, as ['recall@10', 'recall@20', 'ndcg@10', ...]."""
    shared = set.intersection(*(set(result["test"]) for _, result in runs))
    found = [metric for metric in shared if metric.split("@")[0] in names]
    return sorted(found, key=lambda metric: (names.index(metric.split("@")[0]), int(metric.split("@")[1])))


def run_table(runs: Sequence[Run]) -> list[str]:
    """Lines of a table with one row per run, worst test result first."""
    metrics = metric_columns(runs)
    groups = {config["group"] for config, _ in runs}
    header = f"{'run':<12}{'seed':>6}{'best epoch':>12}"
    lines = [header + "".join(f"{metric:>11}" for metric in metrics) + f"{'seconds':>9}"]
    for config, result in sorted(runs, key=lambda run: [run[1]["test"][metric] for metric in metrics]):
        start = f"{run_name(config, groups):<12}{config['seed']:>6}{result['best_epoch']:>12}"
        cells = "".join(f"{result['test'][metric]:>11.4f}" for metric in metrics)
        lines.append(start + cells + f"{result['seconds']:>9.1f}")
    return lines


def run_name(config: dict[str, Any], groups: set[str]) -> str:
    """Name of a run in a table of runs from these parent folders."""
    return config["group"] if len(groups) > 1 else NAMES.get(config["model"], config["model"])


def mean_table(runs: Sequence[Run]) -> list[str]:
    """Lines of a table with one row per name: mean and sample standard deviation over its seeds, worst first.

    Raises ValueError if a name has two runs of one seed.
    """
    metrics = metric_columns(runs)
    groups = {config["group"] for config, _ in runs}
    tests_by_name: dict[str, dict[int, dict[str, float]]] = {}
    for config, result in runs:
        name = run_name(config, groups)
        tests = tests_by_name.setdefault(name, {})
        if config["seed"] in tests:
            raise ValueError(f"{name}: has two runs of seed {config['seed']}; name one of them")
        tests[config["seed"]] = result["test"]

    def cell(values: list[float]) -> str:
        return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"

    rows = sorted(
        (statistics.mean(test[metrics[0]] for test in tests.values()), name)
        for name, tests in tests_by_name.items()
    )
    lines = [f"{'run':<20}{'seeds':>6}" + "".join(f"{metric:>18}" for metric in metrics)]
    for _, name in rows:
        by_seed = list(tests_by_name[name].values())
        cells = "".join(f"{cell([test[metric] for test in by_seed]):>18}" for metric in metrics)
        lines.append(f"{name:<20}{len(by_seed):>6}{cells}")
    return lines


def main(arguments: Sequence[str]) -> int:
    """Print the table of the given run folders. Returns 0, or 2 on bad input (one line on stderr)."""
    mean = arguments[:1] == ["--mean"]
    folders = arguments[1:] if mean else arguments
    if not folders or folders[0] in ("-h", "--help"):
        print((__doc__ or "").strip(), file=sys.stdout if folders else sys.stderr)
        return 0 if folders else 2
    try:
        runs = [read_run(folder) for folder in folders]
        lines = mean_table(runs) if mean else run_table(runs)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    datasets = {config["dataset"] for config, _ in runs}
    print(f"test split of {', '.join(sorted(datasets))}, at the epoch chosen on validation")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
