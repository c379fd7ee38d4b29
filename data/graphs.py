"""Graphs of a dataset: user-item adjacency, kNN graphs of features, the cache of kNN graphs.

adjacency = normalised_adjacency(interactions, "one", device)   # sparse CSR [U + I, U + I]
neighbours, notes = knn_table(features, "", 20, config, device)  # [n, 20], best first
"""

import io
import itertools
import math
import warnings
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
import torch

from data.formats import Interactions
from data.progress import progress_bar
from layers.agreement import from_all, together
from layers.columns import rank, ranks
from layers.cosine import unit_rows
from layers.sparse import bipartite_adjacency
from layers.topk import top_columns
from utils import UserError, atomic_write, content_hash
from world import Config

# Part of the file names in the cache. Change it whenever nearest_neighbours may return something else.
CACHE_VERSION = "cosine top-k, self excluded, v2"


# ---------------------------------------------------------------- user-item graph


def edge_weights(interactions: Interactions, edge_weight: str) -> np.ndarray:
    """r_ui of each TRAIN pair [n]: 1 (edge_weight "one"), the rating ("rating"), or "auto".

    "auto" is the rating if the data has ratings. Raises UserError for "rating" without ratings.
    """
    if edge_weight == "one" or (edge_weight == "auto" and interactions.train_rating is None):
        return np.ones(len(interactions.train))
    if interactions.train_rating is None:
        raise UserError(
            f"{interactions.source}: has no ratings for --edge_weight rating; use a .inter table with a "
            "rating column (--data_format inter) or --edge_weight one"
        )
    return interactions.train_rating.astype(np.float64)


def normalised_adjacency(interactions: Interactions, edge_weight: str, device: torch.device) -> torch.Tensor:
    """Return the symmetrically normalised user-item graph of the TRAIN split (eq. 4-5).

    Sparse CSR [U + I, U + I] float32. The edge between u and i has the coefficient r_ui / sqrt(deg u deg i),
    where deg is the number of edges; see edge_weights for r_ui, and what it raises.
    """
    weight = edge_weights(interactions, edge_weight)
    return bipartite_adjacency(interactions.train, interactions.n_users, interactions.n_items, device, weight)


# ---------------------------------------------------------------- nearest neighbours


def nearest_neighbours(features: np.ndarray, k: int, device: torch.device, block: int = 4096) -> np.ndarray:
    """Find the k most similar other rows of each row by cosine similarity (eq. 2), exactly.

    features: [n, dim] float32. Returns [n, k] int64, best first. A row of zeros has no direction: it is no
    neighbour of any row. Where a row has fewer than k neighbours, the list is padded with the row itself.
    Several processes, which all have to call this, share the work.
    """
    x = torch.from_numpy(features).to(device)
    # Once for each block of rows: a GPU is waited for until they are found.
    zeros = [(~rows.any(dim=1)).nonzero()[:, 0] for rows in x.split(block)]
    best = torch.full((len(x), k), -torch.inf, device=device)
    index = torch.arange(len(x), device=device)[:, None].repeat(1, k)
    # The similarity matrix of 100 000 rows would take 40 GB, so only a block of it exists at a time.
    # It is symmetric: a block above the diagonal, transposed, is also the one below the diagonal.
    starts = range(0, len(x), block)
    pairs = [(first, second) for first in starts for second in starts if first <= second]
    with progress_bar(total=len(pairs), desc="kNN graph", unit="block", leave=False, delay=2) as bar:
        for start in range(0, len(pairs), ranks()):
            group = pairs[start : start + ranks()]
            own = [block_candidates(x, pair, block, k, zeros) for pair in group[rank() : rank() + 1]]
            # Merged in the order of one process, on which the order of equal similarities depends.
            for found in from_all(own):
                for candidates in itertools.chain(*found):
                    merge_best(best, index, *candidates)
            bar.update(len(group))
    return index.cpu().numpy()


Candidates = tuple[int, torch.Tensor, torch.Tensor]  # first row, similarities and rows that they belong to


