"""From files to what a training step needs: checked interactions and features, graphs, batches.

    dataset = load_dataset(config, torch.device("cpu"))
    dataset.adjacency          # user-item graph of the TRAIN split, sparse CSR [U + I, U + I]
    dataset.features["text"]   # [I, d_text] float32
    dataset.graphs["text"]     # AttentionGraph over items

Every reader checks what it reads; what it cannot use ends in a UserError that names file, line and remedy.
"""

import dataclasses
import io
import math
import typing
import warnings
import zipfile
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch
from tqdm import tqdm

from utils import UserError, atomic_write, content_hash
from layers.topk import top_columns
from layers.sparse import csr_product, csr_tensor
from world import CONTENT_MODELS
from data.formats import Interactions, dataset_folder, feature_paths, interactions_hash, load_features, open_features, read_interactions


# ---------------------------------------------------------------- features


def column_major(features):
    """The same [n, dim] with its columns one after another in memory, each at a multiple of 64 bytes; a tensor of a GPU as it is.

    Products with it and with its transpose are a sixth faster than with rows, at the few columns of a weight.
    """
    n, dim = features.shape
    if features.device.type != "cpu":
        return features
    columns = features.new_empty(dim, -(-n // 16) * 16)[:, :n]
    for part, rows in zip(columns.split(1024, 1), features.split(1024)):
        part.copy_(rows.T)
    return columns.T


def mean_user_features(train, item_features, n_users):
    """Mean feature of each user's TRAIN items [U, dim] float32; zeros for a user without any."""
    user, item = train.T
    count = np.bincount(user, minlength=n_users)
    weight = (1 / np.maximum(count, 1)).astype(np.float32)[user]
    return sp.csr_matrix((weight, (user, item)), (n_users, len(item_features))) @ item_features


# ---------------------------------------------------------------- graphs

def normalised_adjacency(interactions, edge_weight, device):
    """User-item graph of the TRAIN split, symmetrically normalised (eq. 4-5): sparse CSR [U + I, U + I] float32.

    The coefficient of u and i is r_ui / sqrt(deg u deg i), with r_ui = 1 or the rating, deg the number of edges.
    """
    weight = 1.0
    if edge_weight == "rating":
        if interactions.train_rating is None:
            raise UserError(f"{interactions.source}: has no ratings for --edge_weight rating; use a .inter table with a "
                            "rating column (--data_format inter) or --edge_weight one")
        weight = interactions.train_rating.astype(np.float64)
    return bipartite_adjacency(interactions.train, interactions.n_users, interactions.n_items, device, weight)


def bipartite_adjacency(pairs, n_users, n_items, device, weight=1.0):
    """Normalised graph of these (user, item) pairs [n, 2] alone: sparse CSR [U + I, U + I] of weight / sqrt(deg u deg i)."""
    user, item = pairs.T
    n = n_users + n_items
    degree_u, degree_i = np.bincount(user, minlength=n_users), np.bincount(item, minlength=n_items)
    weight = (weight / np.sqrt(degree_u[user] * degree_i[item])).astype(np.float32)
    rows, cols = np.concatenate([user, item + n_users]), np.concatenate([item + n_users, user])
    return to_csr_tensor(sp.csr_matrix((np.concatenate([weight, weight]), (rows, cols)), (n, n)), device)


def to_csr_tensor(matrix, device):
    """scipy CSR -> torch CSR on device, its columns in order."""
    matrix.sort_indices()
    return csr_tensor(torch.from_numpy(matrix.indptr.astype(np.int32)), torch.from_numpy(matrix.indices.astype(np.int32)),
                      torch.from_numpy(matrix.data), matrix.shape).to(device)


def mean_neighbour_graph(neighbours, shares, device):
    """FREEDOM's frozen item graph: sum over modalities of share * the mean over an item's neighbours, and its transpose.

    neighbours: {m: [I, k] int64}; shares: {m: weight}. An item's own id among its neighbours stands for none. Edges are
    directed; each row's degree is the number of its neighbours, so D^-1/2 S D^-1/2 of the paper divides by it.
    Returns two sparse CSR [I, I] float32.
    """
    total = 0
    for m, table in neighbours.items():
        n, k = table.shape
        rows, cols = np.repeat(np.arange(n), k), table.ravel()
        others = rows != cols
        degree = np.bincount(rows[others], minlength=n)
        weight = shares[m] / degree[rows[others]]
        total = total + sp.csr_matrix((weight, (rows[others], cols[others])), (n, n))
    return to_csr_tensor(total.astype(np.float32), device), to_csr_tensor(total.T.tocsr().astype(np.float32), device)


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
    with tqdm(total=len(starts) * (len(starts) + 1) // 2, desc="kNN graph", unit="block", leave=False, delay=2) as bar:
        for first in starts:
            left = directions(x[first:first + block])
            for second in range(first, len(x), block):
                right = left if second == first else directions(x[second:second + block])
                similarity = left @ right.T
                similarity[empty[first:first + block]] = -torch.inf
                similarity[:, empty[second:second + block]] = -torch.inf
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
    at = torch.where(torch.isneginf(found), torch.arange(row, row + len(found), device=at.device)[:, None], at)
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
            read_header = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}[version]
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
    return neighbours.shape == (n, k) and neighbours.dtype == np.int32 and neighbours.min() >= 0 and neighbours.max() < n


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
        notes.append(f"note: kNN graph not cached: {path.parent}: {error.strerror}; --cache_dir names another folder")
    return neighbours, notes


def read_neighbours(path, n, k):
    """Neighbours from a .npz with nbr [n, >= k] integers, best first; a row's own id is skipped. Returns ([n, <= k], notes).

    Where a row has fewer than k others, the rest of it is its own id. Raises UserError for anything else.
    """
    try:
        neighbours = read_archive(path, "nbr")
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error}); name a .npz with nbr [{n}, k]") from None
    except Exception:  # a broken archive raises one of many
        raise UserError(f"{path}: is not a .npz archive with an array nbr [{n}, k]") from None
    if neighbours.ndim != 2 or len(neighbours) != n or neighbours.dtype.kind not in "iu":
        raise UserError(f"{path}: nbr is {neighbours.dtype} {neighbours.shape}; it must be integers [{n}, k], one row an id")
    outside = (neighbours < 0) | (neighbours >= n)
    if outside.any():
        row = outside.any(axis=1).argmax()
        raise UserError(f"{path}, row {row}: names neighbour {neighbours[row][outside[row]][0]}; ids go from 0 to {n - 1}")
    own = neighbours == np.arange(n)[:, None]
    order = np.argsort(own, axis=1, kind="stable")[:, :k]          # the others first, in their order
    chosen = np.take_along_axis(neighbours, order, axis=1).astype(np.int64)
    others = int((~own).sum(axis=1).min())
    notes = [f"note: {path} holds {others} neighbours of some rows; fewer than k = {k} are used there"] if others < k else []
    return chosen, notes


