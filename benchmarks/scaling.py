"""How the time of training grows with the data, from 100,000 to 6.4 million interactions.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --plot docs/scaling.png      # needs matplotlib

Users and items grow in proportion. Two things are timed:

- the whole graph: the vectors of all users and items and their gradients, that is propagation, projection and
  attention over every edge;
- a training step of fixed batch size (4,096), plan refreshes included. What depends on the batch alone, such
  as InfoNCE and attention to the items of the batch, does not grow.

The result is the slope of a least-squares line through log time against log interactions: 1 is linear. Slopes
between successive sizes are printed too; none should be far above 1. Neighbours are random, because building
kNN graphs is quadratic, as is ranking every item for every user; benchmarks/graphs.py and
benchmarks/evaluate.py measure these.
"""

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import torch

from benchmarks import bench
from benchmarks.step import make_stepper, whole_batches
from model import RecGOAT
from training.memory import keep_freed_memory

MAX_BATCHES = 50  # batches that the steps cycle through


def make_shape(interactions: int) -> bench.Shape:
    """A shape with 6.1 train interactions per user and 16.8 per item, as in Baby, and small features."""
    users, items = int(interactions / 6.1), int(interactions / 16.8)
    held_out = interactions // 6
    return bench.Shape(f"{interactions:,}", users, items, (interactions, held_out, held_out), 64, 128)


def measure(
    args: argparse.Namespace, interactions: int, device: torch.device
) -> tuple[dict[str, list[float]], float]:
    """Seconds at one size, {"whole graph": [repeats], "step": [repeats]}, and peak memory in MB.

    The time of a step is the mean of `plan_every` steps, one of which refreshes the transport plans.
    """
    config, shape = bench.baby_config(recdim=args.recdim), make_shape(interactions)
    rng = np.random.default_rng(0)

    def random_neighbours(matrix: np.ndarray) -> np.ndarray:
        return rng.integers(len(matrix), size=(len(matrix), config.item_knn_k))

    dataset = bench.make_dataset(shape, config, device, find_neighbours=random_neighbours)
    torch.manual_seed(0)
    model = RecGOAT(config, dataset).to(device).train()
    make_step = make_stepper(
        lambda batch: model.loss(batch)["loss"],
        torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=config.lr, fused=True),
        whole_batches(dataset, config, device)[:MAX_BATCHES],
        model.begin_step,
    )

    def steps() -> None:
        for _ in range(config.plan_every):
            make_step()

    def whole_graph() -> None:
        user, z_id, z = model.represent()
        outputs = [user, z_id, *z.values()]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        model.zero_grad()

    bench.reset_peak_memory()
    seconds = bench.alternate({"whole graph": whole_graph, "step": steps}, args.repeats, device)
    seconds["step"] = [taken / config.plan_every for taken in seconds["step"]]
    return seconds, bench.peak_memory(device)


def slopes(sizes: Sequence[int], seconds: Sequence[Sequence[float]]) -> tuple[float, list[float]]:
    """Slopes of log time against log size: of the least-squares line, and between successive sizes.

    seconds: [sizes][repeats].
    """
    log_size, log_time = np.log(sizes), np.log([statistics.median(times) for times in seconds])
    return float(np.polyfit(log_size, log_time, 1)[0]), (np.diff(log_time) / np.diff(log_size)).tolist()


def plot(path: str, sizes: Sequence[int], seconds: Mapping[str, Sequence[Sequence[float]]]) -> None:
    """Save a log-log plot of time against interactions as PNG. seconds: {name: [sizes][repeats]}."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("error: --plot needs matplotlib: pip install -c constraints.txt matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 3.6), layout="constrained")
    for name, times in seconds.items():
        medians = [statistics.median(taken) for taken in times]
        axes.loglog(sizes, medians, "o-", label=f"{name}, slope {slopes(sizes, times)[0]:.2f}")
    linear = [medians[-1] * size / sizes[-1] for size in sizes]
    axes.loglog(sizes, linear, ":", color="grey", label="linear")
    axes.set(xlabel="training interactions", ylabel="seconds")
    axes.legend()
    figure.savefig(path, dpi=150)


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser(
        "Time of a training step and of a pass over the whole graph against the number of interactions.",
        shape="",
    )
    parser.add_argument("--recdim", type=int, default=64, help="embedding size")
    sizes = [100_000 * 2**power for power in range(7)]
    parser.add_argument("--sizes", type=int, nargs="+", default=sizes, help="training interactions")
    parser.add_argument("--plot", default="", help="PNG file for a plot (empty: none)")
    args = parser.parse_args()
    device = bench.set_up(args)
    machine = bench.measure_machine(device)
    keep_freed_memory()
    print(
        f"scaling, recdim {args.recdim}: {bench.describe_machine(device, machine)}\n"
        f"{'interactions':>14}{'whole graph':>28}{'step':>28}{'MB':>8}",
        flush=True,
    )
    seconds: dict[str, list[list[float]]] = {"whole graph": [], "step": []}
    peaks = []
    for size in args.sizes:
        taken, peak = measure(args, size, device)
        peaks.append(peak)
        for name, times in taken.items():
            seconds[name].append(times)
        columns = "".join(f"{bench.format_times(taken[name]):>28}" for name in seconds)
        print(f"{size:>14,}{columns}{peak:>8.0f}", flush=True)
    figures = {}
    for name, all_times in seconds.items():
        slope, between = slopes(args.sizes, all_times)
        figures[name] = {"slope": slope, "between": between, "seconds": all_times}
        print(f"{name}: slope {slope:.3f}; between successive sizes {' '.join(f'{x:.2f}' for x in between)}")
    if args.plot:
        plot(args.plot, args.sizes, seconds)
    result = {"machine": vars(machine), "sizes": args.sizes, "figures": figures, "peak_memory_mb": peaks}
    bench.write_figures(args, "scaling", result)
    return 0


if __name__ == "__main__":
    sys.exit(main())
