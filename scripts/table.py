"""Print one table of finished runs, read from the config.json and result.json of their folders.

    python scripts/table.py runs/demo/*/*/                  # a row a folder, in the order of their test recall
    python scripts/table.py --mean runs/lastfm/*/*/*/       # a row a name: mean and standard deviation over its runs

A row bears the model's name or, where the folders above the runs differ, the name of that folder.
"""

import json
import statistics
import sys
from pathlib import Path

NAMES = {"mf": "MF", "lgn": "LightGCN", "lgn_mm": "RecGOAT"}


def read_run(folder):
    """A run folder -> (settings, result) as dicts; the settings gain "group", the folder above it. Raises ValueError, in one line, if the run is not finished."""
    try:
        config, result = (
            json.loads((Path(folder) / name).read_text()) for name in ("config.json", "result.json")
        )
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"{folder}: is not a finished run ({error})") from None
    if "test" not in result:
        raise ValueError(f"{folder}: is not a finished run (result.json holds no test metrics)")
    return {**config, "group": Path(folder).resolve().parent.name}, result


def columns(results, names=("recall", "ndcg")):
    """Metrics that all results have, as ['recall@10', 'recall@20', 'ndcg@10', ...]."""
    shared = set.intersection(*(set(result["test"]) for result in results))
    found = [metric for metric in shared if metric.split("@")[0] in names]
    return sorted(found, key=lambda metric: (names.index(metric.split("@")[0]), int(metric.split("@")[1])))


def table(runs):
    """[(settings, result)] -> lines of a table, worst test result first."""
    metrics = columns([result for _, result in runs])
    groups = {config["group"] for config, _ in runs}
    runs = sorted(runs, key=lambda run: [run[1]["test"][metric] for metric in metrics])
    lines = [
        "".join(
            [
                f"{'run':<12}{'seed':>6}{'best epoch':>12}",
                *(f"{metric:>11}" for metric in metrics),
                f"{'seconds':>9}",
            ]
        )
    ]
    for config, result in runs:
        lines.append(
            "".join(
                [
                    f"{run_name(config, groups):<12}{config['seed']:>6}{result['best_epoch']:>12}",
                    *(f"{result['test'][metric]:>11.4f}" for metric in metrics),
                    f"{result['seconds']:>9.1f}",
                ]
            )
        )
    return lines


def run_name(config, groups):
    """What a run is called in a table of these groups."""
    return config["group"] if len(groups) > 1 else NAMES.get(config["model"], config["model"])


def mean_table(runs):
    """[(settings, result)] -> lines of a table: a row a name, with mean and (sample) standard deviation over its seeds.

    Raises ValueError if a name has two runs of one seed.
    """
    metrics = columns([result for _, result in runs])
    groups, named = {config["group"] for config, _ in runs}, {}
    for config, result in runs:
        seeds = named.setdefault(run_name(config, groups), {})
        if config["seed"] in seeds:
            raise ValueError(
                f"{run_name(config, groups)}: has two runs of seed {config['seed']}; name one of them"
            )
        seeds[config["seed"]] = result["test"]

    def cell(values):
        return f"{statistics.mean(values):.4f} ± {statistics.stdev(values) if len(values) > 1 else 0:.4f}"

    rows = sorted(
        (statistics.mean(test[metrics[0]] for test in seeds.values()), name) for name, seeds in named.items()
    )
    lines = ["".join([f"{'run':<20}{'seeds':>6}", *(f"{metric:>18}" for metric in metrics)])]
    for _, name in rows:
        tests = list(named[name].values())
        lines.append(
            "".join(
                [
                    f"{name:<20}{len(tests):>6}",
                    *(f"{cell([test[metric] for test in tests]):>18}" for metric in metrics),
                ]
            )
        )
    return lines


def main(folders):
    """Print the table of these run folders. Returns the exit code: 0, or 2 on bad input (one line on stderr)."""
    mean, folders = folders[:1] == ["--mean"], folders[folders[:1] == ["--mean"] :]
    if not folders or folders[0] in ("-h", "--help"):
        print(__doc__.strip(), file=sys.stdout if folders else sys.stderr)
        return 0 if folders else 2
    try:
        runs = [read_run(folder) for folder in folders]
        lines = mean_table(runs) if mean else table(runs)
    except ValueError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    dataset = {config["dataset"] for config, _ in runs}
    print(f"test split of {', '.join(sorted(dataset))}, at the epoch chosen on validation")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