@dataclasses.dataclass(frozen=True)
class AttentionGraph:
    """Edges from n source nodes to m target nodes, laid out so that attention with H heads is one sparse product.

    Head h, target i is row h * m + i and head h, source j column h * n + j of a block-diagonal CSR pattern, so features [H, n, c]
    viewed as [H * n, c] are multiplied by it as they lie in memory, head after head: what one head gathers stays in the
    cache. The graph of a loader has all nodes on both sides and is symmetric; at_rows takes some of the targets.
    """
    heads: int
    n: int
    crow: torch.Tensor        # [H * m + 1] int32
    col: torch.Tensor         # [H * E] int32
    target: torch.Tensor      # [E] int64, the row of each edge within a head
    source: torch.Tensor      # [E] int64, its column within a head
    back_crow: torch.Tensor   # the transposed pattern: [H * n + 1] int32
    back_col: torch.Tensor    # [H * E] int32
    back: torch.Tensor        # [E] int64, which edge each entry of the transposed pattern is
    rows: torch.Tensor | None = None      # [m] int64, the nodes that the targets are; None: all of them

    def matrix(self, values):
        """The block-diagonal matrix [H m, H n] with these values [H * E] as a sparse tensor."""
        return csr_tensor(self.crow, self.col, values, (len(self.crow) - 1, self.heads * self.n))

    def product(self, values, dense):
        """The matrix with these values [H * E] times dense [H * n, c]: [H * m, c]."""
        return csr_product(self.crow, self.col, values, dense)

    def transposed_product(self, values, dense):
        """The transposed matrix times dense [H * m, c]: [H * n, c]."""
        return csr_product(self.back_crow, self.back_col, each_head(values, self.back, self.heads), dense)

    def row_sums(self, values):
        """Sum of the values [H * E] of each target: [H * m]."""
        return self.matrix(values) @ values.new_ones(self.heads * self.n)

    def column_sums(self, values):
        """Sum of the values [H * E] of each source: [H * n]."""
        if values.device.type == "cpu":
            sums = values.new_zeros(self.heads, self.n)
            return sums.scatter_add_(1, self.source.expand(self.heads, -1), values.view(self.heads, -1)).flatten()
        size = (self.heads * self.n, len(self.crow) - 1)        # a GPU adds in whatever order, so the result would not be the same twice
        return csr_tensor(self.back_crow, self.back_col, each_head(values, self.back, self.heads), size) @ values.new_ones(size[1])

    def sampled_product(self, a, b):
        """a[i] . b[j] at every entry (i, j) of the pattern: [H * m, c] and [H * n, c] -> [H * E]."""
        result = self.matrix(a.new_zeros(len(self.col)))
        return torch.sparse.sampled_addmm(result, a, b.T, beta=0.0, out=result).values()

    def at_target(self, x):
        """x [H * m] at the row of every entry: [H * E]."""
        return each_head(x, self.target, self.heads)

    def at_source(self, x):
        """x [H * n] at the column of every entry: [H * E]."""
        return each_head(x, self.source, self.heads)

    def at_rows(self, rows):
        """The same edges to some targets only: rows [m] int64, each once, of a graph with all of them."""
        first = self.crow[rows].long()
        counts = self.crow[rows + 1].long() - first
        crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        target = torch.repeat_interleave(counts)
        edges = (first - crow[:-1]).index_select(0, target) + torch.arange(len(target), device=rows.device)
        source = self.source.index_select(0, edges)
        back = source.int().sort(stable=True).indices
        back_crow = torch.cat([counts.new_zeros(1), torch.bincount(source, minlength=self.n).cumsum(0)])
        return with_heads(self.heads, self.n, crow, target, source, (back_crow, target.index_select(0, back), back), rows)


