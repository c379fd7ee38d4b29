"""Shared parts of the benchmarks: dataset shapes, synthetic data, timing, limits of the machine, and output.

    device = bench.set_up(args)
    seconds = bench.alternate({"ours": ours, "textbook": textbook}, repeats=5, device=device)
    print(bench.format_times(seconds["ours"]), bench.median_ratio(seconds["textbook"], seconds["ours"]))

Variants that are compared are called alternately (A B A B ...) in one run, so that a slow minute of the
machine affects all of them. Times are printed as median (minimum-maximum).
"""

import argparse
import contextlib
import dataclasses
import multiprocessing
import os
import platform
import statistics
import time
import typing
from collections.abc import Callable, Mapping, Sequence
from multiprocessing.connection import Connection
from pathlib import Path

import numpy as np
import torch

import utils
from data.formats import Interactions, read_interactions
from data.graphs import cached_neighbours, normalised_adjacency
from dataloader import Dataset
from layers.device import on_cpu
from layers.kernels import column_major
from training.memory import peak_memory_mb
from world import Config

ROOT = Path(__file__).resolve().parents[1]
CACHE = ROOT / "runs" / "benchmarks" / "cache"
Result = typing.TypeVar("Result")
Figures = dict[str, typing.Any]  # what a benchmark measured, as JSON values


@dataclasses.dataclass(frozen=True)
class Shape:
    """The size of a dataset."""

    name: str
    users: int
    items: int
    splits: tuple[int, int, int]  # interactions of train, valid and test
    text: int = 384  # feature dimensions
    image: int = 4096


SHAPES = {
    shape.name: shape
    # MMRec's splits. The text features of electronics are as wide as those of a large language model.
    for shape in (
        Shape("tiny", 500, 300, (4_000, 600, 600), 32, 48),
        Shape("baby", 19_445, 7_050, (118_551, 20_559, 21_682)),
        Shape("sports", 35_598, 18_357, (218_409, 37_899, 40_029)),
        Shape("electronics", 192_403, 63_001, (1_254_441, 213_447, 221_300), 1024, 4096),
    )
}


