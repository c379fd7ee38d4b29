"""What a run needs of each of its devices: memory, bytes and seconds of a step, and what does not fit.

    python -m benchmarks.scale --users 1e7 --items 1e6 --interactions 1e8 --recdim 64 --devices 8 --gpu_gb 80
    torchrun --nproc_per_node 2 -m benchmarks.scale --measure --users 192403 --items 63001 \\
        --interactions 1254441 --recdim 256 --text 1024 --image 4096
    python -m benchmarks.scale --compare --users 192403 --items 63001 --interactions 1254441 --recdim 256 \\
        --text 1024 --image 4096

The first command plans a run of RecGOAT on P devices that share its columns (layers/columns.py), without
features that of LightGCN. With --measure, P processes make some steps of such a run on random data, and the
bytes that each sent, its peak memory and the seconds stand beside the plan. --compare makes them in one
process with two threads and in two with one thread each. docs/scale.md explains the terms.
"""

import argparse
import contextlib
import dataclasses
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import typing
from collections.abc import Iterator
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import torch
import torch.distributed as dist

from benchmarks import bench
from dataloader import Batch, Sampler
from layers.agreement import from_all
from layers.columns import rank, ranks
from models.registry import find_model
from training.adam import Adam
from training.memory import keep_freed_memory, peak_memory_mb
from training.parallel import process_group
from utils import write_json
from world import Config

FLOAT = 4  # bytes


@dataclasses.dataclass(frozen=True)
class Plan:
    """A run: its data, its model and its devices."""

    users: int
    items: int
    interactions: int
    recdim: int
    devices: int
    text: int = 0  # feature dimensions; 0: no such features
    image: int = 0
    batch: int = 4096
    layers: int = 3  # of LightGCN
    attention_layers: int = 1
    heads: int = 8
    neighbours: int = 20
    plan_every: int = 10

    @property
    def feature_sizes(self) -> list[int]:
        """Dimensions of the features of each modality."""
        return [size for size in (self.text, self.image) if size]

    @property
    def columns(self) -> int:
        """Columns of a device."""
        return self.recdim // self.devices


def distinct(draws: int, of: int) -> int:
    """Expected number of distinct values of uniform draws."""
    return round(of * -math.expm1(draws * math.log1p(-1 / of)))


def step_bytes(plan: Plan, positives: int, items: int) -> dict[str, float]:
    """Bytes that a device sends in a training step, by their purpose.

    positives, items: distinct positive items and distinct items of the batch. Plan refreshes count with their
    share of a step. An all-reduce of x bytes sends 2 (P - 1) / P x bytes, an all-gather and a reduce-scatter
    half of that.
    """
    both, d = 2 * (plan.devices - 1) / plan.devices, plan.recdim
    sizes, hidden = len(plan.feature_sizes), plan.attention_layers - 1
    sent = {"scores (BPR)": both * plan.batch * FLOAT}
    if sizes:
        refresh = plan.items * d * (1 + sizes * hidden) + sizes * (d * d + min(plan.items, 1024) * d)
        sent |= {
            "LayerNorm and L2 norms": 6 * both * items * FLOAT,
            "InfoNCE: rows of the views": both * (sizes + 1) * positives * d * FLOAT,
            "transport: rows of the modalities": both * sizes * items * d * FLOAT,
            "attention beyond the first layer": both * sizes * hidden * plan.items * d * FLOAT,
            "transport plans": both / 2 * refresh * FLOAT / plan.plan_every,
        }
    return sent


def memory(plan: Plan, cpu: bool = False) -> dict[str, float]:
    """Bytes that a device holds during training, by their purpose.

    cpu: of a process on a CPU, where graphs are propagated in blocks of 32 columns and the last attention
    layer attends for the items of a batch alone, with its libraries.

    Of what a step allocates and frees, the larger of its moments counts. A refresh of the plans counts beside
    it: its blocks have other sizes, and an allocator rarely puts one where a larger one was.
    """
    nodes, c, modalities = plan.users + plan.items, plan.columns, len(plan.feature_sizes)
    items, edges = distinct(2 * plan.batch, plan.items), attention_edges(plan)
    weights = sum(c * (size + (plan.attention_layers - 1) * plan.recdim) for size in plan.feature_sizes)
    held: dict[str, float] = {
        "tables, gradients, Adam": 4 * nodes * c * FLOAT,
        "user-item graph": 2 * plan.interactions * 8 + nodes * 4,
        "batches of an epoch": 120 * plan.interactions,
    }
    # Backward, with the gradient of the norm: that of the propagated rows, as whole tables, and the result.
    moments: dict[str, float] = {"propagation": 2 * nodes * c + propagation_blocks(plan, cpu)}
    if cpu:
        held["libraries"] = 415e6
    if modalities:
        moments["attention"] = attention(plan, items if cpu else plan.items, cpu)
        held |= {
            "features": sum(plan.items * size * FLOAT for size in plan.feature_sizes),
            "weights of the branches": 4 * weights * FLOAT,
            "attention graphs": modalities * edges * (24 + 4 * plan.heads / plan.devices),
            "vectors of a batch": 8 * modalities * items * plan.recdim * FLOAT,
            "refresh of the plans": refresh(plan, cpu) * FLOAT,
        }
    largest = max(moments, key=lambda name: moments[name])
    return held | {f"{largest} in a step": moments[largest] * FLOAT}


