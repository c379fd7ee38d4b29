"""Graphs: user-item adjacency, kNN, the cache."""

import io
import math
import warnings
import zipfile
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from layers.sparse import bipartite_adjacency
from layers.topk import top_columns
from utils import UserError, atomic_write, content_hash


def normalised_adjacency(interactions, edge_weight, device):
    """User-item graph of the TRAIN split, symmetrically normalised (eq. 4-5): sparse CSR [U + I, U + I] float32.

    The coefficient of u and i is r_ui / sqrt(deg u deg i), with r_ui = 1 or the rating, deg the number of edges.
    """
    weight = 1.0
    if edge_weight == "rating":
        if interactions.train_rating is None:
            raise UserError(
                f"{interactions.source}: has no ratings for --edge_weight rating; use a .inter table with a "
                "rating column (--data_format inter) or --edge_weight one"
            )
        weight = interactions.train_rating.astype(np.float64)
    return bipartite_adjacency(interactions.train, interactions.n_users, interactions.n_items, device, weight)


def nearest_neighbours(features, k, device, block=4096):
    """The k most similar other rows of each row by cosine similarity (eq. 2), exactly.

    features: [n, dim] float32 array. Returns [n, k] int64, best first; a row of zeros has no direction and gets itself.
    Similarities are made [block, block] at a time, each once: that of rows i and j is also that of j and i.
    """
    x = torch.from_numpy(features).to(device)
    empty = ~x.any(dim=1)
    value = torch.full((len(x), k), -torch.inf, device=device)
    index = torch.arange(len(x), device=device)[:, None].repeat(1, k)
    starts = range(0, len(x), block)
    with tqdm(
        total=len(starts) * (len(starts) + 1) // 2, desc="kNN graph", unit="block", leave=False, delay=2
    ) as bar:
        for first in starts:
            left = directions(x[first : first + block])
            for second in range(first, len(x), block):
                right = left if second == first else directions(x[second : second + block])
                similarity = left @ right.T
                similarity[empty[first : first + block]] = -torch.inf
                similarity[:, empty[second : second + block]] = -torch.inf
                if second == first:
                    similarity.fill_diagonal_(-torch.inf)
                else:
                    keep_nearest(value, index, second, first, similarity.T.contiguous())
                keep_nearest(value, index, first, second, similarity)
                bar.update()
    return index.cpu().numpy()


def directions(x):
    """Rows of x [n, dim] scaled to length 1, rows of zeros left; no norm over- or underflows."""
    x = x / x.abs().amax(1, keepdim=True).clamp_min(torch.finfo(x.dtype).tiny)
    return torch.nn.functional.normalize(x, dim=1)


def keep_nearest(value, index, row, column, similarity):
    """Merge a block of similarities [r, c], of rows from `row` on to columns from `column` on, into the best k so far.

    value, index: [n, k], best first; changed in place. What is -inf is never a neighbour.
    """
    rows, k = slice(row, row + len(similarity)), value.shape[1]
    top = top_columns(similarity, min(k, similarity.shape[1]))
    found, at = similarity.gather(1, top), top + column
    at = torch.where(
        torch.isneginf(found), torch.arange(row, row + len(found), device=at.device)[:, None], at
    )
    value[rows], order = torch.cat([value[rows], found], 1).topk(k, dim=1)
    index[rows] = torch.cat([index[rows], at], 1).gather(1, order)


def read_archive(path, name):
    """One array of a .npz, refusing pickles, and headers that promise another size than the archive holds.

    Raises ValueError or OSError, or whatever else a damaged archive makes zipfile and NumPy raise.
    """
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(path) as archive:
        entry = archive.getinfo(f"{name}.npy")
        size = entry.file_size
        with archive.open(entry) as member:
            version = np.lib.format.read_magic(member)
            read_header = {
                (1, 0): np.lib.format.read_array_header_1_0,
                (2, 0): np.lib.format.read_array_header_2_0,
            }[version]
            shape, _, dtype = read_header(member)
            if dtype.hasobject or member.tell() + math.prod(shape) * dtype.itemsize != size:
                raise ValueError("its header does not fit its size")
        if size > 10**8 and size > 100 * entry.compress_size:
            raise ValueError("it unpacks to far more than it holds")
        with archive.open(entry) as member:
            return np.lib.format.read_array(member, allow_pickle=False)


