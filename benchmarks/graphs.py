"""Building an item-kNN graph: time, peak memory and floor, beside the full similarity matrix where that fits.

    python benchmarks/graphs.py --rows 7050 --dims 384 4096
    python benchmarks/graphs.py --rows 63001 --dims 1024 4096 --textbook 0 --repeats 1
    python benchmarks/graphs.py --rows 192403 --dims 4096 --textbook 0 --repeats 1      # all users of Electronics

The textbook way normalises all rows, multiplies them with each other, empties the diagonal and takes topk. Both are exact:
the share of neighbours that they have in common is printed (ties aside, 1).
"""

import sys

import bench
import numpy as np
import torch

from data.graphs import nearest_neighbours
from layers.attention import attention_graph
from world import keep_freed_memory


def full_matrix(features, k, device):
    """[n, dim] -> [n, k] through the [n, n] similarities."""
    x = torch.nn.functional.normalize(torch.from_numpy(features).to(device), dim=1)
    return (x @ x.T).fill_diagonal_(-torch.inf).topk(k, dim=1).indices.cpu().numpy()


def shared(a, b):
    """Mean share of the neighbours of a row [n, k] that another list has too, over the first 2,000 rows."""
    return float(np.mean([len(np.intersect1d(x, y)) / len(x) for x, y in zip(a[:2000], b[:2000])]))


def measure(args, dim, device, machine):
    """Print the figures of one feature dimension and return them."""
    features, found = bench.make_features(args.rows, dim, 1), {}

    def ours():
        found["ours"] = nearest_neighbours(features, args.k, device)

    def textbook():
        found["textbook"] = full_matrix(features, args.k, device)

    bench.reset_peak_memory()
    seconds = {"ours": [bench.clock(ours, device)]}
    peak = bench.peak_memory(device)
    if args.textbook or args.repeats > 1:  # else the first call, which may take long, is the only one
        seconds = bench.interleave(
            {"ours": ours, **({"textbook": textbook} if args.textbook else {})},
            args.repeats,
            device,
            warm_up=0,
        )
    layout = bench.interleave(
        {"layout": lambda: attention_graph(found["ours"], args.heads, device)}, 1, device, warm_up=0
    )["layout"]
    floor = machine.floor(4 * args.rows * dim, args.rows**2 * dim)  # each pair once: half of 2 n^2 dim
    print(
        f"{args.rows} x {dim}: {bench.spread(seconds['ours'])}, floor {floor:.3g} s, {min(seconds['ours']) / floor:.1f}x; peak memory "
        f"{peak:.0f} MB, of these features {features.nbytes / 1e6:.0f}; attention layout {layout[0]:.2g} s"
    )
    figures = {"dim": dim, "seconds": seconds, "layout": layout, "floor": floor, "peak_memory_mb": peak}
    if args.textbook:
        figures["ratio"] = bench.median_ratio(seconds["textbook"], seconds["ours"])
        figures["shared"] = shared(found["ours"], found["textbook"])
        print(
            f"  full matrix {bench.spread(seconds['textbook'])}: {figures['ratio']:.1f} times as long; neighbours in common {figures['shared']:.5f}"
        )
    return figures


def main():
    """Measure and print. Returns the exit code."""
    parser = bench.make_parser("Time and memory of building a kNN graph.", shape="")
    parser.add_argument("--rows", type=int, default=7050, help="items or users")
    parser.add_argument("--dims", type=int, nargs="+", default=[384, 4096], help="feature dimensions")
    parser.add_argument("--k", type=int, default=20, help="neighbours of a row")
    parser.add_argument("--heads", type=int, default=8, help="attention heads of the layout")
    parser.add_argument(
        "--textbook", type=int, default=1, choices=(0, 1), help="0 leaves the full matrix out"
    )
    args = parser.parse_args()
    device = bench.start(args)
    machine = bench.measure_machine(device)
    keep_freed_memory()
    print(f"kNN graphs: {bench.machine_line(device, machine)}")
    bench.write_json(
        args,
        "graphs",
        {"machine": vars(machine), "figures": [measure(args, dim, device, machine) for dim in args.dims]},
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