def attention_edges(plan: Plan, targets: int | None = None) -> int:
    """Edges of one modality's graph to some items (default: all), if no item is a neighbour of its own."""
    return (plan.items if targets is None else targets) * (2 * plan.neighbours + 1)


def propagation_blocks(plan: Plan, cpu: bool) -> int:
    """Numbers of LightGCN's layers that are alive at once: two, their sum and, in blocks, the last block."""
    nodes, width = plan.users + plan.items, 32
    return 4 * nodes * width if cpu and plan.columns > width else 3 * nodes * plan.columns


def attention(plan: Plan, targets: int, cpu: bool) -> float:
    """Numbers that all branches keep for their backward pass, and that of one, at `targets` items each."""
    c, hidden, heads = plan.columns, plan.attention_layers - 1, plan.heads / plan.devices
    edges, rows = attention_edges(plan, targets), plan.items * c
    # The projected features in two orders; score, weight and dropout of every edge.
    kept = 2 * rows + 3 * edges * heads
    kept += edges * (6 + 2 * heads) if cpu else 0  # the graph of the batch: int64 and int32
    kept += hidden * (4 * rows + plan.items * plan.recdim + 3 * attention_edges(plan) * heads)
    gradients = 3 * rows + 3 * (attention_edges(plan) if hidden else edges) * heads
    exchanged = 3 * plan.items * plan.recdim if hidden else 0
    return len(plan.feature_sizes) * kept + gradients + exchanged


def refresh(plan: Plan, cpu: bool) -> float:
    """Numbers alive while the plans are refreshed: all ID vectors, and the last branch beside the others."""
    nodes, rows, heads = plan.users + plan.items, plan.items * plan.columns, plan.heads / plan.devices
    whole = plan.items * plan.recdim * ((plan.devices > 1) + (plan.attention_layers > 1))
    branch = 3 * rows + 2 * attention_edges(plan) * heads
    others = (len(plan.feature_sizes) - 1) * rows
    return nodes * plan.columns + max(propagation_blocks(plan, cpu), whole + others + branch)


def evaluation_memory(plan: Plan) -> float:
    """Bytes that an evaluation adds: whole vectors of all items and of the device's share of the users."""
    return (plan.items + plan.users / plan.devices) * plan.recdim * FLOAT + 2**30


def host_memory(plan: Plan) -> float:
    """Bytes of a checkpoint, which the host of process 0 holds while it is written or read."""
    return 3 * (plan.users + plan.items) * plan.recdim * FLOAT


def step_seconds(plan: Plan, memory_gbs: float, link_gbs: float) -> dict[str, float]:
    """Seconds of a training step from bandwidths in GB/s: of the device's memory and between devices.

    Every edge of the user-item graph moves a row of own columns in each layer, forward and backward; tables,
    gradients and Adam's moments are read and written once.
    """
    edges = 2 * plan.interactions * plan.layers * 2
    moved = edges * (plan.columns * FLOAT + 8) + 7 * (plan.users + plan.items) * plan.columns * FLOAT
    moved += sum(3 * plan.items * size * FLOAT for size in plan.feature_sizes)
    rows = distinct(plan.batch, plan.items), distinct(2 * plan.batch, plan.items)
    return {
        "memory traffic": moved / memory_gbs / 1e9,
        "communication": sum(step_bytes(plan, *rows).values()) / link_gbs / 1e9,
    }


# ---------------------------------------------------------------- the plan on paper