def read_cached(path):
    """The neighbours in a cache file, or None if it is damaged in any way."""
    try:
        neighbours, checksum = read_archive(path, "nbr"), str(read_archive(path, "sha256"))
    except Exception:  # whatever a broken archive raises, the answer is to build it again
        return None
    return neighbours if checksum == content_hash(neighbours) else None


def fits(neighbours, n, k):
    """Whether an array can be k neighbours of each of n rows."""
    return (
        neighbours.shape == (n, k)
        and neighbours.dtype == np.int32
        and neighbours.min() >= 0
        and neighbours.max() < n
    )


def cached_neighbours(features, k, cache_dir, rebuild, device):
    """nearest_neighbours through a cache file named by the content of the features and k. Returns ([n, k], notes)."""
    key = content_hash(features, k, "cosine top-k, self excluded, v2")[:32]
    path = Path(cache_dir) / f"knn_{key}.npz"
    notes = []
    if not rebuild and path.exists():
        neighbours = read_cached(path)
        if neighbours is not None and fits(neighbours, len(features), k):
            return neighbours, notes
        notes.append(f"note: {path} is damaged; building it again")
    neighbours = nearest_neighbours(features, k, device).astype(np.int32)
    buffer = io.BytesIO()
    np.savez(buffer, nbr=neighbours, sha256=content_hash(neighbours))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())
    except OSError as error:
        notes.append(
            f"note: kNN graph not cached: {path.parent}: {error.strerror}; --cache_dir names another folder"
        )
    return neighbours, notes


def read_neighbours(path, n, k):
    """Neighbours from a .npz with nbr [n, >= k] integers, best first; a row's own id is skipped. Returns ([n, <= k], notes).

    Where a row has fewer than k others, the rest of it is its own id. Raises UserError for anything else.
    """
    try:
        neighbours = read_archive(path, "nbr")
    except OSError as error:
        raise UserError(
            f"{path}: cannot be read ({error.strerror or error}); name a .npz with nbr [{n}, k]"
        ) from None
    except Exception:  # a broken archive raises one of many
        raise UserError(f"{path}: is not a .npz archive with an array nbr [{n}, k]") from None
    if neighbours.ndim != 2 or len(neighbours) != n or neighbours.dtype.kind not in "iu":
        raise UserError(
            f"{path}: nbr is {neighbours.dtype} {neighbours.shape}; it must be integers [{n}, k], one row an id"
        )
    outside = (neighbours < 0) | (neighbours >= n)
    if outside.any():
        row = outside.any(axis=1).argmax()
        raise UserError(
            f"{path}, row {row}: names neighbour {neighbours[row][outside[row]][0]}; ids go from 0 to {n - 1}"
        )
    own = neighbours == np.arange(n)[:, None]
    order = np.argsort(own, axis=1, kind="stable")[:, :k]  # the others first, in their order
    chosen = np.take_along_axis(neighbours, order, axis=1).astype(np.int64)
    others = int((~own).sum(axis=1).min())
    notes = (
        [f"note: {path} holds {others} neighbours of some rows; fewer than k = {k} are used there"]
        if others < k
        else []
    )
    return chosen, notes


def knn_table(features, path, k, config, device):
    """Neighbours [n, k] from the file at `path`, or found through the cache. Returns (table, notes)."""
    if path:
        return read_neighbours(path, len(features), k)
    if k >= len(features):
        raise UserError(
            f"{k} neighbours asked for among {len(features)} rows; lower --item_knn_k or --user_knn_k below {len(features)}"
        )
    cache_dir = config.cache_dir or Path(config.data_root) / ".cache"
    return cached_neighbours(features, k, cache_dir, config.force_build_item_knn, device)