def each_head(x, index, heads):
    """x [H * n] viewed as [H, n], the entries at index [E] of each: [H * E]. gather uses all threads, index_select one."""
    return x.reshape(heads, -1).gather(1, index.expand(heads, -1)).flatten()


def attention_graph(neighbours, heads, device):
    """[n, k] neighbours -> AttentionGraph: edges both ways, each once, and one self loop a node."""
    n, k = neighbours.shape
    rows = np.repeat(np.arange(n), k)
    directed = sp.csr_matrix((np.ones(n * k, np.float32), (rows, neighbours.ravel())), (n, n))
    one_head = (directed + directed.T + sp.eye(n, format="csr", dtype=np.float32)).tocsr()
    one_head.sort_indices()
    back = sp.csr_matrix((np.arange(one_head.nnz), one_head.indices, one_head.indptr), (n, n)).T.tocsr()
    back.sort_indices()
    target = np.repeat(np.arange(n), np.diff(one_head.indptr))
    return with_heads(heads, n, *(torch.from_numpy(part).long().to(device) for part in (one_head.indptr, target, one_head.indices, back.data)))


def with_heads(heads, n, crow, target, source, back, rows=None):
    """The pattern of one head -> AttentionGraph. crow [m + 1], target [E] and source [E], all int64.

    back: [E] int64 for a symmetric pattern, else (crow, column, edge) of the transposed one; rows: as of AttentionGraph.
    """
    head = torch.arange(heads, dtype=torch.int32, device=source.device)[:, None]

    def repeat(crow, column, width):
        ends = crow[1:].int() + len(column) * head
        return torch.cat([ends.new_zeros(1), ends.flatten()]), (column.int() + width * head).flatten()

    pattern = repeat(crow, source, n)
    if isinstance(back, tuple):
        back_crow, back_column, back = back
        return AttentionGraph(heads, n, *pattern, target, source, *repeat(back_crow, back_column, len(crow) - 1), back, rows)
    return AttentionGraph(heads, n, *pattern, target, source, *pattern, back, rows)


