"""What the benchmarks share: shapes, synthetic data of a shape, interleaved timing, floors of the machine, tables, JSON.

Every ratio compares medians of calls that were made in turn (A B A B ...) in one process, so that a machine that slows
down slows both. Spreads are given as the least and the greatest call.
"""

import argparse
import contextlib
import dataclasses
import json
import multiprocessing
import os
import platform
import statistics
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "runs" / "benchmarks" / "cache"
sys.path[:0] = [str(ROOT)]

import numpy as np
import torch

from data.formats import Interactions, read_interactions
from data.graphs import cached_neighbours, normalised_adjacency
from dataloader import Dataset
from layers.attention import attention_graph
from layers.kernels import column_major
from utils import write_text
from world import Config, peak_memory_mb


@dataclasses.dataclass(frozen=True)
class Shape:
    """How large a dataset is: users, items, interactions of train, valid and test, feature dimensions."""

    name: str
    users: int
    items: int
    splits: tuple
    text: int = 384
    image: int = 4096


SHAPES = {
    shape.name: shape
    for shape in (  # MMRec's splits; electronics with the feature sizes of the large models
        Shape("tiny", 500, 300, (4_000, 600, 600), 32, 48),
        Shape("baby", 19_445, 7_050, (118_551, 20_559, 21_682)),
        Shape("sports", 35_598, 18_357, (218_409, 37_899, 40_029)),
        Shape("electronics", 192_403, 63_001, (1_254_441, 213_447, 221_300), 1024, 4096),
    )
}


