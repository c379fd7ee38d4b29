"""From files to what a training step needs: checked interactions and features, graphs, batches.

    dataset = load_dataset(config, torch.device("cpu"))
    dataset.adjacency          # user-item graph of the TRAIN split, sparse CSR [U + I, U + I]
    dataset.features["text"]   # [I, d_text] float32
    dataset.graphs["text"]     # AttentionGraph over items

Every reader checks what it reads; what it cannot use ends in a UserError that names file, line and remedy.
"""

import dataclasses
import typing

import numpy as np
import scipy.sparse as sp
import torch

from data.feature_files import feature_paths, load_features, open_features
from data.formats import Interactions, dataset_folder, interactions_hash, read_interactions
from data.graphs import knn_table, normalised_adjacency
from layers.attention import AttentionGraph, attention_graph
from layers.kernels import column_major
from models.freedom import graph_shares, mean_neighbour_graph
from utils import UserError, content_hash
from world import CONTENT_MODELS

# ---------------------------------------------------------------- features


def mean_user_features(train, item_features, n_users):
    """Mean feature of each user's TRAIN items [U, dim] float32; zeros for a user without any."""
    user, item = train.T
    count = np.bincount(user, minlength=n_users)
    weight = (1 / np.maximum(count, 1)).astype(np.float32)[user]
    return sp.csr_matrix((weight, (user, item)), (n_users, len(item_features))) @ item_features


# ---------------------------------------------------------------- batches


def pair_keys(pairs, n_items):
    """[n, 2] pairs -> sorted [n] int64 keys user * I + item."""
    return torch.sort(pairs[:, 0] * n_items + pairs[:, 1]).values


class Batch(typing.NamedTuple):
    """Training triples, and the distinct users and items among them, ascending: users = each_user[user_at],
    pos = each_item[pos_at], neg = each_item[neg_at]."""

    users: torch.Tensor  # [B] int64
    pos: torch.Tensor  # [B]
    neg: torch.Tensor  # [B]
    each_user: torch.Tensor  # [v]
    user_at: torch.Tensor  # [B]
    each_item: torch.Tensor  # [r], positive or negative
    pos_at: torch.Tensor  # [B]
    neg_at: torch.Tensor  # [B]
    pos_rows: torch.Tensor  # [n] which of each_item are positive, ascending
    neg_rows: torch.Tensor  # [m] which are negative


def make_batches(users, pos, neg, size):
    """[n] users, positives and negatives -> list of Batch of `size` triples; the last may be smaller.

    The distinct users and items of all batches are found together, so that a GPU is waited for at the beginning of an epoch alone.
    """
    n = len(users)
    number = torch.arange(n, device=users.device) // size  # of the batch
    each_user, user_at, _, user_counts = distinct(users, number)
    each_item, at, first_item, item_counts = distinct(torch.cat([pos, neg]), number.repeat(2))
    pos_at, neg_at = at.split(n)
    rows = [(first_item[number] + part).unique() for part in (pos_at, neg_at)]  # of each_item
    batches = torch.arange(-(-n // size), device=users.device)
    of = torch.repeat_interleave(
        batches, item_counts, output_size=len(each_item)
    )  # the batch of each of them
    row_counts = [torch.bincount(of[part], minlength=len(batches)) for part in rows]
    user_counts, item_counts, *row_counts = torch.stack([user_counts, item_counts, *row_counts]).tolist()
    columns = [
        *(column.split(size) for column in (users, pos, neg)),
        each_user.split(user_counts),
        user_at.split(size),
        each_item.split(item_counts),
        pos_at.split(size),
        neg_at.split(size),
        *((part - first_item[of[part]]).split(counts) for part, counts in zip(rows, row_counts)),
    ]
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
        self.pairs = torch.as_tensor(train, device=device)  # [n, 2]
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

    users: torch.Tensor  # [n] int64
    relevant: tuple  # CSR (crow [n + 1], items) int64, items of a user ascending
    masked: tuple  # CSR over the same users

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
    adjacency: torch.Tensor | None  # None for mf
    features: dict  # modality -> [I, d_m] float32
    graphs: dict  # modality -> AttentionGraph over items (lgn_mm)
    user_features: torch.Tensor | None  # [U, d_t]
    user_graph: AttentionGraph | None
    fingerprint: str  # content hash of all of the above
    notes: list  # lines worth telling the user
    item_graph: tuple | None = None  # sparse CSR [I, I] and its transpose (freedom)


def load_dataset(config, device):
    """Read, check and build what config asks for. Raises UserError on bad input."""
    folder, note = dataset_folder(config)
    notes = [note] if note else []
    paths = feature_paths(config, folder)
    arrays = {
        m: open_features(path) for m, path in paths.items()
    }  # their row count is the catalogue's, whatever the model
    user_file = config.user_text_feat not in ("", "mean") and config.model == "lgn_mm"
    user_array = open_features(config.user_text_feat, "users") if user_file else None
    interactions = read_interactions(
        folder,
        config.data_format,
        max(map(len, arrays.values()), default=0),
        len(user_array) if user_file else 0,
    )
    notes += [
        f"note: {interactions.source}: {count} repeated interactions merged in {split}"
        for split, count in interactions.merged.items()
        if count
    ]
    adjacency = (
        None if config.model == "mf" else normalised_adjacency(interactions, config.edge_weight, device)
    )
    features = {
        m: load_features(array, paths[m], interactions.n_items)
        for m, array in arrays.items()
        if config.model in CONTENT_MODELS
    }
    graphs, item_graph, neighbours = {}, None, {}
    if config.model in ("freedom", "lgn_mm"):
        for m, matrix in features.items():
            neighbours[m], told = knn_table(
                matrix, getattr(config, f"item_{m}_graph"), config.item_knn_k, config, device
            )
            notes += told
    if config.model == "lgn_mm":
        graphs = {m: attention_graph(table, config.attn_heads, device) for m, table in neighbours.items()}
    if config.model == "freedom":
        item_graph = mean_neighbour_graph(
            neighbours, graph_shares(neighbours, config.item_graph_image), device
        )
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
    fingerprint = content_hash(
        interactions_hash(interactions), list(features), *(tensor.cpu().numpy() for tensor in tensors)
    )
    if config.model == "lgn_mm":
        del tensors
        features = {m: column_major(features.pop(m)) for m in list(features)}
        user_features = None if user_features is None else column_major(user_features)
    return Dataset(
        interactions, adjacency, features, graphs, user_features, user_graph, fingerprint, notes, item_graph
    )


def user_text_features(config, interactions, features, user_array):
    """[U, d_t] float32: the file named by --user_text_feat, or the mean text feature of the user's TRAIN items."""
    if user_array is not None:
        return load_features(user_array, config.user_text_feat, interactions.n_users, "users")
    if "text" not in features:
        raise UserError("--user_text_feat mean needs item text features: add --text_feat")
    return mean_user_features(interactions.train, features["text"], interactions.n_users)
