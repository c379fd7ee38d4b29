"""Time of a full evaluation, valid and test over all items, beside per-user loops and a training epoch.

    python benchmarks/evaluate.py --data $RECGOAT_TEST_DATA/baby --recdim 64
    python benchmarks/evaluate.py --shape electronics --recdim 200 --users 2000 --epoch 0 --train_steps 20
    python benchmarks/evaluate.py --data $RECGOAT_TEST_DATA/baby --users 0 --epoch 0 --prefilter both

The loops are those of benchmarks/textbook.py: a matrix-vector product, a mask, topk and Python sets for each
user and split. With --users they are timed on part of the users and their time is scaled to all. Both sides
rank the same vectors, and their metrics are compared. How long ours takes depends on how many relevant items
rank high, so the vectors are those of a LightGCN that is trained first.

--prefilter both also times the ranking with and without training/prefilter.py, on vectors of MF and of
LightGCN.
"""

import argparse
import contextlib
import dataclasses
import statistics
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from unittest import mock

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import torch
from tqdm import tqdm

from benchmarks import bench, textbook
from benchmarks.step import Ours, make_stepper
from dataloader import HeldOut
from models.registry import label
from session import make_model
from training import ranking
from training.evaluation import make_splits
from training.scoring import Scorer
from world import Config

KS = (10, 20)

# ---------------------------------------------------------------- inputs


def trained_scorer(model_name: str, config: Config, ours: Ours, steps: int) -> Scorer:
    """Scorer of a baseline after training steps on the dataset and batches of an Ours."""
    config = dataclasses.replace(config, model=model_name, lr=5e-3, decay=1e-2)
    model = make_model(config, ours.dataset, ours.device).train()
    make_step = make_stepper(
        lambda batch: model.loss(batch)["loss"],
        torch.optim.Adam(model.parameters(), lr=config.lr, fused=True),
        ours.batches,
        model.begin_step,
    )
    for _ in tqdm(range(steps), desc=f"training {label(model_name)}", leave=False, delay=2, disable=None):
        make_step()
    with torch.inference_mode():
        return Scorer(*model.eval().embeddings())


def items_by_user(pairs: np.ndarray, max_users: int) -> dict[int, list[int]]:
    """{user: items} of the first users in (user, item) pairs [n, 2]."""
    items: dict[int, list[int]] = {}
    for user, item in pairs.tolist():
        items.setdefault(user, []).append(item)
    return dict(sorted(items.items())[:max_users])


@contextlib.contextmanager
def prefilter(enabled: bool) -> Iterator[None]:
    """Rank with training/prefilter.py or without it in this block; metrics are the same either way."""
    with contextlib.nullcontext() if enabled else mock.patch("training.ranking.certain_misses", no_misses):
        yield


def no_misses(
    scorer: Scorer,
    split: HeldOut,
    row: torch.Tensor,
    column: torch.Tensor,
    k: int,
    chunk: int = 0,
    share: int = 8,
) -> torch.Tensor:
    """Stand-in for certain_misses that leaves every entry undecided."""
    return torch.zeros(len(row), dtype=torch.bool, device=row.device)


# ---------------------------------------------------------------- measurements


def measure(
    args: argparse.Namespace, recdim: int, device: torch.device, machine: bench.Machine
) -> bench.Figures:
    """Print the figures of one embedding size and return them."""
    config = bench.baby_config(recdim=recdim, precision=args.precision)
    ours = Ours(args.shape, config, args.data, device)
    splits = make_splits(ours.dataset.interactions, config, device)
    scorers = {"lgn": trained_scorer("lgn", config, ours, args.train_steps)}
    print(f"\nrecdim {recdim}")
    with prefilter(args.prefilter != "0"):
        figures = measure_evaluation(args, ours, scorers["lgn"], splits, machine)
    if args.prefilter == "both":
        scorers["mf"] = trained_scorer("mf", config, ours, args.train_steps)
        figures["prefilter"] = {
            name: compare_prefilter(args, label(name), scorers[name], splits, device)
            for name in ("mf", "lgn")
        }
    if args.epoch:
        figures["epoch"] = measure_epoch(ours, figures["total"])
    return {"recdim": recdim, **figures}


def measure_evaluation(
    args: argparse.Namespace, ours: Ours, scorer: Scorer, splits: Sequence[HeldOut], machine: bench.Machine
) -> bench.Figures:
    """Time the embeddings of RecGOAT and the ranking of other vectors, alternately with per-user loops."""
    ours.model.eval()

    def rank() -> list[dict[str, float]]:
        return ranking.evaluate(scorer, splits, KS, args.chunk)

    @torch.inference_mode()
    def embeddings() -> None:
        ours.model.embeddings()

    bench.reset_peak_memory()
    embeddings()
    metrics = rank()
    peak = bench.peak_memory(ours.device)
    calls = {"evaluation": rank, "embeddings": embeddings}
    if args.users:
        loops = UserLoops(args, ours, scorer)
        calls["loops"] = loops.evaluate
    seconds = bench.alternate(calls, args.repeats, ours.device)
    sizes = [len(split.users) for split in splits]
    rankings = sizes[0] if splits[1].has_same_ranking(splits[0]) else sum(sizes)
    n_items, d = scorer.item.shape
    bound = machine.floor(4 * rankings * n_items, 2 * rankings * n_items * d)
    total = statistics.median(seconds["evaluation"]) + statistics.median(seconds["embeddings"])
    print(
        f"  {sizes[0]} + {sizes[1]} users x {n_items} items, {rankings} rankings\n"
        f"  embeddings of RecGOAT {bench.format_times(seconds['embeddings'])}\n"
        f"  ranking and metrics {bench.format_times(seconds['evaluation'])}; computing all scores "
        f"takes at least {bound * 1e3:.3g} ms\n"
        f"  recall@20 {metrics[0]['recall@20']:.4f} and {metrics[1]['recall@20']:.4f}\n"
        f"  together {total:.3g} s, peak memory {peak:.0f} MB"
    )
    figures: bench.Figures = {
        "seconds": seconds,
        "total": total,
        "all_scores": bound,
        "metrics": metrics,
        "peak_memory_mb": peak,
    }
    if args.users:
        figures["loops_over_ours"] = loops.report(seconds, sizes, metrics)
    return figures


