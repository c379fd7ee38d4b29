"""Time and memory of a run end to end: kNN graphs, one training epoch and one evaluation.

    python benchmarks/epoch.py --shape electronics --recdim 200
    python benchmarks/epoch.py --shape baby --recdim 800 --precision bf16
    python benchmarks/epoch.py --shape electronics --recdim 200 --steps 20    # extrapolated from 20 steps

The functions are those of the trainer. Graphs are built without a cache. Each line is printed as soon as it
is measured, with its lower bound: the phases of a step as benchmarks/step.py counts them, all scores of an
evaluation, half of the similarities of a kNN graph. On a GPU, epoch and evaluation are made twice, and the
first time, which loads kernels, does not count.
"""

import argparse
import itertools
import sys
import typing
from collections.abc import Callable, Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import torch

from benchmarks import bench
from benchmarks.step import step_floor
from data.graphs import nearest_neighbours
from dataloader import Batch, Dataset, HeldOut, Sampler
from layers.device import on_cpu
from model import RecGOAT
from procedure import float32_products, train_epoch
from training.evaluation import make_splits, score
from training.memory import keep_freed_memory
from training.run import Progress, Run, start_run
from world import Config

Result = typing.TypeVar("Result")


class FirstBatches(Sampler):
    """A sampler whose epoch consists of the first batches of another sampler's epoch."""

    def __init__(self, sampler: Sampler, count: int):
        self.sampler, self.count, self.pairs = sampler, min(count, len(sampler)), sampler.pairs

    def __len__(self) -> int:
        """Batches in an epoch."""
        return self.count

    def epoch(self, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches."""
        return itertools.islice(self.sampler.epoch(skip), self.count)


class Recorder:
    """Times calls, prints a line for each, and collects the figures."""

    def __init__(self, device: torch.device, machine: bench.Machine):
        self.device, self.machine = device, machine
        self.figures: bench.Figures = {}
        self.highest = 0.0  # peak memory of the calls within the present one

    def measure(
        self,
        name: str,
        call: Callable[[], Result],
        floor: float = 0.0,
        scale: float = 1.0,
        warm_up: bool = False,
    ) -> Result:
        """Result of a call.

        floor: lower bound of its seconds (0: unknown); scale: factor by which its time is extrapolated;
        warm_up: whether a GPU makes it once before.
        """
        if warm_up and not on_cpu(self.device):
            call()
        outer, self.highest = self.highest, 0.0
        bench.reset_peak_memory()
        seconds, result = bench.time_call(call, self.device)
        seconds, peak = scale * seconds, max(bench.peak_memory(self.device), self.highest)
        self.highest = max(outer, peak)
        self.figures[name] = {"seconds": seconds, "floor": floor, "peak_memory_mb": peak}
        bound = f"   {seconds / floor:>5.1f} times its floor" if floor else ""
        print(f"{name:<28}{seconds:>9.3g} s   peak memory {peak:>6.0f} MB{bound}", flush=True)
        return result


def build_dataset(args: argparse.Namespace, config: Config, recorder: Recorder) -> Dataset:
    """The dataset, with each kNN graph measured on its own."""

    def find_neighbours(matrix: np.ndarray) -> np.ndarray:
        return recorder.measure(
            f"kNN graph, {matrix.shape[0]} x {matrix.shape[1]}",
            lambda: nearest_neighbours(matrix, config.item_knn_k, recorder.device),
            recorder.machine.floor(matrix.nbytes, matrix.shape[0] * matrix.size),
        )

    return bench.make_dataset(args.shape, config, recorder.device, args.data, find_neighbours)


def measure_training(args: argparse.Namespace, run: Run, recorder: Recorder) -> None:
    """Train for an epoch, or for --steps of its steps."""
    steps, name = len(run.sampler), f"training epoch, {len(run.sampler)} steps"
    batches, optimizer = FirstBatches(run.sampler, args.steps or steps), run.optimizer
    assert optimizer is not None and isinstance(run.model, RecGOAT)
    floor = steps * step_floor(run.model, next(batches.epoch()), recorder.machine)

    def train() -> Progress:
        progress = Progress()
        train_epoch(run.model, optimizer, batches, progress, step=run.step)
        return progress

    with float32_products("high" if run.config.precision == "tf32" else "highest"):
        progress = recorder.measure(name, train, floor, steps / len(batches), warm_up=True)
    print(
        f"  {recorder.figures[name]['seconds'] / steps:.3g} s per step, measured over {len(batches)} steps; "
        f"mean loss {float(progress.sums['loss']) / len(batches):.4f}"
    )


def measure(args: argparse.Namespace, device: torch.device, machine: bench.Machine) -> bench.Figures:
    """Print the lines and return the figures."""
    recorder = Recorder(device, machine)
    config = bench.baby_config(
        recdim=args.recdim, bpr_batch=args.batch, precision=args.precision, cuda_graph=args.cuda_graph
    )
    dataset = recorder.measure("data and graphs, all", lambda: build_dataset(args, config, recorder))
    model = RecGOAT(config, dataset).to(device)
    # Nothing is written: the run folder is never created.
    run = start_run(model, dataset, config, bench.ROOT / "runs" / "benchmarks" / "epoch", device)
    measure_training(args, run, recorder)
    data, splits = dataset.interactions, make_splits(dataset.interactions, config, device)

    def evaluate(name: str, parts: list[HeldOut]) -> list[dict[str, float]]:
        scores = sum(len(part.users) for part in parts) * data.n_items
        floor = machine.floor(4 * scores, 2 * scores * config.recdim)
        return recorder.measure(name, lambda: score(model, data, parts, config), floor, warm_up=True)

    evaluate("evaluation, valid", [splits[0]])
    metrics = evaluate("evaluation, valid and test", list(splits))
    print(
        f"  {len(splits[0].users)} and {len(splits[1].users)} users x {data.n_items} items; "
        f"metrics on valid {metrics[0]}"
    )
    return recorder.figures


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser("Time and peak memory of kNN graphs, one training epoch and one evaluation.")
    parser.add_argument("--recdim", type=int, default=64, help="embedding size")
    parser.add_argument("--batch", type=int, default=4096, help="triples in a step")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16"), help="as in main.py")
    parser.add_argument("--cuda_graph", default="0", choices=("auto", "0", "1"), help="as in main.py")
    parser.add_argument("--steps", type=int, default=0, help="training steps to measure; 0: a whole epoch")
    args = parser.parse_args()
    device = bench.set_up(args)
    machine = bench.measure_machine(device)
    keep_freed_memory()
    print(
        f"epoch, {args.shape.name}, recdim {args.recdim}, {args.precision}: "
        f"{bench.describe_machine(device, machine)}",
        flush=True,
    )
    figures = measure(args, device, machine)
    bench.write_figures(args, "epoch", {"machine": vars(machine), "figures": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