def report(plan: Plan, args: argparse.Namespace) -> str:
    """The plan as text."""
    rows = distinct(plan.batch, plan.items), distinct(2 * plan.batch, plan.items)
    held, sent = memory(plan), step_bytes(plan, *rows)
    seconds = step_seconds(plan, args.memory_gbs, args.link_gbs)
    steps = math.ceil(plan.interactions / plan.batch)
    lines = [f"{plan.devices} devices, {plan.columns} of {plan.recdim} columns each", "", "GB a device holds"]
    lines += [f"{value / 1e9:10.2f}  {name}" for name, value in held.items()]
    lines += [f"{sum(held.values()) / 1e9:10.2f}  in training"]
    lines += [f"{evaluation_memory(plan) / 1e9:10.2f}  more in an evaluation"]
    lines += [f"{host_memory(plan) / 1e9:10.2f}  of main memory for a checkpoint, process 0 alone", ""]
    lines += ["MB a device sends in a step"]
    lines += [f"{value / 1e6:10.2f}  {name}" for name, value in sent.items()]
    lines += [f"{sum(sent.values()) / 1e6:10.2f}  in all", "", "seconds of a step, at least"]
    lines += [f"{value:10.4f}  {name}" for name, value in seconds.items()]
    lines += [f"{sum(seconds.values()) * steps:10.0f}  of an epoch of {steps:,} steps", ""]
    return "\n".join([*lines, verdict(plan, held, args.gpu_gb)])


def verdict(plan: Plan, held: dict[str, float], gpu_gb: float) -> str:
    """What does not fit on a device, or that all fits; and whether the columns are too few."""
    needed = sum(held.values()) + evaluation_memory(plan)
    fixed = sum(value for name, value in held.items() if name in ("user-item graph", "batches of an epoch"))
    if needed <= gpu_gb * 1e9:
        text = f"fits: {needed / 1e9:.1f} of {gpu_gb:g} GB"
    elif fixed > gpu_gb * 1e9:
        text = f"does not fit on any number of devices: the interactions take {fixed / 1e9:.1f} GB on each"
    else:
        largest = max(held, key=lambda name: held[name])
        text = f"does not fit: {needed / 1e9:.1f} of {gpu_gb:g} GB; the largest part: {largest}"
    return (
        text if plan.columns >= 8 else f"{text}; under 8 columns a device, the graph's indices outweigh them"
    )


# ---------------------------------------------------------------- measured


@contextlib.contextmanager
def count_bytes() -> Iterator[dict[str, float]]:
    """A dict whose "sent" counts the bytes that this process sends in the block, with the best algorithms."""
    p, counted = ranks(), {"sent": 0.0}
    share = (p - 1) / p
    # {name: bytes sent, of the arguments of the collective}
    costs: dict[str, typing.Callable[..., float]] = {
        "all_reduce": lambda x, *_: 2 * share * x.nbytes,
        "all_gather": lambda parts, x: (p - 1) * x.nbytes,
        "all_to_all_single": lambda received, sent: share * sent.nbytes,
        "gather": lambda x, parts, dst: (rank() != dst) * x.nbytes,
    }
    originals = {name: getattr(dist, name) for name in costs}

    def counting(name: str) -> typing.Callable[..., typing.Any]:
        def collective(*args: typing.Any, **kwargs: typing.Any) -> typing.Any:
            counted["sent"] += costs[name](*args, **kwargs)
            return originals[name](*args, **kwargs)

        return collective

    for name in costs:
        setattr(dist, name, counting(name))
    try:
        yield counted
    finally:
        for name, original in originals.items():
            setattr(dist, name, original)


@dataclasses.dataclass
class Measured:
    """Means over the steps of one process."""

    sent: float  # bytes of a step
    seconds: float  # of a step
    peak_mb: float
    positives: float  # distinct positive items of a batch
    items: float  # distinct items of a batch


def measure(plan: Plan, config: Config, device: torch.device, steps: int) -> Measured:
    """Make training steps of a plan, of one epoch at most, with random data in the processes of this run."""
    rng = np.random.default_rng(0)
    shape = bench.Shape("plan", plan.users, plan.items, (plan.interactions, 0, 0), plan.text, plan.image)

    def random_neighbours(matrix: np.ndarray) -> np.ndarray:
        return rng.integers(len(matrix), size=(len(matrix), config.item_knn_k))

    dataset = bench.make_dataset(shape, config, device, find_neighbours=random_neighbours)
    torch.manual_seed(0)
    model = find_model(config.model)(config, dataset).to(device).train()
    optimizer = Adam(model.parameters(), lr=config.lr, fused=True)
    data = dataset.interactions
    batches = list(Sampler(data.train, data.n_items, config.bpr_batch, 0, device).epoch())[:steps]

    def train(batches: list[Batch]) -> None:
        for step, batch in enumerate(batches):
            model.begin_step(step)
            optimizer.zero_grad(set_to_none=True)
            model.loss(batch)["loss"].backward()
            optimizer.step()

    train(batches[:1])  # its memory is new
    started = time.perf_counter()
    with count_bytes() as counted:
        train(batches)
    seconds = (time.perf_counter() - started) / len(batches)
    sizes = np.array([(len(batch.unique_pos), len(batch.unique_items)) for batch in batches]).mean(0)
    return Measured(counted["sent"] / len(batches), seconds, peak_memory_mb(device), *sizes.tolist())


