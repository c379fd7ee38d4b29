"""The neighbourhood term: size, build time and memory of its weights W, and what it adds to an evaluation.

    python benchmarks/item_weights.py --data $RECGOAT_TEST_DATA/baby --keep 0 200 100
    python benchmarks/item_weights.py --shape 192403x63001x1254441x64x64 --train_steps 0

The second has the size of Electronics with narrow features. Features are random, in clusters. The evaluation
ranks validation and test with a LightGCN that is trained first, with the term and without.
"""

import argparse
import dataclasses
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import scipy.sparse as sp
import torch

from benchmarks import bench
from benchmarks.evaluate import KS, trained_scorer
from benchmarks.step import Ours
from dataloader import pairs_to_rows
from layers.sparse import from_scipy
from models.base import ItemWeights
from models.neighbours import neighbour_weights
from training.evaluation import make_splits
from training.ranking import evaluate
from training.scoring import Scorer


def build(
    args: argparse.Namespace, ours: Ours, keep: int, device: torch.device
) -> tuple[sp.csr_matrix, dict]:
    """W with at most `keep` entries for each item (0: all), and the figures of its making."""
    config = dataclasses.replace(ours.config, neighbour_weight=args.weight, neighbour_keep=keep)
    bench.reset_peak_memory()
    seconds, weights = bench.time_call(lambda: neighbour_weights(config, ours.dataset), device)
    peak = bench.peak_memory(device)
    print(
        f"keep {keep or 'all'}: {weights.nnz / 1e6:.2f} million weights in {seconds:.2f} s, peak memory "
        f"{peak:.0f} MB"
    )
    return weights, {"keep": keep, "entries": weights.nnz, "seconds": seconds, "peak_memory_mb": peak}


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser("The neighbourhood term: its weights, and what it adds to an evaluation.")
    parser.add_argument("--keep", type=int, nargs="+", default=[0], help="values of --neighbour_keep")
    parser.add_argument("--weight", type=float, default=8.0, help="weight lambda of the term")
    parser.add_argument("--train_steps", type=int, default=300, help="of the LightGCN; 0: no evaluation")
    args = parser.parse_args()
    device = bench.set_up(args)
    machine = bench.measure_machine(device)
    print(f"Neighbourhood term: {bench.describe_machine(device, machine)}")
    ours = Ours(args.shape, bench.baby_config(recdim=64), args.data, device)
    built = [build(args, ours, keep, device) for keep in args.keep]
    figures: bench.Figures = {"weights": [found for _, found in built]}
    if args.train_steps:
        data = ours.dataset.interactions
        splits = make_splits(data, ours.config, device)
        plain = trained_scorer("lgn", ours.config, ours, args.train_steps)
        history = pairs_to_rows(data.train, data.n_users, device)
        scorers = {"without": plain}
        for matrix, found in built:
            weights = ItemWeights(from_scipy(matrix, device), args.weight)
            scorers[f"keep {found['keep'] or 'all'}"] = Scorer(plain.user, plain.item, weights, history)
        calls = {name: lambda scorer=scorer: evaluate(scorer, splits, KS) for name, scorer in scorers.items()}
        seconds = bench.alternate(calls, args.repeats, device)
        for name, taken in seconds.items():
            ratio = bench.median_ratio(taken, seconds["without"])
            print(f"evaluation, {name}: {bench.format_times(taken)}, {ratio:.2f} times as long as without")
        figures["evaluation"] = seconds
    bench.write_figures(args, "item_weights", {"machine": vars(machine), **figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
