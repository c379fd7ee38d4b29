"""Report the test results of trained RecGOAT runs when they are scored with other fusion weights.

    python -m scripts.fusion_weights runs/paper/baby_small/RecGOAT/*/*/ --output report/weights_baby_small

Nothing is trained. The runs are those of one setting with several seeds, over which the table has mean and
standard deviation. They need text and images, whose weights are --beta and --alpha of main.py; the ID vector
has the rest.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from typing import NamedTuple

from tqdm import tqdm

from cli import Parser, run_tool
from recommending.flags import checkpoint_path
from recommending.trained import load_run
from reporting.blocks import Cell, Number, Table, mean_with_sd
from reporting.render import write_report
from training.evaluation import Metrics, make_splits, score
from utils import UserError


class Weights(NamedTuple):
    """Weights of the modalities in eq. 14."""

    text: float
    image: float


OTHERS = (Weights(0.0, 0.0), Weights(0.5, 0.25), Weights(1.0, 0.0), Weights(0.0, 1.0))


def score_run(run: str, weights: Weights | None = None) -> tuple[Weights, Metrics]:
    """The weights of a run, its own or those given, and its metrics on test with them."""
    given = {} if weights is None else {"beta": weights.text, "alpha": weights.image}
    model, dataset, config = load_run(checkpoint_path(run), given)
    is_weighted = config.model == "lgn_mm" and config.fusion == "oat" and not config.learn_fusion_weights
    if not is_weighted or set(dataset.features) != {"text", "image"}:
        raise UserError(
            f"{run}: has no fixed weights of text and image; name runs of --model lgn_mm --fusion oat with "
            "these two"
        )
    _, test = make_splits(dataset.interactions, config, next(model.parameters()).device)
    [metrics] = score(model, dataset.interactions, [test], config)
    return Weights(config.beta, config.alpha), metrics


def table(runs: Sequence[str]) -> Table:
    """A row for the weights of the runs, and one for each of OTHERS."""
    own, found = zip(*(score_run(run) for run in tqdm(runs, "own weights", unit="run", leave=False)))
    if len(set(own)) > 1:
        raise UserError(
            f"{runs[0]}: some runs have other fusion weights than this one; name those of one setting"
        )
    results = {own[0]: found}
    for weights in tqdm(OTHERS, unit="weights", leave=False):
        results[weights] = tuple(score_run(run, weights)[1] for run in runs)
    metrics = list(dict.fromkeys(name for name in found[0] if name.startswith(("recall", "ndcg"))))
    rows: list[list[Cell]] = [
        [
            *(Number(weight, format=".2f") for weight in (*weights, 1 - sum(weights))),
            *(mean_with_sd([each[name] for each in scores]) for name in metrics),
        ]
        for weights, scores in results.items()
    ]
    note = "The first row has the weights of training. Mean ± sample standard deviation over the runs."
    return Table(
        "Test results by fusion weights", "fusion_weights", ["text", "image", "ID", *metrics], rows, note
    )


def command(args: argparse.Namespace) -> None:
    """Score the runs and write the report."""
    files = write_report(args.output, "Fusion weights", [table(args.runs)])
    print(f"wrote {args.output}: {', '.join(files)}")


def make_parser() -> Parser:
    """The flags."""
    parser = Parser(
        prog="python -m scripts.fusion_weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("runs", nargs="+", metavar="RUN", help="run folders or checkpoints")
    parser.add_argument(
        "--output", default="report", metavar="FOLDER", help="folder of the report (default: report)"
    )
    return parser


if __name__ == "__main__":
    sys.exit(run_tool(command, make_parser()))