def parse_shape(text: str) -> Shape:
    """A name in SHAPES, or USERSxITEMSxINTERACTIONS[xTEXTxIMAGE], as 1000x500x9000x384x4096."""
    if text in SHAPES:
        return SHAPES[text]
    try:
        users, items, train, *dims = [int(word) for word in text.split("x")]
        held_out = max(train // 8, 1)
        shape = Shape(text, users, items, (train, held_out, held_out), *dims)
    except (ValueError, TypeError):
        raise argparse.ArgumentTypeError(
            f"'{text}': give one of {', '.join(SHAPES)}, or USERSxITEMSxINTERACTIONS[xTEXTxIMAGE]"
        ) from None
    total = sum(shape.splits)
    if total > users * items:
        raise argparse.ArgumentTypeError(
            f"'{text}': {total} interactions, with validation and test, are more than the {users * items} "
            "pairs; give fewer"
        )
    return shape


# ---------------------------------------------------------------- synthetic data


def make_interactions(shape: Shape, seed: int = 0) -> Interactions:
    """Random Interactions without repeated pairs, in which every user has a train item.

    The activity of users and the popularity of items are log-normal.
    """
    rng = np.random.default_rng(seed)
    total = sum(shape.splits)
    activity, popularity = rng.lognormal(0, 0.8, shape.users), rng.lognormal(0, 1.2, shape.items)
    user_cdf = np.cumsum(activity) / activity.sum()
    item_cdf = np.cumsum(popularity) / popularity.sum()
    keys = np.zeros(0, np.int64)
    while len(keys) < total:
        draws = 2 * (total - len(keys)) + shape.users
        user = np.concatenate([np.arange(shape.users), np.searchsorted(user_cdf, rng.random(draws))])
        item = np.searchsorted(item_cdf, rng.random(len(user)))
        # Rounding can leave the end of a cumulative distribution below 1.
        user, item = user.clip(max=shape.users - 1), item.clip(max=shape.items - 1)
        keys = np.concatenate([keys, user * shape.items + item])
        keys = keys[np.sort(np.unique(keys, return_index=True)[1])]
    # The first pairs are one of each user. They stay in train; the others are shuffled over the splits.
    first, others = keys[: shape.users], rng.permutation(keys[shape.users : total])
    train, valid, test = (
        np.stack(divmod(np.sort(part), shape.items), 1)
        for part in np.split(np.concatenate([first, others]), np.cumsum(shape.splits)[:2])
    )
    return Interactions(shape.users, shape.items, train, valid, test, None, {}, f"synthetic {shape.name}")


def make_features(rows: int, dim: int, seed: int) -> np.ndarray:
    """Random features [rows, dim] float32 in clusters of about 30 rows, like those of real content."""
    rng = np.random.default_rng(seed)
    centres = rng.standard_normal((max(rows // 30, 1), dim), dtype=np.float32)
    cluster = rng.integers(len(centres), size=rows)
    features = np.empty((rows, dim), np.float32)
    # In blocks, so that the peak memory of a benchmark is not that of making its input.
    for start in range(0, rows, 8192):
        block = cluster[start : start + 8192]
        noise = rng.standard_normal((len(block), dim), dtype=np.float32)
        features[start : start + 8192] = centres[block] + noise
    return features


def make_dataset(
    shape: Shape,
    config: Config,
    device: torch.device,
    data: str = "",
    find_neighbours: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Dataset:
    """A Dataset of a shape with random text and image features.

    data: dataset folder whose interactions replace the random ones. find_neighbours: features [n, dim] ->
    neighbours [n, k]; by default the exact kNN graph, from a cache.
    """

    def exact_neighbours(matrix: np.ndarray) -> np.ndarray:
        return cached_neighbours(matrix, config.item_knn_k, CACHE, 0, device)[0]

    find_neighbours = find_neighbours or exact_neighbours
    interactions = read_interactions(data) if data else make_interactions(shape)
    adjacency = normalised_adjacency(interactions, "one", device)
    features, neighbours = {}, {}
    for seed, (modality, dim) in enumerate((("text", shape.text), ("image", shape.image)), 1):
        if not dim:
            continue
        matrix = make_features(interactions.n_items, dim, seed)
        neighbours[modality] = find_neighbours(matrix).astype(np.int32)
        features[modality] = column_major(torch.from_numpy(matrix).to(device))
    return Dataset(interactions, adjacency, features, neighbours, None, None, "benchmark", [])


def baby_config(**changes: typing.Any) -> Config:
    """Settings of the published Baby command line (recdim 800, batch 4096), with changes."""
    settings: dict[str, typing.Any] = {
        "model": "lgn_mm",
        "item_knn_k": 20,
        "item_branch_layers": 1,
        "recdim": 800,
        "layer": 3,
        "lr": 8e-4,
        "bpr_batch": 4096,
        "topks": (10,),
        "fusion": "oat",
        "contrastive_weight": 0.032,
    }
    return Config(**{**settings, **changes})


# ---------------------------------------------------------------- timing


def synchronize(device: torch.device) -> None:
    """Wait until the device has finished its queued work."""
    if not on_cpu(device):
        torch.cuda.synchronize(device)


def time_call(call: Callable[[], Result], device: torch.device) -> tuple[float, Result]:
    """Seconds of a call, including its work on the device, and its result."""
    synchronize(device)
    started = time.perf_counter()
    result = call()
    synchronize(device)
    return time.perf_counter() - started, result


def alternate(
    calls: Mapping[str, Callable[[], typing.Any]], repeats: int, device: torch.device, warm_up: int = 1
) -> dict[str, list[float]]:
    """Call each of {name: call} in turn, `repeats` times after the warm-up: {name: seconds of each call}."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    for turn in range(warm_up + repeats):
        for name, call in calls.items():
            taken, _ = time_call(call, device)
            if turn >= warm_up:
                seconds[name].append(taken)
    return seconds


def format_times(seconds: Sequence[float]) -> str:
    """'1.23 ms (1.20-1.31)': median, minimum and maximum."""
    median = statistics.median(seconds)
    factor, unit = (1.0, "s") if median >= 1 else (1e3, "ms")
    return f"{median * factor:.3g} {unit} ({min(seconds) * factor:.3g}-{max(seconds) * factor:.3g})"


def median_ratio(slow: Sequence[float], fast: Sequence[float]) -> float:
    """Median over turns of the ratio of two calls that were made in the same turn."""
    return statistics.median(a / b for a, b in zip(slow, fast, strict=True))


def reset_peak_memory() -> None:
    """Reset the peak of GPU memory, and that of resident memory where the system allows it (Linux)."""
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    with contextlib.suppress(OSError), open("/proc/self/clear_refs", "w") as file:
        file.write("5")


def peak_memory(device: torch.device) -> float:
    """Peak memory since reset_peak_memory in MB: resident memory of this process, or allocated GPU memory."""
    if not on_cpu(device):
        return torch.cuda.max_memory_allocated(device) / 1e6
    try:
        with open("/proc/self/status") as file:
            return next(int(line.split()[1]) for line in file if line.startswith("VmHWM")) * 1024 / 1e6
    except (OSError, StopIteration):
        return peak_memory_mb(device)


# ---------------------------------------------------------------- worker processes


class Worker:
    """An object in a process of its own, for variants whose memory must be measured separately.

    kind: class that is called with (shape, config, data, device); args: the parsed command line.
    """

    def __init__(self, kind: Callable[..., typing.Any], args: argparse.Namespace, config: Config):
        context = multiprocessing.get_context("spawn")
        self.connection, child_connection = context.Pipe()
        self.process = context.Process(target=serve, args=(child_connection, kind, args, config), daemon=True)
        self.process.start()

    def ask(self, method: str) -> typing.Any:
        """Result of a method of the object; "peak_memory" is that of the process, in MB."""
        self.connection.send(method)
        return self.connection.recv()

    def __enter__(self) -> typing.Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.join()


def serve(
    connection: Connection, kind: Callable[..., typing.Any], args: argparse.Namespace, config: Config
) -> None:
    """Main function of a Worker's process: make the object and call its methods until it is killed."""
    device = set_up(args)
    worker = kind(args.shape, config, args.data, device)
    while True:
        method = connection.recv()
        connection.send(peak_memory(device) if method == "peak_memory" else getattr(worker, method)())


# ---------------------------------------------------------------- limits of the machine


@dataclasses.dataclass(frozen=True)
class Machine:
    """Measured limits of the machine."""

    bandwidth: float  # bytes read and written per second, by a copy that does not fit the caches
    throughput: float  # float32 operations per second of a large matrix product; a multiply-add counts as two

    def floor(self, nbytes: float, operations: float) -> float:
        """Lower bound in seconds for moving this many bytes and making this many operations."""
        return max(nbytes / self.bandwidth, operations / self.throughput)


def measure_machine(device: torch.device, repeats: int = 5) -> Machine:
    """Measure the Machine, with torch's current number of threads."""
    size, side = (2**26, 2048) if on_cpu(device) else (2**28, 8192)
    copy = fastest(
        torch.Tensor.copy_, torch.empty(size, device=device), torch.ones(size, device=device), repeats
    )
    product = fastest(
        torch.Tensor.matmul,
        torch.randn(side, side, device=device),
        torch.randn(side, side, device=device),
        repeats,
    )
    return Machine(bandwidth=2 * 4 * size / copy, throughput=2 * side**3 / product)


def fastest(
    operation: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    a: torch.Tensor,
    b: torch.Tensor,
    repeats: int,
) -> float:
    """Seconds of the fastest of several calls operation(a, b)."""
    return min(alternate({"call": lambda: operation(a, b)}, repeats, a.device)["call"])


def describe_machine(device: torch.device, machine: Machine) -> str:
    """One line with the processor, the version of torch and the measured limits."""
    if on_cpu(device):
        name = f"{cpu_name()}, {torch.get_num_threads()} threads"
    else:
        name = torch.cuda.get_device_name(device)
    return (
        f"{name}; torch {torch.__version__}; copy {machine.bandwidth / 1e9:.0f} GB/s, float32 product "
        f"{machine.throughput / 1e9:.0f} GFLOP/s"
    )


def cpu_name() -> str:
    """Name of the processor, as reported by the system."""
    try:
        with open("/proc/cpuinfo") as file:
            return next(line.split(":")[1].strip() for line in file if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


# ---------------------------------------------------------------- command line and results


def make_parser(description: str, shape: str = "baby") -> argparse.ArgumentParser:
    """Parser with the flags of every benchmark.

    shape: default of --shape; empty for a benchmark that has flags of its own for the size of its data.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    if shape:
        parser.add_argument(
            "--shape",
            type=parse_shape,
            default=shape,
            help="tiny, baby, sports, electronics, or USERSxITEMSxINTERACTIONS[xTEXTxIMAGE]",
        )
        parser.add_argument(
            "--data", default="", help="dataset folder whose interactions replace the random ones of --shape"
        )
    parser.add_argument("--repeats", type=int, default=5, help="timed calls of each variant")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: torch's default")
    parser.add_argument("--cuda", type=int, default=1, choices=(0, 1), help="1 uses a GPU if there is one")
    parser.add_argument("--json", default="", help="output file (empty: runs/benchmarks/<name>.json)")
    return parser


def set_up(args: argparse.Namespace) -> torch.device:
    """Set threads and seed by a parsed command line. Returns the device."""
    if args.threads:
        torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    return torch.device("cuda" if args.cuda and torch.cuda.is_available() else "cpu")


def format_table(rows: Sequence[Sequence[str]], header: Sequence[str]) -> str:
    """Align rows of cells: the first column to the left, the others to the right."""
    rows = [header, *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in rows
    )


def write_figures(args: argparse.Namespace, name: str, figures: Figures) -> None:
    """Write figures, and the command line that they were measured with, to --json."""
    path = Path(args.json or ROOT / "runs" / "benchmarks" / f"{name}.json")
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {
        key: str(value) if dataclasses.is_dataclass(value) else value for key, value in vars(args).items()
    }
    utils.write_json(path, {"benchmark": name, "settings": settings, **figures})
    print(f"figures in {os.path.relpath(path)}")
