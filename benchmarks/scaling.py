"""How the cost of a training step grows with the data: 100,000 to 6.4 million interactions, users and items in proportion.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --plot docs/scaling.png      # needs matplotlib

The batch is fixed (4,096), and so is what depends on it alone (InfoNCE); propagation, attention and the optimiser take
part in every step with all users, items and edges. Neighbours are drawn at random: kNN building, and ranking every user
over every item, are quadratic by definition and have benchmarks of their own (graphs.py, evaluate.py). The slope is that
of a least-squares line through log time against log interactions: 1 is linear, and what depends on the batch alone brings it
below. So the slopes between neighbouring sizes are printed too: none should be far above 1.
"""

import statistics
import sys

import numpy as np
import torch

import bench
from step import batches_of, stepper
from model import make_model
from utils import keep_freed_memory


def shape_of(interactions):
    """A shape of Baby's proportions: 6.1 train interactions a user, 16.8 an item; small features."""
    users, items = int(interactions / 6.1), int(interactions / 16.8)
    return bench.Shape(f"{interactions:,}", users, items, (interactions, interactions // 6, interactions // 6), 64, 128)


def measure(args, interactions, device):
    """Seconds a training step at a size: [repeats], each the mean over the steps from one new plan to the next."""
    config, shape = bench.baby_command(recdim=args.recdim), shape_of(interactions)
    rng = np.random.default_rng(0)
    dataset = bench.make_dataset(shape, config, device, neighbours=lambda matrix: rng.integers(len(matrix), size=(len(matrix), config.item_knn_k)))
    torch.manual_seed(0)
    model = make_model(config, dataset, device).train()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=config.lr, fused=True)
    step = stepper(lambda batch: model.loss(batch)["loss"], optimizer, batches_of(dataset, config, device)[:50])

    def steps():
        for _ in range(config.plan_every):
            step()
    bench.reset_peak_memory()
    steps()
    seconds = [bench.clock(steps, device) / config.plan_every for _ in range(args.repeats)]
    return seconds, bench.peak_memory(device)


def plot(path, sizes, seconds, slope):
    """Time against interactions on a log-log plot, as PNG."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("error: --plot needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot
    figure, axes = pyplot.subplots(figsize=(5.5, 3.6), layout="constrained")
    middle = [statistics.median(times) for times in seconds]
    axes.loglog(sizes, middle, "o-", label=f"measured, slope {slope:.2f}")
    axes.loglog(sizes, [middle[-1] * size / sizes[-1] for size in sizes], ":", color="grey", label="linear")
    axes.set(xlabel="training interactions", ylabel="seconds a training step")
    axes.legend()
    figure.savefig(path, dpi=150)


def main():
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser("Seconds of a training step against interactions, and the slope on a log-log scale.", shape="")
    parser.add_argument("--recdim", type=int, default=64, help="embedding size")
    parser.add_argument("--sizes", type=int, nargs="+", default=[100_000 * 2**k for k in range(7)], help="training interactions")
    parser.add_argument("--plot", default="", help="PNG file for the plot")
    args = parser.parse_args()
    device = bench.start(args)
    machine = bench.measure_machine(device)
    keep_freed_memory()
    print(f"scaling, recdim {args.recdim}: {bench.machine_line(device, machine)}\n{'interactions':>14}{'seconds a step':>28}{'MB':>8}", flush=True)
    seconds, peaks = [], []
    for size in args.sizes:
        taken, peak = measure(args, size, device)
        seconds.append(taken)
        peaks.append(peak)
        print(f"{size:>14,}{bench.spread(taken):>28}{peak:>8.0f}", flush=True)
    log_size, log_time = np.log(args.sizes), np.log([statistics.median(times) for times in seconds])
    slope, steps = float(np.polyfit(log_size, log_time, 1)[0]), (np.diff(log_time) / np.diff(log_size)).tolist()
    print(f"slope {slope:.3f}; between neighbours {' '.join(f'{step:.2f}' for step in steps)}")
    if args.plot:
        plot(args.plot, args.sizes, seconds, slope)
    bench.write_json(args, "scaling", {"machine": vars(machine), "sizes": args.sizes, "seconds": seconds, "peak_memory_mb": peaks, "slope": slope,
                                      "slopes_between": steps})
    return 0


if __name__ == "__main__":
    sys.exit(main())