# ---------------------------------------------------------------- batches

def pair_keys(pairs, n_items):
    """[n, 2] pairs -> sorted [n] int64 keys user * I + item."""
    return torch.sort(pairs[:, 0] * n_items + pairs[:, 1]).values


class Batch(typing.NamedTuple):
    """Training triples, and the distinct users and items among them, ascending: users = each_user[user_at],
    pos = each_item[pos_at], neg = each_item[neg_at]."""
    users: torch.Tensor         # [B] int64
    pos: torch.Tensor           # [B]
    neg: torch.Tensor           # [B]
    each_user: torch.Tensor     # [v]
    user_at: torch.Tensor       # [B]
    each_item: torch.Tensor     # [r], positive or negative
    pos_at: torch.Tensor        # [B]
    neg_at: torch.Tensor        # [B]
    pos_rows: torch.Tensor      # [n] which of each_item are positive, ascending
    neg_rows: torch.Tensor      # [m] which are negative


def make_batches(users, pos, neg, size):
    """[n] users, positives and negatives -> list of Batch of `size` triples; the last may be smaller.

    The distinct users and items of all batches are found together, so that a GPU is waited for at the beginning of an epoch alone.
    """
    n = len(users)
    number = torch.arange(n, device=users.device) // size                     # of the batch
    each_user, user_at, _, user_counts = distinct(users, number)
    each_item, at, first_item, item_counts = distinct(torch.cat([pos, neg]), number.repeat(2))
    pos_at, neg_at = at.split(n)
    rows = [(first_item[number] + part).unique() for part in (pos_at, neg_at)]          # of each_item
    batches = torch.arange(-(-n // size), device=users.device)
    of = torch.repeat_interleave(batches, item_counts, output_size=len(each_item))      # the batch of each of them
    row_counts = [torch.bincount(of[part], minlength=len(batches)) for part in rows]
    user_counts, item_counts, *row_counts = torch.stack([user_counts, item_counts, *row_counts]).tolist()
    columns = [*(column.split(size) for column in (users, pos, neg)), each_user.split(user_counts), user_at.split(size),
               each_item.split(item_counts), pos_at.split(size), neg_at.split(size),
               *((part - first_item[of[part]]).split(counts) for part, counts in zip(rows, row_counts))]
    return [Batch(*parts) for parts in zip(*columns)]


def distinct(ids, number):
    """The distinct ids [n] of each batch, ascending, batch after batch [m]; where each id is among those of its batch [n]; where
    these begin [batches]; how many they are [batches]. number: [n], the batch of each id."""
    span = ids.max() + 1
    keys, at = (number * span + ids).unique(return_inverse=True)
    counts = torch.bincount(keys // span)
    first = counts.cumsum(0) - counts
    return keys % span, at - first[number], first, counts


class Sampler:
    """Batches of (user, positive, negative): every training pair once an epoch, in random order.

    Negatives are uniform over the items that the user has not interacted with in TRAIN (with reject=False, over all
    items). Everything is drawn on `device` from one generator, all of an epoch's batches at its beginning.
    """

    def __init__(self, train, n_items, batch, seed, device, reject=True):
        self.pairs = torch.as_tensor(train, device=device)    # [n, 2]
        self.n_items, self.batch, self.reject = n_items, batch, reject
        self.keys = pair_keys(self.pairs, n_items)
        self.generator = torch.Generator(device).manual_seed(seed)
        self.epoch_start = self.generator.get_state()

    def __len__(self):
        return -(-len(self.pairs) // self.batch)

    def is_positive(self, users, items):
        """Whether each (user, item) is a training pair: [n] bool."""
        keys = users * self.n_items + items
        at = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        return self.keys[at] == keys

    def negatives(self, users):
        """One negative item for each user: [n] int64. Positives are drawn again until none is left."""
        def draw(count):
            return torch.randint(self.n_items, (count,), generator=self.generator, device=users.device)
        items = draw(len(users))
        if self.reject:
            again = self.is_positive(users, items).nonzero()[:, 0]
            while len(again):
                items[again] = draw(len(again))
                again = again[self.is_positive(users[again], items[again])]
        return items

    def state(self, step):
        """Generator state from which epoch(step) goes on, `step` batches into an epoch (0: before the next one)."""
        return self.epoch_start if step else self.generator.get_state()

    def epoch(self, skip=0):
        """Yield each Batch of one shuffled pass; the last may be smaller.

        skip: batches to leave out at the beginning, for an epoch that is continued from state(skip).
        """
        self.epoch_start = self.generator.get_state()
        order = torch.randperm(len(self.pairs), generator=self.generator, device=self.pairs.device)
        users, positives = self.pairs[order].T.contiguous()
        yield from make_batches(users, positives, self.negatives(users), self.batch)[skip:]


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A split to be scored: users with at least one relevant item, and what is relevant and what masked for each."""
    users: torch.Tensor         # [n] int64
    relevant: tuple             # CSR (crow [n + 1], items) int64, items of a user ascending
    masked: tuple               # CSR over the same users

    def take(self, rows):
        """The HeldOut of some rows, ascending [m]."""
        return HeldOut(self.users[rows], take_rows(self.relevant, rows), take_rows(self.masked, rows))

    def ranks_like(self, other):
        """Whether another split has the same users and masks, so that its ranking is the same."""
        mine, theirs = (self.users, *self.masked), (other.users, *other.masked)
        return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(mine, theirs))


def take_rows(csr, rows):
    """Rows [m], ascending, of a CSR (crow, items) -> CSR."""
    crow, items = csr
    counts = crow.diff()
    wanted = torch.zeros_like(counts, dtype=torch.bool).index_fill_(0, rows, True)
    crow = torch.cat([crow.new_zeros(1), counts[rows].cumsum(0)])
    return crow, items[wanted.repeat_interleave(counts)]


def held_out(relevant, masked, device):
    """relevant [n, 2] pairs of a split, masked: list of [*, 2] pairs to take out of the candidates -> HeldOut."""
    users = np.unique(relevant[:, 0])

    def rows(pairs):
        pairs = pairs[np.isin(pairs[:, 0], users)]
        pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
        counts = np.bincount(np.searchsorted(users, pairs[:, 0]), minlength=len(users))
        crow = np.concatenate([[0], np.cumsum(counts)])
        return torch.as_tensor(crow, device=device), torch.as_tensor(pairs[:, 1].copy(), device=device)

    return HeldOut(torch.as_tensor(users, device=device), rows(relevant), rows(np.concatenate(masked)))


# ---------------------------------------------------------------- all of it

@dataclasses.dataclass(frozen=True)
class Dataset:
    """Everything a model and a training loop need, on the training device. Model inputs come from TRAIN alone."""
    interactions: Interactions
    adjacency: torch.Tensor | None      # None for mf
    features: dict                      # modality -> [I, d_m] float32
    graphs: dict                        # modality -> AttentionGraph over items (lgn_mm)
    user_features: torch.Tensor | None  # [U, d_t]
    user_graph: AttentionGraph | None
    fingerprint: str                    # content hash of all of the above
    notes: list                         # lines worth telling the user
    item_graph: tuple | None = None     # sparse CSR [I, I] and its transpose (freedom)


def load_dataset(config, device):
    """Read, check and build what config asks for. Raises UserError on bad input."""
    folder, note = dataset_folder(config)
    notes = [note] if note else []
    paths = feature_paths(config, folder)
    arrays = {m: open_features(path) for m, path in paths.items()}  # their row count is the catalogue's, whatever the model
    user_file = config.user_text_feat not in ("", "mean") and config.model == "lgn_mm"
    user_array = open_features(config.user_text_feat, "users") if user_file else None
    interactions = read_interactions(folder, config.data_format, max(map(len, arrays.values()), default=0),
                                     len(user_array) if user_file else 0)
    notes += [f"note: {interactions.source}: {count} repeated interactions merged in {split}"
              for split, count in interactions.merged.items() if count]
    adjacency = None if config.model == "mf" else normalised_adjacency(interactions, config.edge_weight, device)
    features = {m: load_features(array, paths[m], interactions.n_items) for m, array in arrays.items() if config.model in CONTENT_MODELS}
    graphs, item_graph, neighbours = {}, None, {}
    if config.model in ("freedom", "lgn_mm"):
        for m, matrix in features.items():
            neighbours[m], told = knn_table(matrix, getattr(config, f"item_{m}_graph"), config.item_knn_k, config, device)
            notes += told
    if config.model == "lgn_mm":
        graphs = {m: attention_graph(table, config.attn_heads, device) for m, table in neighbours.items()}
    if config.model == "freedom":
        item_graph = mean_neighbour_graph(neighbours, graph_shares(neighbours, config.item_graph_image), device)
    user_features = user_graph = None
    if config.user_text_feat and config.model == "lgn_mm":
        user_features = user_text_features(config, interactions, features, user_array)
        table, told = knn_table(user_features, config.user_text_graph, config.user_knn_k, config, device)
        user_graph, notes = attention_graph(table, config.attn_heads, device), notes + told
        user_features = torch.from_numpy(user_features).to(device)
    features = {m: torch.from_numpy(matrix).to(device) for m, matrix in features.items()}
    tensors = [*features.values(), *(graph.col for graph in graphs.values())]
    tensors += [part for matrix in (item_graph or ())[:1] for part in (matrix.col_indices(), matrix.values())]
    tensors += [user_features, user_graph.col] if user_graph is not None else []
    fingerprint = content_hash(interactions_hash(interactions), list(features), *(tensor.cpu().numpy() for tensor in tensors))
    if config.model == "lgn_mm":
        del tensors
        features = {m: column_major(features.pop(m)) for m in list(features)}
        user_features = None if user_features is None else column_major(user_features)
    return Dataset(interactions, adjacency, features, graphs, user_features, user_graph, fingerprint, notes, item_graph)


def graph_shares(modalities, image):
    """{modality: weight}: `image` for the image graph if there are others, the rest in equal parts for those."""
    if "image" not in modalities or len(modalities) == 1:
        return {m: 1 / len(modalities) for m in modalities}
    return {m: image if m == "image" else (1 - image) / (len(modalities) - 1) for m in modalities}


def user_text_features(config, interactions, features, user_array):
    """[U, d_t] float32: the file named by --user_text_feat, or the mean text feature of the user's TRAIN items."""
    if user_array is not None:
        return load_features(user_array, config.user_text_feat, interactions.n_users, "users")
    if "text" not in features:
        raise UserError("--user_text_feat mean needs item text features: add --text_feat")
    return mean_user_features(interactions.train, features["text"], interactions.n_users)


def knn_table(features, path, k, config, device):
    """Neighbours [n, k] from the file at `path`, or found through the cache. Returns (table, notes)."""
    if path:
        return read_neighbours(path, len(features), k)
    if k >= len(features):
        raise UserError(f"{k} neighbours asked for among {len(features)} rows; lower --item_knn_k or --user_knn_k below {len(features)}")
    cache_dir = config.cache_dir or Path(config.data_root) / ".cache"
    return cached_neighbours(features, k, cache_dir, config.force_build_item_knn, device)