def make_config(plan: Plan) -> Config:
    """The settings of a plan."""
    return bench.baby_config(
        model="lgn_mm" if plan.feature_sizes else "lgn",
        recdim=plan.recdim,
        bpr_batch=plan.batch,
        layer=plan.layers,
        item_branch_layers=plan.attention_layers,
        attn_heads=plan.heads,
        item_knn_k=plan.neighbours,
        plan_every=plan.plan_every,
        cold_vectors=0,  # random interactions leave many items without any
    )


def show_measured(plan: Plan, found: list[Measured]) -> str:
    """A line for each process, and what the plan says."""
    first = found[0]
    planned = sum(step_bytes(plan, round(first.positives), round(first.items)).values()) / 1e6
    held = sum(memory(plan, cpu=True).values()) / 1e6
    lines = [f"{'process':>8}{'MB sent a step':>16}{'peak MB':>10}{'seconds a step':>16}"]
    lines += [
        f"{number:>8}{one.sent / 1e6:>16.3f}{one.peak_mb:>10.0f}{one.seconds:>16.3f}"
        for number, one in enumerate(found)
    ]
    return "\n".join([*lines, f"{'plan':>8}{planned:>16.3f}{held:>10.0f}"])


# ---------------------------------------------------------------- compared


def compare(plan: Plan, steps: int, rounds: int) -> None:
    """Measure one process with two threads and two with one thread each, in turn, and print both."""
    seconds: dict[int, list[float]] = {1: [], 2: []}
    for _ in range(rounds):
        for processes, threads in ((1, 2), (2, 1)):
            found = measure_apart(plan, steps, processes, threads)
            seconds[processes].append(max(one.seconds for one in found))
            print(f"P = {processes}, threads of each: {threads}")
            print(show_measured(dataclasses.replace(plan, devices=processes), found), flush=True)
    one, two = (statistics.median(times) for times in seconds.values())
    print(f"a step with P = 2 takes {two / one:.3f} times as long as with P = 1: {two:.3f} s and {one:.3f} s")


def measure_apart(plan: Plan, steps: int, processes: int, threads: int) -> list[Measured]:
    """`measure` in processes of a torchrun of their own."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "measured.json"
        words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        words += ["--nproc_per_node", str(processes), "-m", "benchmarks.scale", "--measure"]
        words += ["--steps", str(steps), "--json", str(path)]
        for field in dataclasses.fields(Plan):
            if field.name != "devices":
                words += [f"--{field.name}", str(getattr(plan, field.name))]
        environment = {**os.environ, "OMP_NUM_THREADS": str(threads)}
        subprocess.run(words, cwd=bench.ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        return [Measured(**values) for values in json.loads(path.read_text())]


def main() -> int:
    """Plan, or measure a plan. Returns the exit code."""
    parser = argparse.ArgumentParser(description="Memory, traffic and time of a run on several devices.")
    for field in dataclasses.fields(Plan):
        if field.name != "devices":
            default = None if field.default is dataclasses.MISSING else field.default
            parser.add_argument(f"--{field.name}", type=float, default=default, required=default is None)
    parser.add_argument("--devices", type=int, default=1, help="devices, or processes of torchrun")
    parser.add_argument("--gpu_gb", type=float, default=80, help="memory of a device, GB")
    parser.add_argument("--memory_gbs", type=float, default=2000, help="bandwidth of its memory, GB/s")
    parser.add_argument("--link_gbs", type=float, default=200, help="bandwidth between devices, GB/s")
    parser.add_argument("--measure", action="store_true", help="make steps with random data")
    parser.add_argument("--compare", action="store_true", help="two threads: in one process and in two")
    parser.add_argument("--rounds", type=int, default=1, help="how often --compare measures each")
    parser.add_argument("--steps", type=int, default=10, help="steps to measure, a multiple of --plan_every")
    parser.add_argument("--json", default="", help="file for what --measure finds")
    args = parser.parse_args()
    sizes = {f.name: int(getattr(args, f.name)) for f in dataclasses.fields(Plan)}
    if args.compare:
        compare(Plan(**sizes), args.steps, args.rounds)
        return 0
    if not args.measure:
        print(report(Plan(**sizes), args))
        return 0
    with process_group():
        plan = Plan(**{**sizes, "devices": ranks()})
        keep_freed_memory()
        found = from_all(measure(plan, make_config(plan), torch.device("cpu"), args.steps))
        print(show_measured(plan, found))
        if args.json and rank() == 0:
            write_json(args.json, [dataclasses.asdict(one) for one in found])
    return 0


if __name__ == "__main__":
    sys.exit(main())
