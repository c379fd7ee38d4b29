"""End to end: graphs from features, one training epoch, one evaluation, with the trainer's own functions; times and memory.

    python benchmarks/epoch.py --shape electronics --recdim 200
    python benchmarks/epoch.py --shape baby --recdim 800 --precision bf16
    python benchmarks/epoch.py --shape electronics --recdim 200 --steps 20       # the epoch's time from 20 steps

Every line is printed when it is there. Graphs are built from nothing (no cache).
"""

import itertools
import sys

import bench

from data.graphs import nearest_neighbours
from model import make_model
from procedure import float32_products, score, splits_of, train_epoch
from training.run import Progress, start_run
from world import keep_freed_memory


class FirstSteps:
    """A sampler's first `steps` batches, as if they were its epoch."""

    def __init__(self, sampler, steps):
        self.sampler, self.steps, self.pairs = (
            sampler,
            min(steps or len(sampler), len(sampler)),
            sampler.pairs,
        )

    def __len__(self):
        return self.steps

    def epoch(self, skip=0):
        """Yield the batches."""
        return itertools.islice(self.sampler.epoch(skip), self.steps)


def measure(args, device):
    """Print the lines and return the figures."""
    figures, found = {}, {}
    config = bench.baby_command(recdim=args.recdim, bpr_batch=args.batch, precision=args.precision)

    def say(name, call, scale=1.0):
        bench.reset_peak_memory()
        seconds = scale * bench.clock(call, device)
        figures[name] = {"seconds": seconds, "peak_memory_mb": bench.peak_memory(device)}
        print(
            f"{name:<28}{seconds:>9.3g} s   peak memory {figures[name]['peak_memory_mb']:>6.0f} MB",
            flush=True,
        )

    def build():
        def timed(matrix):
            say(
                f"kNN of {matrix.shape[0]} x {matrix.shape[1]}",
                lambda: found.update(neighbours=nearest_neighbours(matrix, config.item_knn_k, device)),
            )
            return found["neighbours"]

        found["dataset"] = bench.make_dataset(args.shape, config, device, args.data, timed)

    say("data and graphs, all", build)
    dataset = found["dataset"]
    run = start_run(make_model(config, dataset, device), dataset, config, None, device)
    first, progress = FirstSteps(run.sampler, args.steps), Progress()
    with float32_products("high" if config.precision == "tf32" else "highest"):
        say(
            f"a training epoch, {len(run.sampler)} steps",
            lambda: train_epoch(run.model, run.optimizer, first, progress),
            len(run.sampler) / len(first),
        )
    print(
        f"  {figures[f'a training epoch, {len(run.sampler)} steps']['seconds'] / len(run.sampler):.3g} s a step, "
        f"timed over {len(first)}; mean loss {float(progress.sums['loss']) / len(first):.4f}"
    )
    splits = splits_of(dataset.interactions, config, device)
    say("evaluation, valid", lambda: found.update(metrics=score(run.model, splits[:1], config)))
    say("evaluation, valid and test", lambda: found.update(metrics=score(run.model, splits, config)))
    print(
        f"  {len(splits[0].users)} and {len(splits[1].users)} users x {args.shape.items} items; valid {found['metrics'][0]}"
    )
    return figures


def main():
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser("Graphs, one training epoch and one evaluation: times and peak memory.")
    parser.add_argument("--recdim", type=int, default=64, help="embedding size")
    parser.add_argument("--batch", type=int, default=4096, help="triples a step")
    parser.add_argument("--precision", default="fp32", help="as main.py's")
    parser.add_argument("--steps", type=int, default=0, help="steps that are timed for the epoch; 0: all")
    args = parser.parse_args()
    device = bench.start(args)
    machine = bench.measure_machine(device)
    keep_freed_memory()
    print(
        f"epoch, {args.shape.name}, recdim {args.recdim}, {args.precision}: {bench.machine_line(device, machine)}",
        flush=True,
    )
    bench.write_json(args, "epoch", {"machine": vars(machine), "figures": measure(args, device)})
    return 0


if __name__ == "__main__":
    sys.exit(main())
