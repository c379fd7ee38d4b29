"""How the cost of training grows with the data: 100,000 to 6.4 million interactions, users and items in proportion.

    python benchmarks/scaling.py
    python benchmarks/scaling.py --plot docs/scaling.png      # needs matplotlib

Two things are timed. The whole graph: the vectors of all users and items and their gradients, which is propagation, projection
and attention over every edge. A training step: with a fixed batch (4,096), so that what depends on the batch alone (InfoNCE, and
attention, which goes to the items of the batch in nine steps of ten) does not grow. Neighbours are drawn at random: kNN building,
and ranking every user over every item, are quadratic by definition and have benchmarks of their own (graphs.py, evaluate.py). The
slope is that of a least-squares line through log time against log interactions: 1 is linear. The slopes between neighbouring
sizes are printed too: none should be far above 1.
"""

import statistics
import sys

import bench
import numpy as np
import torch
from step import batches_of, stepper

from model import make_model
from world import keep_freed_memory


def shape_of(interactions):
    """A shape of Baby's proportions: 6.1 train interactions a user, 16.8 an item; small features."""
    users, items = int(interactions / 6.1), int(interactions / 16.8)
    return bench.Shape(
        f"{interactions:,}", users, items, (interactions, interactions // 6, interactions // 6), 64, 128
    )


def measure(args, interactions, device):
    """Seconds at a size, {"whole graph": [repeats], "step": [repeats]}, and peak memory in MB.

    A step is the mean over those from one new plan to the next.
    """
    config, shape = bench.baby_command(recdim=args.recdim), shape_of(interactions)
    rng = np.random.default_rng(0)
    dataset = bench.make_dataset(
        shape,
        config,
        device,
        neighbours=lambda matrix: rng.integers(len(matrix), size=(len(matrix), config.item_knn_k)),
    )
    torch.manual_seed(0)
    model = make_model(config, dataset, device).train()
    optimizer = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=config.lr, fused=True)
    step = stepper(
        lambda batch: model.loss(batch)["loss"], optimizer, batches_of(dataset, config, device)[:50]
    )

    def steps():
        for _ in range(config.plan_every):
            step()

    def whole_graph():
        user, z_id, z = model.represent()
        outputs = [user, z_id, *z.values()]
        torch.autograd.backward(outputs, [torch.ones_like(output) for output in outputs])
        model.zero_grad()

    bench.reset_peak_memory()
    seconds = bench.interleave({"whole graph": whole_graph, "step": steps}, args.repeats, device)
    seconds["step"] = [taken / config.plan_every for taken in seconds["step"]]
    return seconds, bench.peak_memory(device)


def slopes(sizes, seconds):
    """Slope of the least-squares line through log time against log size, and the slopes between neighbours. seconds: [sizes][repeats]."""
    log_size, log_time = np.log(sizes), np.log([statistics.median(times) for times in seconds])
    return float(np.polyfit(log_size, log_time, 1)[0]), (np.diff(log_time) / np.diff(log_size)).tolist()


def plot(path, sizes, seconds):
    """Time against interactions on a log-log plot, as PNG. seconds: {what: [sizes][repeats]}."""
    try:
        import matplotlib
    except ImportError:
        sys.exit("error: --plot needs matplotlib: pip install matplotlib")
    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(5.5, 3.6), layout="constrained")
    for name, times in seconds.items():
        middle = [statistics.median(taken) for taken in times]
        axes.loglog(sizes, middle, "o-", label=f"{name}, slope {slopes(sizes, times)[0]:.2f}")
    axes.loglog(sizes, [middle[-1] * size / sizes[-1] for size in sizes], ":", color="grey", label="linear")
    axes.set(xlabel="training interactions", ylabel="seconds")
    axes.legend()
    figure.savefig(path, dpi=150)


def main():
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser(
        "Time of a training step and of a pass over the whole graph against interactions, and the slopes on a log-log scale.",
        shape="",
    )
    parser.add_argument("--recdim", type=int, default=64, help="embedding size")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="+",
        default=[100_000 * 2**k for k in range(7)],
        help="training interactions",
    )
    parser.add_argument("--plot", default="", help="PNG file for the plot")
    args = parser.parse_args()
    device = bench.start(args)
    machine = bench.measure_machine(device)
    keep_freed_memory()
    print(
        f"scaling, recdim {args.recdim}: {bench.machine_line(device, machine)}\n"
        f"{'interactions':>14}{'whole graph':>28}{'a step':>28}{'MB':>8}",
        flush=True,
    )
    seconds, peaks = {"whole graph": [], "step": []}, []
    for size in args.sizes:
        taken, peak = measure(args, size, device)
        peaks.append(peak)
        for name, times in taken.items():
            seconds[name].append(times)
        print(
            f"{size:>14,}{bench.spread(taken['whole graph']):>28}{bench.spread(taken['step']):>28}{peak:>8.0f}",
            flush=True,
        )
    figures = {
        name: dict(zip(("slope", "between"), slopes(args.sizes, times)), seconds=times)
        for name, times in seconds.items()
    }
    for name, found in figures.items():
        print(
            f"{name}: slope {found['slope']:.3f}; between neighbours {' '.join(f'{slope:.2f}' for slope in found['between'])}"
        )
    if args.plot:
        plot(args.plot, args.sizes, seconds)
    bench.write_json(
        args,
        "scaling",
        {"machine": vars(machine), "sizes": args.sizes, "figures": figures, "peak_memory_mb": peaks},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
