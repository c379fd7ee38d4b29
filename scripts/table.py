"""Print the test or validation results of finished runs as a table.

    python scripts/table.py runs/demo/TIME_SEED/*/      # one row per run, best result last
    python scripts/table.py --mean runs/lastfm/*/*/*/   # one row per name: mean and deviation over its seeds
    python scripts/table.py --metrics ndcg@20,coverage@20,novelty@20 runs/demo/TIME_SEED/*/
    python scripts/table.py --split valid runs/demo/TIME_SEED/*/  # validation results

A run is called by its --name. Without one it is named after its model or, where the runs lie in different
folders, after the folder that contains it.
"""

import argparse
import dataclasses
import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

from cli import Parser, run_tool
from models.registry import label
from outgoing import printable
from training.records import LEAVE_OUT, read_result, read_settings
from utils import UserError

METRIC_NAMES = ("recall", "ndcg")
SPLIT_NAMES = {"valid": "Validation", "test": "Test"}


@dataclasses.dataclass(frozen=True)
class Row:
    """A finished run. folder: name of the folder above the run folder; metrics: {"recall@20": 0.1, ...}.

    name is that of --name, or empty; selected_on is the split that the epoch was selected on. metrics are
    those of one split, with those beyond accuracy and on cold items if the run has them.
    """

    folder: str
    name: str
    model: str
    dataset: str
    seed: int
    best_epoch: int
    seconds: float
    selected_on: str
    metrics: dict[str, float]


def read_row(folder: Path, split: str) -> Row:
    """Read config.json and result.json of a run folder, with the metrics of "valid" or "test".

    Raises UserError if the run has no such metrics, as if it has not finished.
    """
    try:
        config = read_settings(folder / "config.json", LEAVE_OUT)
        result = read_result(folder / "result.json")
        return Row(
            folder=folder.resolve().parent.name,
            name=str(config.get("name", "")),
            model=config["model"],
            dataset=config["dataset"],
            seed=config["seed"],
            best_epoch=result["best_epoch"],
            seconds=result["seconds"],
            selected_on=result.get("protocol", {}).get("selected_on", "valid"),
            metrics=every_metric(result, split),
        )
    except KeyError as error:
        raise UserError(f"{folder}: not a finished run (its JSON files lack {error}); leave it out") from None


def every_metric(result: dict[str, Any], split: str) -> dict[str, float]:
    """Metrics of a split, those beyond accuracy, and as "cold recall@20" of warm and cold items."""
    kinds = result.get("cold_items", {}).get(split, {})
    named = {f"{kind} {name}": value for kind, metrics in kinds.items() for name, value in metrics.items()}
    return result[split] | result.get("beyond_accuracy", {}).get(split, {}) | named


def row_names(rows: Sequence[Row]) -> list[str]:
    """Name of each run: its --name, or its model, or its folder if there are several."""
    several = len({row.folder for row in rows}) > 1
    return [printable(row.name or (row.folder if several else label(row.model))) for row in rows]


def common_metrics(rows: Sequence[Row]) -> list[str]:
    """Metrics that all runs have, as ["recall@10", "recall@20", "ndcg@10", ...]."""
    shared = set.intersection(*(set(row.metrics) for row in rows))
    parts = [metric.partition("@") for metric in shared]
    known = [(name, int(k)) for name, _, k in parts if name in METRIC_NAMES and k.isdecimal()]
    known.sort(key=lambda part: (METRIC_NAMES.index(part[0]), part[1]))
    return [f"{name}@{k}" for name, k in known]


def asked_metrics(text: str, rows: Sequence[Row]) -> list[str]:
    """The metrics that --metrics names. Raises UserError if one of the runs lacks one of them."""
    metrics = text.split(",")
    for row in rows:
        if missing := [metric for metric in metrics if metric not in row.metrics]:
            raise UserError(
                f"--metrics {missing[0][:40]}: a run of {row.folder} has no such metric; it has "
                f"{', '.join(row.metrics)}"
            )
    return metrics


def run_table(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """Lines of a table with one row per run, worst result first."""
    widths = [max(len(metric) + 2, 11) for metric in metrics]
    names = [f"{metric:>{width}}" for metric, width in zip(metrics, widths)]
    header = [f"{'run':<12}{'seed':>6}{'best epoch':>12}", *names]
    lines = ["".join([*header, f"{'seconds':>9}"])]
    named = zip(row_names(rows), rows)
    for name, row in sorted(named, key=lambda pair: [pair[1].metrics[metric] for metric in metrics]):
        values = "".join(f"{row.metrics[metric]:>{width}.4f}" for metric, width in zip(metrics, widths))
        lines.append(f"{name:<12}{row.seed:>6}{row.best_epoch:>12}{values}{row.seconds:>9.1f}")
    return lines


def mean_table(rows: Sequence[Row], metrics: Sequence[str]) -> list[str]:
    """Lines of a table with one row per name: mean and sample standard deviation over its seeds.

    Raises UserError if two runs of a name have the same seed.
    """
    runs: dict[str, dict[int, dict[str, float]]] = {}
    for name, row in zip(row_names(rows), rows):
        by_seed = runs.setdefault(name, {})
        if row.seed in by_seed:
            raise UserError(f"{name}: has two runs of seed {row.seed}; leave one of them out")
        by_seed[row.seed] = row.metrics
    lines = [f"{'run':<20}{'seeds':>6}" + "".join(f"{metric:>18}" for metric in metrics)]
    cells = []
    for name, by_seed in runs.items():
        columns = [[of_seed[metric] for of_seed in by_seed.values()] for metric in metrics]
        values = "".join(f"{mean_and_deviation(column):>18}" for column in columns)
        cells.append(
            ([statistics.mean(column) for column in columns], f"{name:<20}{len(by_seed):>6}{values}")
        )
    return lines + [line for _, line in sorted(cells)]


def mean_and_deviation(values: Sequence[float]) -> str:
    """Values over seeds as "0.1234 ± 0.0012"; the deviation of a single value is shown as 0."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return f"{statistics.mean(values):.4f} ± {deviation:.4f}"


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="table.py", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="folders of finished runs")
    parser.add_argument(
        "--mean", action="store_true", help="one row per name: mean and standard deviation over its seeds"
    )
    parser.add_argument(
        "--split", default="test", choices=["valid", "test"], help="split of the results (default test)"
    )
    parser.add_argument(
        "--metrics",
        default="",
        metavar="NAME@K,...",
        help="columns of the table, by which it is sorted (default: recall and ndcg at every K)",
    )
    return parser


def command(args: argparse.Namespace) -> None:
    """Read the runs and print their table."""
    rows = [read_row(folder, args.split) for folder in args.folders]
    metrics = asked_metrics(args.metrics, rows) if args.metrics else common_metrics(rows)
    lines = (mean_table if args.mean else run_table)(rows, metrics)
    datasets = sorted({row.dataset for row in rows})
    title = f"{SPLIT_NAMES[args.split]} results on {printable(', '.join(datasets))}"
    selected_on = " or ".join(sorted({SPLIT_NAMES[row.selected_on].lower() for row in rows}))
    print(f"{title} at the epoch selected on {selected_on}")
    print("\n".join(lines))


if __name__ == "__main__":
    sys.exit(run_tool(command, make_parser()))
