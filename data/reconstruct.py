"""Make features that have a published kNN graph, where the features themselves were not published.

    python -m data.reconstruct text_knn.npz --output data/baby_raw/text_feat.npy

The graph is a .npz archive with nbr [n, k], the k nearest items of every item, and cos [n, k], their cosines;
an item's own id in its list is ignored. The vectors have length 1. They are fitted, by gradient descent from
random ones, so that listed pairs have the published cosine and no other item is closer to an item than the
last one in its list. Beyond the neighbours their geometry is arbitrary: results with them are to be called
results with reconstructed features.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from cli import Parser, run_tool
from data.graphs import nearest_neighbours, read_npz_array
from data.progress import progress_bar
from utils import UserError, atomic_write, check_output

MARGIN = 0.01  # by which the cosine of an unlisted pair should stay below the smallest listed one
CPU = torch.device("cpu")


def read_graph(path: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """nbr [n, k] int64 and cos [n, k] float32. Raises UserError if they are no such graph."""
    try:
        arrays = [np.asarray(read_npz_array(path, name)) for name in ("nbr", "cos")]
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); name a .npz archive") from None
    except Exception:  # a damaged archive raises one of many exceptions
        raise UserError(f"{path}: is not a .npz archive with the arrays nbr and cos") from None
    neighbours, cosines = arrays
    n = len(neighbours) if neighbours.ndim else 0
    is_table = neighbours.ndim == 2 and neighbours.shape == cosines.shape
    is_numeric = np.issubdtype(neighbours.dtype, np.integer) and np.issubdtype(cosines.dtype, np.floating)
    if not is_table or not is_numeric or not neighbours.size:
        raise UserError(
            f"{path}: nbr and cos must be tables [n, k] of the same shape, with k of 1 or more, nbr of whole "
            "numbers and cos of floats"
        )
    if n < 2 or neighbours.min() < 0 or neighbours.max() >= n:
        raise UserError(f"{path}: nbr must hold row numbers from 0 to {n - 1}")
    if not (np.abs(cosines) <= 1.001).all():
        raise UserError(f"{path}: cos must hold cosines, from -1 to 1")
    return torch.from_numpy(neighbours.astype(np.int64)), torch.from_numpy(cosines.astype(np.float32))


def fit_vectors(
    neighbours: torch.Tensor, cosines: torch.Tensor, dim: int, epochs: int, lr: float, seed: int, block: int
) -> np.ndarray:
    """Vectors [n, dim] float32 of length 1 with this graph. block: rows that a step compares with all."""
    generator, n = torch.Generator().manual_seed(seed), len(neighbours)
    vectors = torch.randn(n, dim, generator=generator).requires_grad_()
    optimizer = torch.optim.Adam([vectors], lr)
    steps = epochs * -(-n // block)
    decay = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in progress_bar(range(epochs), unit="epoch", desc="fitting"):
        for rows in torch.randperm(n, generator=generator).split(block):
            optimizer.zero_grad()
            graph_loss(vectors, rows, neighbours[rows], cosines[rows]).backward()
            optimizer.step()
            decay.step()
    return torch.nn.functional.normalize(vectors.detach()).numpy()


def graph_loss(
    vectors: torch.Tensor, rows: torch.Tensor, neighbours: torch.Tensor, cosines: torch.Tensor
) -> torch.Tensor:
    """Squared errors of the listed cosines of some rows, and squared excess of all other cosines, per row.

    vectors: [n, dim]; rows: [b]; neighbours, cosines: [b, k], those of the rows.
    """
    unit = torch.nn.functional.normalize(vectors)
    similarity = unit[rows] @ unit.T
    listed = torch.zeros_like(similarity, dtype=torch.bool).scatter_(1, neighbours, True)
    own = torch.zeros_like(listed).scatter_(1, rows[:, None], True)
    error = (similarity.gather(1, neighbours) - cosines) * (neighbours != rows[:, None])
    excess = (similarity - (cosines.amin(1, keepdim=True) - MARGIN)).clamp_min(0)
    return (error.square().sum() + excess.masked_fill(listed | own, 0).square().sum()) / len(rows)


def agreement(vectors: np.ndarray, neighbours: torch.Tensor, cosines: torch.Tensor) -> tuple[float, float]:
    """Share of listed neighbours among the same number of nearest vectors, and RMSE of their cosines."""
    n, k = neighbours.shape
    other = neighbours != torch.arange(n)[:, None]
    nearest = torch.from_numpy(np.array(nearest_neighbours(vectors, k, CPU)))
    # A list with the own id has k - 1 others: they are compared with the k - 1 nearest.
    place = torch.arange(k) < other.sum(1, keepdim=True)
    found = (neighbours[:, :, None] == nearest.masked_fill(~place, -1)[:, None, :]).any(2) & other
    unit = torch.from_numpy(vectors)
    error = (unit[:, None] * unit[neighbours]).sum(2) - cosines
    return float(found.sum() / other.sum()), float(error[other].square().mean().sqrt())


def make_parser() -> Parser:
    """The command line."""
    parser = Parser(
        prog="python -m data.reconstruct",
        description="Fit features to a published kNN graph with cosines, where the features are not public.",
        allow_abbrev=False,
    )
    parser.add_argument("graph", metavar="GRAPH.npz", help="archive with nbr [n, k] and cos [n, k]")
    parser.add_argument("--output", required=True, metavar="FILE.npy", help="the features to write")
    parser.add_argument("--dim", type=int, default=128, help="dimensions (default 128)")
    parser.add_argument("--epochs", type=int, default=100, help="passes over all rows (default 100)")
    parser.add_argument("--lr", type=float, default=0.05, help="first step size of Adam (default 0.05)")
    parser.add_argument("--block", type=int, default=512, help="rows of a step (default 512)")
    parser.add_argument("--seed", type=int, default=2025, help="seed of the first vectors (default 2025)")
    return parser


def reconstruct(args: argparse.Namespace) -> None:
    """Run the command."""
    if min(args.dim, args.epochs, args.block) < 1 or not args.lr > 0:
        raise UserError("--dim, --epochs, --block and --lr: must be positive")
    if not 0 <= args.seed < 2**63:
        raise UserError(f"--seed {args.seed}: must be at least 0 and below 2^63")
    if Path(args.output).suffix != ".npy":
        raise UserError(f"--output {args.output}: must end in .npy")
    check_output(args.output)
    neighbours, cosines = read_graph(Path(args.graph))
    vectors = fit_vectors(neighbours, cosines, args.dim, args.epochs, args.lr, args.seed, args.block)
    if not np.isfinite(vectors).all():
        raise UserError(f"--lr {args.lr}: the fit has diverged; give a smaller one")
    with atomic_write(args.output) as file:
        np.save(file, vectors, allow_pickle=False)
    share, error = agreement(vectors, neighbours, cosines)
    print(f"{args.output}: {len(vectors)} x {args.dim} float32 of length 1")
    print(f"{share:.1%} of the listed neighbours are among the nearest; RMSE of their cosines {error:.4f}")


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command line. Returns the exit code, see cli.run_tool."""
    return run_tool(reconstruct, make_parser(), argv)


if __name__ == "__main__":
    sys.exit(main())