def block_candidates(
    x: torch.Tensor, pair: tuple[int, int], block: int, k: int, zeros: list[torch.Tensor]
) -> list[Candidates]:
    """The k best rows of two blocks of x [n, dim] for each other, or of one block for itself.

    pair: the first row of each block; zeros: for each block, its rows of zeros. The result is on the CPU if
    other processes are to have it.
    """
    first, second = pair
    left = unit_rows(x[first : first + block])
    right = left if second == first else unit_rows(x[second : second + block])
    similarity = left @ right.T
    similarity.index_fill_(0, zeros[first // block], -torch.inf)
    similarity.index_fill_(1, zeros[second // block], -torch.inf)
    blocks = [(first, second, similarity)]
    if second == first:
        similarity.fill_diagonal_(-torch.inf)
    else:
        blocks = [(second, first, similarity.T.contiguous()), *blocks]
    found = []
    for row, column, values in blocks:
        chosen = top_columns(values, min(k, values.shape[1]))
        found.append((row, values.gather(1, chosen), chosen + column))
    return found if ranks() == 1 else [(row, value.cpu(), index.cpu()) for row, value, index in found]


def merge_best(
    best: torch.Tensor, index: torch.Tensor, row: int, value: torch.Tensor, candidate: torch.Tensor
) -> None:
    """Merge the candidates of some rows into the k best so far, in place.

    best, index: [n, k], similarities and their columns, best first. row: the first of the rows; value,
    candidate: [r, c], likewise; entries of -inf are never chosen.
    """
    value, candidate = value.to(best.device), candidate.to(best.device)
    rows, k = slice(row, row + len(value)), best.shape[1]
    # The padding of a row is its own index.
    own = torch.arange(row, row + len(value), device=candidate.device)[:, None]
    candidate = torch.where(torch.isneginf(value), own, candidate)
    best[rows], order = torch.cat([best[rows], value], 1).topk(k, dim=1)
    index[rows] = torch.cat([index[rows], candidate], 1).gather(1, order)


# ---------------------------------------------------------------- cache


def cached_neighbours(
    features: np.ndarray,
    k: int,
    cache_dir: str | Path,
    rebuild: bool | int,
    device: torch.device,
    features_hash: str = "",
) -> tuple[np.ndarray, list[str]]:
    """Return nearest_neighbours(features, k, device) and notes to the user, through a cache file if possible.

    The file is named after the content of the features and k. A damaged file is rebuilt, and a cache that
    cannot be written is not an error; both give a note. rebuild: ignore an existing file. features_hash:
    content_hash(features), if it is known.
    """
    key = content_hash(features_hash or content_hash(features), k, CACHE_VERSION)[:32]
    path = Path(cache_dir) / f"knn_{key}.npz"
    exists = not rebuild and path.exists()
    cached = read_cached(path) if exists else None
    if cached is not None and not is_neighbour_table(cached, len(features), k):
        cached = None
    # If one process of several has to build the graph, all do.
    if all(from_all(cached is not None)) and cached is not None:
        return cached, []
    notes = [f"note: {path} is damaged; building the kNN graph again"] if exists and cached is None else []
    neighbours = nearest_neighbours(features, k, device).astype(np.int32)
    return neighbours, notes if cached is not None else notes + write_cached(path, neighbours)


def write_cached(path: Path, neighbours: np.ndarray) -> list[str]:
    """Write a cache file. Returns notes to the user."""
    buffer = io.BytesIO()
    np.savez(buffer, nbr=neighbours, sha256=content_hash(neighbours))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        return [
            f"note: kNN graph not cached: {path.parent}: {error.strerror}; "
            "give another folder with --cache_dir"
        ]
    return []


def read_cached(path: str | Path) -> np.ndarray | None:
    """Return the neighbours in a cache file, or None if it is damaged in any way."""
    try:
        neighbours, checksum = read_npz_array(path, "nbr"), str(read_npz_array(path, "sha256"))
    # Whatever a damaged archive raises, the remedy is the same: build the graph again.
    except Exception:
        return None
    return neighbours if checksum == content_hash(neighbours) else None


def is_neighbour_table(neighbours: np.ndarray, n: int, k: int) -> bool:
    """Return whether an array has the type, shape and range of k neighbours of n rows."""
    return (
        neighbours.shape == (n, k)
        and neighbours.dtype == np.int32
        and neighbours.min() >= 0
        and neighbours.max() < n
    )


def read_npz_array(path: str | Path, name: str) -> np.ndarray:
    """Read one array of a .npz archive that need not be trusted.

    Refuses pickles, headers that do not match the size of the data, and archives that unpack to far more than
    their own size. Raises ValueError, OSError, or what zipfile and NumPy raise for a damaged archive.
    """
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
        with archive.open(entry) as member:
            check_npy_header(member, entry.file_size)
        if entry.file_size > 10**8 and entry.file_size > 100 * entry.compress_size:
            raise ValueError("it unpacks to far more than its own size")
        with archive.open(entry) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def check_npy_header(member: IO[bytes], size: int) -> None:
    """Raise ValueError unless a .npy of `size` bytes has a header of exactly that much plain data."""
    # NumPy allocates what the header promises before it reads: terabytes, if the header is damaged.
    version = np.lib.format.read_magic(member)
    read_header = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }[version]
    shape, _, dtype = read_header(member)
    if dtype.hasobject or member.tell() + math.prod(shape) * dtype.itemsize != size:
        raise ValueError("its header does not match its size")


# ---------------------------------------------------------------- neighbours of a run


def read_neighbours(path: str | Path, n: int, k: int) -> tuple[np.ndarray, list[str]]:
    """Read k neighbours of each of n rows from a .npz with an integer array nbr [n, >= k], best first.

    Returns [n, k] int64 (narrower if nbr is) and notes to the user. A row's own id is skipped; a row with
    fewer than k others is padded with its own id. Raises UserError for anything else.
    """
    try:
        neighbours = read_npz_array(path, "nbr")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); give a .npz archive with nbr [{n}, k]"
        ) from None
    # A damaged archive raises BadZipFile, KeyError, ValueError, zlib.error, ...
    except Exception:
        raise UserError(f"{path}: is not a .npz archive with an array nbr [{n}, k]") from None
    if neighbours.ndim != 2 or len(neighbours) != n or neighbours.dtype.kind not in "iu":
        raise UserError(
            f"{path}: nbr is {neighbours.dtype} {neighbours.shape}; "
            f"it must be integers [{n}, k], one row per id"
        )
    if not neighbours.size:
        raise UserError(f"{path}: nbr is [{n}, 0], without a neighbour; it must be [{n}, k], k at least 1")
    outside = (neighbours < 0) | (neighbours >= n)
    if outside.any():
        row = outside.any(axis=1).argmax()
        raise UserError(
            f"{path}, row {row}: has neighbour {neighbours[row][outside[row]][0]}; ids go from 0 to {n - 1}"
        )
    own = neighbours == np.arange(n)[:, None]
    check_distinct(neighbours, own, path)
    # A stable sort by "is the row itself" moves its own id to the end and keeps the order of the others.
    order = np.argsort(own, axis=1, kind="stable")[:, :k]
    chosen = np.take_along_axis(neighbours, order, axis=1).astype(np.int64)
    fewest = int((~own).sum(axis=1).min())
    notes = []
    if fewest < k:
        notes.append(
            f"note: {path} has only {fewest} neighbours for some rows; fewer than k = {k} are used there"
        )
    return chosen, notes


def check_distinct(neighbours: np.ndarray, own: np.ndarray, path: str | Path) -> None:
    """Raise UserError if a row [n, k] names a neighbour twice; its own id (own: [n, k]) may be repeated."""
    # Distinct negative numbers stand for a row's own id, which pads short lists.
    ids = np.sort(np.where(own, -1 - np.arange(neighbours.shape[1]), neighbours.astype(np.int64)), axis=1)
    twice = ids[:, 1:] == ids[:, :-1]
    if twice.any():
        row = twice.any(axis=1).argmax()
        raise UserError(
            f"{path}, row {row}: names neighbour {ids[row, 1:][twice[row]][0]} twice; name each of them once"
        )


def knn_table(
    features: np.ndarray, path: str, k: int, config: Config, device: torch.device, features_hash: str = ""
) -> tuple[np.ndarray, list[str]]:
    """Return k neighbours of each row [n, k], best first, and notes to the user.

    They are read from the file `path` or, if that is empty, computed from the features through the cache.
    """
    if path:
        with together():
            return read_neighbours(path, len(features), k)
    if k >= len(features):
        raise UserError(
            f"{k} neighbours requested, but there are only {len(features)} rows; "
            f"lower --item_knn_k or --user_knn_k below {len(features)}"
        )
    cache_dir = config.cache_dir or Path(config.data_root) / ".cache"
    return cached_neighbours(features, k, cache_dir, config.force_build_item_knn, device, features_hash)
