"""Time and memory of building a kNN graph, beside a lower bound and the full similarity matrix.

    python benchmarks/graphs.py --rows 7050 --dims 384 4096
    python benchmarks/graphs.py --rows 63001 --dims 1024 4096 --textbook 0 --repeats 1
    python benchmarks/graphs.py --rows 192403 --dims 4096 --textbook 0 --repeats 1  # users of Electronics

The textbook way is to normalise all rows, multiply them with each other, exclude the diagonal and apply topk.
Both ways are exact: the printed share of common neighbours is 1 except for ties.
"""

import argparse
import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parents[1])]

import numpy as np
import torch

from benchmarks import bench
from data.graphs import nearest_neighbours
from layers.attention import AttentionGraph
from training.memory import keep_freed_memory


def full_matrix(features: np.ndarray, k: int, device: torch.device) -> np.ndarray:
    """Neighbours [n, k] of the rows of features [n, dim], from the [n, n] similarities."""
    x = torch.nn.functional.normalize(torch.from_numpy(features).to(device), dim=1)
    return (x @ x.T).fill_diagonal_(-torch.inf).topk(k, dim=1).indices.cpu().numpy()


def common_share(a: np.ndarray, b: np.ndarray) -> float:
    """Mean share of the neighbours of a row [n, k] that are in both tables, over the first 2,000 rows."""
    shares = [len(np.intersect1d(x, y)) / len(x) for x, y in zip(a[:2000], b[:2000], strict=True)]
    return float(np.mean(shares))


def measure(
    args: argparse.Namespace, dim: int, device: torch.device, machine: bench.Machine
) -> bench.Figures:
    """Print the figures of one feature dimension and return them."""
    features = bench.make_features(args.rows, dim, 1)
    tables: dict[str, np.ndarray] = {}

    def ours() -> None:
        tables["ours"] = nearest_neighbours(features, args.k, device)

    def textbook() -> None:
        tables["textbook"] = full_matrix(features, args.k, device)

    calls = {"ours": ours, "textbook": textbook} if args.textbook else {"ours": ours}
    bench.reset_peak_memory()
    taken, _ = bench.time_call(ours, device)
    peak = bench.peak_memory(device)
    seconds = {"ours": [taken]}
    # With one repetition and nothing to compare with, the first call, which may take long, is the only one.
    if args.textbook or args.repeats > 1:
        seconds = bench.alternate(calls, args.repeats, device, warm_up=0)
    layout, _ = bench.time_call(
        lambda: AttentionGraph.from_neighbours(tables["ours"], args.heads).to(device), device
    )
    # The similarity of two rows is needed once: half of the 2 n^2 dim operations of the full matrix.
    bound = machine.floor(4 * args.rows * dim, args.rows**2 * dim)
    print(
        f"{args.rows} x {dim}: {bench.format_times(seconds['ours'])}, lower bound {bound:.3g} s, "
        f"{min(seconds['ours']) / bound:.1f}x; peak memory {peak:.0f} MB, {features.nbytes / 1e6:.0f} of "
        f"them features; attention layout {layout:.2g} s"
    )
    figures: bench.Figures = {
        "dim": dim,
        "seconds": seconds,
        "layout": layout,
        "floor": bound,
        "peak_memory_mb": peak,
    }
    if args.textbook:
        figures["ratio"] = bench.median_ratio(seconds["textbook"], seconds["ours"])
        figures["common"] = common_share(tables["ours"], tables["textbook"])
        print(
            f"  full matrix {bench.format_times(seconds['textbook'])}: {figures['ratio']:.1f} times as long; "
            f"common neighbours {figures['common']:.5f}"
        )
    return figures


def main() -> int:
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser("Time and memory of building a kNN graph.", shape="")
    parser.add_argument("--rows", type=int, default=7050, help="items or users")
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 4096], help="feature dimensions")
    parser.add_argument("--k", type=int, default=20, help="neighbours of a row")
    parser.add_argument("--heads", type=int, default=8, help="attention heads of the layout")
    parser.add_argument(
        "--textbook", type=int, default=1, choices=(0, 1), help="0 omits the full similarity matrix"
    )
    args = parser.parse_args()
    device = bench.set_up(args)
    machine = bench.measure_machine(device)
    keep_freed_memory()
    print(f"kNN graphs: {bench.describe_machine(device, machine)}")
    figures = [measure(args, dim, device, machine) for dim in args.dims]
    bench.write_figures(args, "graphs", {"machine": vars(machine), "figures": figures})
    return 0


if __name__ == "__main__":
    sys.exit(main())