class UserLoops:
    """The textbook evaluation of the first --users users of both splits."""

    def __init__(self, args: argparse.Namespace, ours: Ours, scorer: Scorer):
        data = ours.dataset.interactions
        self.scorer = scorer
        self.masked = items_by_user(data.train, data.n_users)
        self.relevant = [items_by_user(pairs, args.users) for pairs in (data.valid, data.test)]
        self.metrics: list[dict[str, float]] = []

    @torch.inference_mode()
    def evaluate(self) -> None:
        """Compute the metrics of both splits."""
        self.metrics = [
            textbook.evaluate(self.scorer.user, self.scorer.item, self.masked, relevant, KS)
            for relevant in self.relevant
        ]

    def report(
        self, seconds: dict[str, list[float]], sizes: Sequence[int], metrics: list[dict[str, float]]
    ) -> float:
        """Print how the loops compare with ours: seconds and metrics of both. Returns the ratio of times."""
        scale = sum(sizes) / sum(map(len, self.relevant))
        loops = [scale * taken for taken in seconds["loops"]]
        ratio = bench.median_ratio(loops, seconds["evaluation"])
        line = f"  per-user loops {statistics.median(loops):.3g} s: {ratio:.0f} times as long"
        if scale == 1:
            line += f"; metrics differ by {largest_difference(metrics, self.metrics):.1e}"
        print(line)
        return ratio


def compare_prefilter(
    args: argparse.Namespace, name: str, scorer: Scorer, splits: Sequence[HeldOut], device: torch.device
) -> bench.Figures:
    """Time the ranking with and without the prefilter, alternately, and print the ratio."""
    metrics: dict[bool, list[dict[str, float]]] = {}

    def rank(enabled: bool) -> None:
        with prefilter(enabled):
            metrics[enabled] = ranking.evaluate(scorer, splits, KS, args.chunk)

    calls = {"with": lambda: rank(True), "without": lambda: rank(False)}
    seconds = bench.alternate(calls, args.repeats, device)
    ratio = bench.median_ratio(seconds["without"], seconds["with"])
    difference = largest_difference(metrics[True], metrics[False])
    print(
        f"  {name}: ranking with prefilter {bench.format_times(seconds['with'])}, without "
        f"{bench.format_times(seconds['without'])}: {ratio:.2f} times as long; "
        f"metrics differ by {difference:.1e}"
    )
    return {"seconds": seconds, "ratio": ratio, "metrics_difference": difference}


def largest_difference(a: list[dict[str, float]], b: list[dict[str, float]]) -> float:
    """Largest absolute difference of the metrics of the same splits."""
    return max(abs(x[name] - y[name]) for x, y in zip(a, b, strict=True) for name in x)


def measure_epoch(ours: Ours, evaluation: float) -> float:
    """Print the time of a training epoch, extrapolated from a few steps, and return it.

    evaluation: seconds of an evaluation, for comparison.
    """
    ours.model.train()
    ours.seconds()
    step = ours.seconds()
    epoch = step * -(-len(ours.dataset.interactions.train) // ours.config.bpr_batch)
    print(
        f"  a training epoch takes {epoch:.3g} s ({step:.3g} s per step), an evaluation "
        f"{100 * evaluation / epoch:.1f} % of that"
    )
    return epoch


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser(
        "Time and memory of a full evaluation beside per-user loops and a training epoch."
    )
    parser.add_argument("--recdim", type=int, nargs="+", default=[64], help="embedding sizes")
    parser.add_argument(
        "--chunk", type=int, default=0, help="users scored at a time; 0: chosen for the device"
    )
    parser.add_argument(
        "--users", type=int, default=10**9, help="users of each split for the loops; 0 omits the loops"
    )
    parser.add_argument(
        "--train_steps", type=int, default=1200, help="training steps of the models whose vectors are ranked"
    )
    parser.add_argument(
        "--prefilter",
        default="1",
        choices=("0", "1", "both"),
        help="0 ranks without training/prefilter.py; both also compares rankings with and without it",
    )
    parser.add_argument("--epoch", type=int, default=1, choices=(0, 1), help="0 omits the training epoch")
    parser.add_argument(
        "--precision", default="fp32", choices=("fp32", "tf32", "bf16"), help="of training, as in main.py"
    )
    args = parser.parse_args()
    device = bench.set_up(args)
    machine = bench.measure_machine(device)
    print(f"evaluation, {args.shape.name}: {bench.describe_machine(device, machine)}")
    figures = [measure(args, recdim, device, machine) for recdim in args.recdim]
    bench.write_figures(args, "evaluate", {"machine": vars(machine), "figures": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
