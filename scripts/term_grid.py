"""Draw the validation metrics of trained runs over the weights of the neighbourhood term.

    python scripts/term_grid.py runs/plus/*/ --output term_grid.png

Nothing is trained: each run is scored with other weights lambda (--neighbour_weight) and alpha
(--neighbour_content; docs/neighbours.md). Several runs, seeds of one setting, are averaged. The
figures are printed as well.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
from tqdm import tqdm

from cli import Parser, run_tool
from layers.sparse import from_scipy
from models.base import ItemWeights
from models.neighbours import neighbour_weights
from recommending.flags import checkpoint_path
from recommending.trained import load_run
from reporting.drawing import Line, draw_lines, encode
from training.evaluation import final_scorer, make_splits
from training.ranking import evaluate
from utils import UserError, atomic_write, check_output

METRICS = ("recall@20", "ndcg@20")


def grid(run: str, weights: Sequence[float], contents: Sequence[float]) -> np.ndarray:
    """METRICS on validation of a run with the term, for each alpha and lambda: [contents, weights, 2]."""
    model, dataset, config = load_run(checkpoint_path(run), {})
    if not config.neighbour_weight:
        raise UserError(f"{run}: was trained without the term; name runs with --neighbour_weight")
    valid, _ = make_splits(dataset.interactions, config, next(model.parameters()).device)
    found = np.empty((len(contents), len(weights), len(METRICS)))
    with final_scorer(model, dataset.interactions, config) as scorer:
        for row, alpha in enumerate(tqdm(contents, desc=Path(run).name, unit="alpha", leave=False)):
            matrix = neighbour_weights(dataclasses.replace(config, neighbour_content=alpha), dataset)
            for column, factor in enumerate(weights):
                term = ItemWeights(
                    from_scipy(matrix, scorer.item.device), factor, config.neighbour_scale == "spread"
                )
                [metrics] = evaluate(dataclasses.replace(scorer, weights=term), [valid], (20,))
                found[row, column] = [metrics[name] for name in METRICS]
    return found


def command(args: argparse.Namespace) -> None:
    """Score, print and draw."""
    check_output(args.output)
    found = np.stack([grid(run, args.weights, args.contents) for run in args.runs])  # [runs, ...]
    panels: dict[str, dict[str, Line]] = {}
    for index, name in enumerate(METRICS):
        print(f"validation {name}, mean of {len(found)} runs; columns are lambda")
        print("alpha   " + "".join(f"{weight:>8g}" for weight in args.weights))
        lines: dict[str, Line] = {}
        for row, alpha in enumerate(args.contents):
            values = found[:, row, :, index]
            print(f"{alpha:<8g}" + "".join(f"{value:8.4f}" for value in values.mean(0)))
            lines[f"alpha = {alpha:g}"] = (args.weights, values.mean(0), values.min(0), values.max(0))
        panels[f"validation {name}"] = lines
    with atomic_write(args.output) as file:
        file.write(encode(draw_lines(panels, "lambda"), "png"))
    print(f"wrote {args.output}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code."""
    parser = Parser(description="Validation metrics over the weights of the neighbourhood term.")
    parser.add_argument("runs", nargs="+", help="run folders or checkpoints, trained with the term")
    parser.add_argument(
        "--weights", type=float, nargs="+", default=[1.0, 2.0, 3.0, 4.0, 5.0, 7.0, 10.0, 15.0], help="lambda"
    )
    parser.add_argument("--contents", type=float, nargs="+", default=[0.05, 0.1, 0.2, 0.3, 0.4], help="alpha")
    parser.add_argument("--output", type=Path, default=Path("term_grid.png"), help="the figure")
    return run_tool(command, parser, argv)


if __name__ == "__main__":
    sys.exit(main())