def parse_shape(text):
    """A name of SHAPES, or 'users x items x interactions [x text x image]' as 1000x500x9000x384x4096."""
    if text in SHAPES:
        return SHAPES[text]
    try:
        users, items, n, *dims = [int(word) for word in text.split("x")]
        return Shape(text, users, items, (n, max(n // 8, 1), max(n // 8, 1)), *dims)
    except (ValueError, TypeError):
        raise argparse.ArgumentTypeError(
            f"'{text}': give one of {', '.join(SHAPES)}, or USERSxITEMSxINTERACTIONS[xTEXTxIMAGE]"
        ) from None


# ---------------------------------------------------------------- data of a shape


def make_interactions(shape, seed=0):
    """Synthetic Interactions: every user has a train item, the rest go to users and items by a power law; pairs once."""
    rng = np.random.default_rng(seed)
    total = sum(shape.splits)
    keys = np.zeros(0, np.int64)
    weight_u, weight_i = rng.lognormal(0, 0.8, shape.users), rng.lognormal(0, 1.2, shape.items)
    edges_u, edges_i = np.cumsum(weight_u) / weight_u.sum(), np.cumsum(weight_i) / weight_i.sum()
    while len(keys) < total:
        more = 2 * (total - len(keys)) + shape.users
        user = np.concatenate([np.arange(shape.users), np.searchsorted(edges_u, rng.random(more))])
        item = np.searchsorted(edges_i, rng.random(len(user)))
        keys = np.concatenate(
            [keys, user.clip(max=shape.users - 1) * shape.items + item.clip(max=shape.items - 1)]
        )
        keys = keys[np.sort(np.unique(keys, return_index=True)[1])]
    keys = keys[:total]  # the first of every user come first
    first, rest = keys[: shape.users], rng.permutation(keys[shape.users :])
    train, valid, test = np.split(np.concatenate([first, rest]), np.cumsum(shape.splits)[:2])
    pairs = {
        name: np.stack(divmod(np.sort(part), shape.items), 1)
        for name, part in (("train", train), ("valid", valid), ("test", test))
    }
    return Interactions(
        shape.users, shape.items, **pairs, train_rating=None, merged={}, source=f"synthetic {shape.name}"
    )


def make_features(rows, dim, seed, dtype=np.float32):
    """Synthetic features [rows, dim] in clusters of about 30 rows, as content has, made a block at a time."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(rows // 30, 1), dim), dtype=np.float32)
    cluster = rng.integers(len(centres), size=rows)
    features = np.empty((rows, dim), dtype)
    for start in range(0, rows, 8192):
        part = slice(start, start + 8192)
        features[part] = centres[cluster[part]] + rng.standard_normal(
            (len(cluster[part]), dim), dtype=np.float32
        )
    return features


def make_dataset(shape, config, device, data="", neighbours=None):
    """A Dataset of a shape: interactions of the folder `data` or synthetic ones, synthetic features, their kNN graphs.

    neighbours: features [n, dim] -> [n, k]; by default exact and from a cache.
    """
    neighbours = neighbours or (
        lambda matrix: cached_neighbours(matrix, config.item_knn_k, CACHE, 0, device)[0]
    )
    interactions = read_interactions(data) if data else make_interactions(shape)
    adjacency = normalised_adjacency(interactions, "one", device)
    features, graphs = {}, {}
    for seed, (m, dim) in enumerate((("text", shape.text), ("image", shape.image)), 1):
        matrix = make_features(shape.items, dim, seed)
        graphs[m] = attention_graph(neighbours(matrix), config.attn_heads, device)
        features[m] = column_major(torch.from_numpy(matrix).to(device))
    return Dataset(interactions, adjacency, features, graphs, None, None, "benchmark", [])


def baby_command(**changes):
    """Settings of the published Baby command line (recdim 800, batch 4096), with changes."""
    settings = dict(
        model="lgn_mm",
        item_knn_k=20,
        item_branch_layers=1,
        recdim=800,
        layer=3,
        lr=8e-4,
        bpr_batch=4096,
        topks=(10,),
        fusion="oat",
        contrastive_weight=0.032,
    )
    return Config(**{**settings, **changes})


# ---------------------------------------------------------------- timing


def wait(device):
    """Let the device finish what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def clock(call, device):
    """Seconds of one call, the device's work included."""
    wait(device)
    started = time.perf_counter()
    call()
    wait(device)
    return time.perf_counter() - started


def interleave(calls, repeats, device, warm_up=1):
    """{name: call} -> {name: [seconds]} of calls made in turn."""
    seconds = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            taken = clock(call, device)
            if turn >= warm_up:
                seconds[name].append(taken)
    return seconds


def spread(seconds):
    """'1.23 ms (1.20-1.31)': median, least and greatest."""
    middle = statistics.median(seconds)
    unit, name = (1, "s") if middle >= 1 else (1e3, "ms")
    return f"{middle * unit:.3g} {name} ({min(seconds) * unit:.3g}-{max(seconds) * unit:.3g})"


def median_ratio(slow, fast):
    """Median of the ratios of calls made in the same turn."""
    return statistics.median(a / b for a, b in zip(slow, fast))


def reset_peak_memory():
    """Start a new peak of GPU memory, and of resident memory where the system allows it (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_memory(device):
    """Peak memory in MB since reset_peak_memory: resident memory of this process, or allocated memory of the GPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024 / 1e6
    except (OSError, StopIteration):
        return peak_memory_mb(device)


# ---------------------------------------------------------------- processes


class Worker:
    """An object in a process of its own, whose methods are called by name. For variants that must not share memory."""

    def __init__(self, kind, args, config):
        context = multiprocessing.get_context("spawn")
        self.pipe, other = context.Pipe()
        self.process = context.Process(target=serve, args=(other, kind, args, config), daemon=True)
        self.process.start()

    def ask(self, method):
        """The result of a method; also "peak_memory", in MB."""
        self.pipe.send(method)
        return self.pipe.recv()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.kill()
        self.process.join()


def serve(pipe, kind, args, config):
    """In the process of a Worker: make the object, then answer until killed."""
    device = start(args)
    worker = kind(args.shape, config, args.data, device)
    while True:
        method = pipe.recv()
        pipe.send(peak_memory(device) if method == "peak_memory" else getattr(worker, method)())


# ---------------------------------------------------------------- floors


@dataclasses.dataclass(frozen=True)
class Machine:
    """What the machine can do at best, measured: bytes and float32 operations a second."""

    bandwidth: float  # bytes read and written a second by a copy larger than the caches
    throughput: float  # operations a second of a large float32 matrix product (a multiplication and an addition are two)

    def floor(self, nbytes, operations):
        """Seconds that so many bytes and operations take at least."""
        return max(nbytes / self.bandwidth, operations / self.throughput)


def measure_machine(device, repeats=5):
    """The Machine that this is, with the threads that torch has."""
    n = 2**26 if device.type == "cpu" else 2**28
    source, target = torch.ones(n, device=device), torch.empty(n, device=device)
    copy = min(interleave({"copy": lambda: target.copy_(source)}, repeats, device)["copy"])
    del source, target
    n = 2048 if device.type == "cpu" else 8192
    a, b = torch.randn(n, n, device=device), torch.randn(n, n, device=device)
    product = min(interleave({"product": lambda: a @ b}, repeats, device)["product"])
    return Machine(2 * 4 * (2**26 if device.type == "cpu" else 2**28) / copy, 2 * n**3 / product)


def machine_line(device, machine):
    """One line about where this was measured."""
    name = (
        torch.cuda.get_device_name(device)
        if device.type == "cuda"
        else f"{cpu_name()}, {torch.get_num_threads()} threads"
    )
    return (
        f"{name}; torch {torch.__version__}; copy {machine.bandwidth / 1e9:.0f} GB/s, float32 product "
        f"{machine.throughput / 1e9:.0f} GFLOP/s"
    )


def cpu_name():
    """The processor's name, as the system gives it."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# ---------------------------------------------------------------- command line and results


def make_parser(description, shape="baby"):
    """A parser with what every benchmark takes; shape "" for those whose size has flags of its own."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    if shape:
        parser.add_argument(
            "--shape",
            type=parse_shape,
            default=shape,
            help="baby, sports, electronics, or USERSxITEMSxINTERACTIONS[xTEXTxIMAGE]",
        )
        parser.add_argument(
            "--data", default="", help="folder whose interactions are taken instead of synthetic ones"
        )
    parser.add_argument("--repeats", type=int, default=5, help="counted calls of everything that is timed")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: as torch chooses")
    parser.add_argument("--cuda", type=int, default=1, choices=(0, 1), help="1 uses a GPU where there is one")
    parser.add_argument(
        "--json", default="", help="file for the figures; default runs/benchmarks/<name>.json"
    )
    return parser


def start(args):
    """Device of a parsed command line, threads set."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")


def table(rows, header):
    """Rows of strings as an aligned table."""
    rows = [header, *rows]
    widths = [max(len(str(row[i])) for row in rows) for i in range(len(header))]
    return "\n".join(
        "  ".join(
            str(cell).ljust(width) if i == 0 else str(cell).rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths))
        )
        for row in rows
    )


def write_json(args, name, figures):
    """Figures with the command line that made them, to --json."""
    path = Path(args.json or ROOT / "runs" / "benchmarks" / f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        key: str(value) if dataclasses.is_dataclass(value) else value for key, value in vars(args).items()
    }
    write_text(path, json.dumps({"benchmark": name, "settings": settings, **figures}, indent=1) + "\n")
    print(f"figures in {os.path.relpath(path)}")
