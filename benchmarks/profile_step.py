"""What a training step of RecGOAT spends its time on, operation by operation, from torch's profiler.

    python benchmarks/profile_step.py --shape baby --recdim 800

The steps are those of benchmarks/step.py: `plan_every` of them, one with a plan refresh. On a GPU the time of
an operation is that of its kernels, and "busy" is their share of the time that the steps took.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks import bench
from benchmarks.step import Ours
from layers.device import on_cpu


def measure(args: argparse.Namespace, device: torch.device) -> bench.Figures:
    """Seconds, calls and kernels of each operation, in a mean step."""
    config = bench.baby_config(recdim=args.recdim, bpr_batch=args.batch, precision=args.precision)
    ours = Ours(args.shape, config, args.data, device)
    ours.seconds()  # a warm-up
    alone = ours.seconds()
    activities = [ProfilerActivity.CPU, *([] if on_cpu(device) else [ProfilerActivity.CUDA])]
    with profile(activities=activities, acc_events=True) as profiler:
        ours.seconds()
    operations = {}
    for event in profiler.key_averages():
        own = event.self_cpu_time_total if on_cpu(device) else event.self_device_time_total
        # Kernels have rows of their own; here they count for the operation that started them.
        if event.device_type.name == "CPU" and own > 0:
            operations[event.key] = {
                "seconds": own / 1e6 / config.plan_every,
                "calls": event.count / config.plan_every,
            }
    operations = dict(sorted(operations.items(), key=lambda item: -item[1]["seconds"]))
    busy = sum(operation["seconds"] for operation in operations.values()) / alone
    return {"step": alone, "busy": busy, "operations": operations}


def table(figures: bench.Figures, rows: int) -> str:
    """The operations that take longest."""
    operations = figures["operations"]
    total = sum(operation["seconds"] for operation in operations.values())
    lines = [
        [
            name[:60],
            f"{operation['calls']:.1f}",
            f"{operation['seconds'] * 1e3:.3g} ms",
            f"{100 * operation['seconds'] / total:.0f} %",
        ]
        for name, operation in list(operations.items())[:rows]
    ]
    return bench.format_table(lines, ["operation", "calls a step", "time a step", "share"])


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser("The operations of a training step, from torch's profiler.")
    parser.add_argument("--recdim", type=int, default=800, help="embedding size")
    parser.add_argument("--batch", type=int, default=4096, help="triples in a step")
    parser.add_argument("--precision", default="fp32", choices=("fp32", "tf32", "bf16"), help="as in main.py")
    parser.add_argument("--rows", type=int, default=25, help="operations to print")
    args = parser.parse_args()
    device = bench.set_up(args)
    figures = measure(args, device)
    print(
        f"profile, {args.shape.name}, recdim {args.recdim}, {args.precision}: {figures['step'] * 1e3:.3g} ms "
        f"a step, busy {100 * figures['busy']:.0f} %\n{table(figures, args.rows)}"
    )
    bench.write_figures(args, "profile_step", {"figures": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
