"""From the files of a dataset folder to batches: checked interactions and features, graphs, training triples.

    needs = Needs(adjacency=True, features=True)        # a model class says what it needs
    dataset = load_dataset(config, needs, torch.device("cpu"))
    dataset.adjacency          # user-item graph of the TRAIN split, sparse CSR [U + I, U + I]
    dataset.features["text"]   # [I, d_text] float32
    for batch in Sampler(dataset.interactions.train, n_items, 2048, seed, device).epoch():
        ...

Everything a model sees comes from the TRAIN split alone. Input that cannot be used raises a UserError that
names the file, the line and the remedy.
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sp
import torch

from data.feature_files import feature_paths, load_features, open_features
from data.folders import dataset_folder
from data.formats import Interactions, interactions_hash, read_interactions
from data.graphs import knn_table, normalised_adjacency
from data.missing import fill_mean, fill_neighbours, missing_items
from layers.agreement import together
from layers.kernels import column_major
from utils import UserError, content_hash
from world import Config

# ---------------------------------------------------------------- the dataset


@dataclasses.dataclass(frozen=True)
class Needs:
    """What a model class needs of the data; load_dataset builds this and nothing else."""

    adjacency: bool = False  # the normalised user-item graph
    features: bool = False  # item features
    neighbours: bool = False  # for each modality, the nearest items of every item
    user_features: bool = False  # with --user_text_feat: user features and the nearest users of every user
    column_major: bool = False  # features in column-major order on a CPU: for large projections


@dataclasses.dataclass(frozen=True)
class Dataset:
    """What a model and its training need of the data; tensors are on the training device."""

    interactions: Interactions
    adjacency: torch.Tensor | None  # sparse CSR [U + I, U + I]
    features: dict[str, torch.Tensor]  # modality -> [I, d_m] float32
    neighbours: dict[str, np.ndarray]  # modality -> [I, k] int32 item ids, nearest first
    user_features: torch.Tensor | None  # [U, d_t] float32
    user_neighbours: np.ndarray | None  # [U, k] int32 user ids, nearest first
    fingerprint: str  # content hash of all of the above
    notes: list[str]  # lines worth telling the user
    # Content hashes of the features and of neighbours from files, by name: what a model was trained on.
    feature_hashes: dict[str, str] = dataclasses.field(default_factory=dict)
    # modality -> [I] bool, the items that lack it by --missing; the other hashes are of whole features.
    missing: dict[str, np.ndarray] = dataclasses.field(default_factory=dict)


def load_dataset(config: Config, needs: Needs, device: torch.device) -> Dataset:
    """Read and check a dataset folder and build what `needs` asks for. Raises UserError on bad input."""
    folder, note = dataset_folder(config)
    notes = [note] if note else []
    paths = feature_paths(config, folder)
    # Neighbours and the mean text features of users are made of item features, even if the model needs none.
    user_mean = needs.user_features and config.user_text_feat == "mean"
    item_features = needs.features or needs.neighbours or user_mean
    if item_features and not paths:
        raise UserError(missing_features(config, folder))
    # The number of rows of the feature files is the size of the catalogue, also for a model without features.
    arrays = {m: open_features(path) for m, path in paths.items()}
    user_array = None
    if needs.user_features and config.user_text_feat not in ("", "mean"):
        user_array = open_features(config.user_text_feat, "users")
    interactions = read_interactions(
        folder,
        config.data_format,
        max(map(len, arrays.values()), default=0),
        0 if user_array is None else len(user_array),
    )
    notes += merged_notes(interactions)
    adjacency = normalised_adjacency(interactions, config.edge_weight, device) if needs.adjacency else None
    features: dict[str, np.ndarray] = {}
    if item_features:
        with together():
            features = {m: load_features(x, paths[m], interactions.n_items) for m, x in arrays.items()}
    hashes = {m: content_hash(matrix) for m, matrix in features.items()}
    missing = remove_missing(config, interactions, features)
    neighbours: dict[str, np.ndarray] = {}
    if needs.neighbours:
        known = {m: digest for m, digest in hashes.items() if m not in missing}
        neighbours, found = item_neighbours(config, features, known, device)
        notes += found
    if config.missing_fill == "mean":
        # After the graphs, in which items without features have no neighbours: each other's, with equal ones.
        for m, absent in missing.items():
            fill_mean(features[m], absent)
    user_features = user_neighbours = None
    if needs.user_features and config.user_text_feat:
        user_features, user_neighbours, found = user_tables(
            config, interactions, features, user_array, device
        )
        notes += found
    if user_array is not None:
        hashes["user text"] = content_hash(user_features)
    hashes |= graph_file_hashes(config, neighbours, user_neighbours)
    fingerprint = input_hash(interactions, features, *neighbours.values(), user_features, user_neighbours)
    # pop frees each array in turn.
    tensors = {m: to_device(features.pop(m), needs, device) for m in list(features) if needs.features}
    user_tensor = None if user_features is None else to_device(user_features, needs, device)
    return Dataset(
        interactions,
        adjacency,
        tensors,
        neighbours,
        user_tensor,
        user_neighbours,
        fingerprint,
        notes,
        hashes,
        missing,
    )


def merged_notes(interactions: Interactions) -> list[str]:
    """A note for each split in which repeated interactions were merged."""
    return [
        f"note: {interactions.source}: {count} repeated interactions merged in {split}"
        for split, count in interactions.merged.items()
        if count
    ]


def item_neighbours(
    config: Config, features: dict[str, np.ndarray], hashes: dict[str, str], device: torch.device
) -> tuple[dict[str, np.ndarray], list[str]]:
    """{modality: nearest items [I, k]}, and notes for the user. hashes: of the features, where known."""
    neighbours, notes = {}, []
    for m, matrix in features.items():
        path = getattr(config, f"item_{m}_graph")
        neighbours[m], found = knn_table(matrix, path, config.item_knn_k, config, device, hashes.get(m, ""))
        notes += found
    return neighbours, notes


def graph_file_hashes(
    config: Config, neighbours: dict[str, np.ndarray], user_neighbours: np.ndarray | None
) -> dict[str, str]:
    """Content hashes of the neighbours that were read from files, by name."""
    tables = {m: table for m, table in neighbours.items() if getattr(config, f"item_{m}_graph")}
    if user_neighbours is not None and config.user_text_graph:
        tables["user"] = user_neighbours
    return {f"{name} neighbours": content_hash(table) for name, table in tables.items()}


def input_hash(
    interactions: Interactions, features: dict[str, np.ndarray], *tables: np.ndarray | None
) -> str:
    """Content hash of all that a model sees: interactions, item features, and further tables."""
    given = [table for table in tables if table is not None]
    return content_hash(interactions_hash(interactions), list(features), *features.values(), *given)


def remove_missing(
    config: Config, interactions: Interactions, features: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    """Take the features of the items that lack a modality by --missing, in place; see draw_missing.

    They become zeros, or with --missing_fill neighbours what fill_neighbours says.
    """
    missing = draw_missing(config, features)
    for m, absent in missing.items():
        features[m][absent] = 0
        if config.missing_fill == "neighbours":
            fill_neighbours(features[m], absent, interactions.train, interactions.n_users)
    return missing


def draw_missing(config: Config, features: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The items that lack a modality by --missing: {modality: [I] bool}, {} without features.

    Raises UserError for a modality that the data do not have, and for one with a graph from a file, which
    would know the features that are missing.
    """
    missing = {}
    for m, share in config.missing_shares.items() if features else ():
        if m not in features:
            raise UserError(
                f"--missing {m}:{share:g}: there are no {m} features; there are {', '.join(features)}"
            )
        if getattr(config, f"item_{m}_graph"):
            raise UserError(
                f"--missing {m}:{share:g}: the graph of --item_{m}_graph knows the missing features; leave "
                "it out"
            )
        missing[m] = missing_items(share, len(features[m]), config.seed, m)
    return missing


def missing_features(config: Config, folder: Path) -> str:
    """Error message for a model that needs features where there are none."""
    instead = ""
    if config.neighbour_weight:
        instead = (
            "; or take co-purchases alone in the neighbourhood term: --neighbour_content 0 "
            "--neighbour_agreement 0 --neighbour_smoothing 0"
        )
    if not config.use_multimodal:
        remedy = instead or " or take --model lgn"
        return f"--model {config.model} needs features: drop --use_multimodal 0{remedy}"
    return (
        f"{folder}: has no text_feat.npy, image_feat.npy or audio_feat.npy; --model {config.model} needs "
        f"features: name them with --text_feat, --image_feat or --audio_feat{instead}"
    )


def to_device(features: np.ndarray, needs: Needs, device: torch.device) -> torch.Tensor:
    """Features as a tensor on the device, in the layout that the model needs."""
    tensor = torch.from_numpy(features).to(device)
    return column_major(tensor) if needs.column_major else tensor


def user_tables(
    config: Config,
    interactions: Interactions,
    features: dict[str, np.ndarray],
    user_array: np.ndarray | None,
    device: torch.device,
) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Features of users [U, d_t], the nearest users of every user [U, k], and notes for the user."""
    with together():
        matrix = user_text_features(config, interactions, features, user_array)
    neighbours, notes = knn_table(matrix, config.user_text_graph, config.user_knn_k, config, device)
    return matrix, neighbours, notes


def user_text_features(
    config: Config,
    interactions: Interactions,
    features: dict[str, np.ndarray],
    user_array: np.ndarray | None,
) -> np.ndarray:
    """User features [U, d_t]: those of --user_text_feat, or the mean text feature of a user's TRAIN items."""
    if user_array is not None:
        return load_features(user_array, config.user_text_feat, interactions.n_users, "users")
    if "text" not in features:
        raise UserError("--user_text_feat mean needs item text features: add --text_feat")
    return mean_user_features(interactions.train, features["text"], interactions.n_users)


def mean_user_features(train: np.ndarray, item_features: np.ndarray, n_users: int) -> np.ndarray:
    """Mean feature of each user's items in `train` [n, 2]: [U, dim] float32, zeros without items."""
    user, item = train.T
    count = np.bincount(user, minlength=n_users)
    weight = (1 / np.maximum(count, 1)).astype(np.float32)[user]
    return sp.csr_matrix((weight, (user, item)), (n_users, len(item_features))) @ item_features


# ---------------------------------------------------------------- training batches


class Batch(typing.NamedTuple):
    """Training triples, and the distinct users and items among them, in ascending order.

    users = unique_users[user_index], pos = unique_items[pos_index], neg = unique_items[neg_index].
    """

    users: torch.Tensor  # [B] int64
    pos: torch.Tensor  # [B]
    neg: torch.Tensor  # [B]
    unique_users: torch.Tensor  # [v]
    user_index: torch.Tensor  # [B]
    unique_items: torch.Tensor  # [r], the positives and negatives of the batch
    pos_index: torch.Tensor  # [B]
    neg_index: torch.Tensor  # [B]
    unique_pos: torch.Tensor  # [n], the rows of unique_items that are a positive, ascending
    unique_neg: torch.Tensor  # [m], those that are a negative


def make_batches(users: torch.Tensor, pos: torch.Tensor, neg: torch.Tensor, size: int) -> list[Batch]:
    """Split triples (users, positives, negatives [n]) into batches of `size`; the last may be smaller.

    Distinct users and items are found for all batches at once, so that a GPU waits a fixed number of times an
    epoch, whatever the number of batches.
    """
    n = len(users)
    batch_of = torch.arange(n, device=users.device) // size
    unique_users, user_index, _, user_counts = unique_by_batch(users, batch_of)
    unique_items, index, first_item, item_counts = unique_by_batch(torch.cat([pos, neg]), batch_of.repeat(2))
    pos_index, neg_index = index.split(n)
    # Positions, among the unique items of all batches, that are a positive or a negative of their batch.
    positions = [(first_item[batch_of] + part).unique() for part in (pos_index, neg_index)]
    batches = torch.arange(-(-n // size), device=users.device)
    item_batch = torch.repeat_interleave(batches, item_counts, output_size=len(unique_items))
    counts = [torch.bincount(item_batch[part], minlength=len(batches)) for part in positions]
    user_sizes, item_sizes, *sizes = torch.stack([user_counts, item_counts, *counts]).tolist()
    unique_rows = [
        (part - first_item[item_batch[part]]).split(lengths)
        for part, lengths in zip(positions, sizes, strict=True)
    ]
    columns = [
        users.split(size),
        pos.split(size),
        neg.split(size),
        unique_users.split(user_sizes),
        user_index.split(size),
        unique_items.split(item_sizes),
        pos_index.split(size),
        neg_index.split(size),
        *unique_rows,
    ]
    return [Batch(*parts) for parts in zip(*columns, strict=True)]


def unique_by_batch(
    ids: torch.Tensor, batch_of: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Distinct ids of each batch. ids: [n]; batch_of: [n], the batch of each.

    Returns the distinct ids [m], ascending within a batch, batch after batch; the index of each id among the
    distinct ids of its batch [n]; the position of each batch's first distinct id [batches]; their number
    [batches].
    """
    span = ids.max() + 1
    keys, index = (batch_of * span + ids).unique(return_inverse=True)
    counts = torch.bincount(keys // span)
    first = counts.cumsum(0) - counts
    return keys % span, index - first[batch_of], first, counts


class Sampler:
    """Batches of (user, positive, negative): every training pair once an epoch, in random order.

    Negatives are uniform over the items that the user has not interacted with in TRAIN, or over all items
    with reject=False. Cold items [c], which training must not know, are no negatives. All triples of an epoch
    are drawn at its beginning, on the device of the pairs, from one generator.
    """

    def __init__(
        self,
        train: np.ndarray,
        n_items: int,
        batch_size: int,
        seed: int,
        device: torch.device,
        reject: bool = True,
        cold: np.ndarray | None = None,
    ):
        self.pairs = torch.as_tensor(train, device=device)  # [n, 2]
        self.n_items, self.batch_size, self.reject = n_items, batch_size, reject
        # The items that negatives are drawn from; None: all.
        self.candidates: torch.Tensor | None = None
        if cold is not None and len(cold):
            self.candidates = torch.as_tensor(np.setdiff1d(np.arange(n_items), cold), device=device)
        n_candidates = n_items if self.candidates is None else len(self.candidates)
        counts = np.bincount(train[:, 0])
        if reject and counts.max(initial=0) >= n_candidates:
            raise UserError(
                f"user {counts.argmax()} has all {n_candidates} items that are in training: there is no "
                "negative item to draw; remove this user, or take --neg_reject 0"
            )
        self.keys = torch.sort(self.pairs[:, 0] * n_items + self.pairs[:, 1]).values  # [n]
        self.generator = torch.Generator(device).manual_seed(seed)
        self.epoch_start = self.generator.get_state()

    def __len__(self) -> int:
        """Batches in an epoch."""
        return -(-len(self.pairs) // self.batch_size)

    def is_positive(self, users: torch.Tensor, items: torch.Tensor) -> torch.Tensor:
        """Whether each pair (user, item) is a training pair: [n] bool."""
        keys = users * self.n_items + items
        position = torch.searchsorted(self.keys, keys).clamp_(max=len(self.keys) - 1)
        return self.keys[position] == keys

    def draw_negatives(self, users: torch.Tensor) -> torch.Tensor:
        """One negative item for each user: [n] int64. Positives are drawn again until none is left."""

        def draw(count: int) -> torch.Tensor:
            n = self.n_items if self.candidates is None else len(self.candidates)
            drawn = torch.randint(n, (count,), generator=self.generator, device=users.device)
            return drawn if self.candidates is None else self.candidates[drawn]

        items = draw(len(users))
        if self.reject:
            rejected = self.is_positive(users, items).nonzero()[:, 0]
            while len(rejected):
                items[rejected] = draw(len(rejected))
                rejected = rejected[self.is_positive(users[rejected], items[rejected])]
        return items

    def state(self, step: int) -> torch.Tensor:
        """Generator state to continue from with epoch(step): `step` batches into an epoch (0: before it)."""
        return self.epoch_start if step else self.generator.get_state()

    def epoch(self, skip: int = 0) -> Iterator[Batch]:
        """Yield the batches of one shuffled pass; the last may be smaller.

        skip: batches to omit at the beginning, to continue an epoch from state(skip).
        """
        self.epoch_start = self.generator.get_state()
        order = torch.randperm(len(self.pairs), generator=self.generator, device=self.pairs.device)
        users, positives = self.pairs[order].T.contiguous()
        yield from make_batches(users, positives, self.draw_negatives(users), self.batch_size)[skip:]


# ---------------------------------------------------------------- held-out splits

Rows = tuple[torch.Tensor, torch.Tensor]  # CSR without values: row pointers [n + 1] and items, int64


@dataclasses.dataclass(frozen=True)
class HeldOut:
    """A split to be scored: its users, and for each the relevant items and those that are not candidates."""

    users: torch.Tensor  # [n] int64, ascending
    relevant: Rows  # items of a user in ascending order
    masked: Rows

    def select(self, rows: torch.Tensor) -> HeldOut:
        """The HeldOut of some of the users, given by their rows [m] in ascending order."""
        return HeldOut(self.users[rows], select_rows(self.relevant, rows), select_rows(self.masked, rows))

    def of_users(self, users: slice | None) -> HeldOut:
        """The HeldOut of the users in a range, which are counted from its start (None: of all)."""
        if users is None:
            return self
        rows = ((self.users >= users.start) & (self.users < users.stop)).nonzero()[:, 0]
        chosen = self.select(rows)
        return dataclasses.replace(chosen, users=chosen.users - users.start)

    def has_same_ranking(self, other: HeldOut) -> bool:
        """Whether the other split has the same users and masks, so that one ranking serves both."""
        mine, theirs = (self.users, *self.masked), (other.users, *other.masked)
        return all(a.shape == b.shape and torch.equal(a, b) for a, b in zip(mine, theirs, strict=True))


def select_rows(csr: Rows, rows: torch.Tensor) -> Rows:
    """Rows [m], in ascending order, of a CSR."""
    crow, items = csr
    counts = crow.diff()
    wanted = torch.zeros_like(counts, dtype=torch.bool).index_fill_(0, rows, True)
    crow = torch.cat([crow.new_zeros(1), counts[rows].cumsum(0)])
    return crow, items[wanted.repeat_interleave(counts)]


def held_out(relevant: np.ndarray, masked: list[np.ndarray], device: torch.device) -> HeldOut:
    """HeldOut of the pairs of a split [n, 2]; masked: pairs [*, 2] to take out of the candidates."""
    users = np.unique(relevant[:, 0])

    def rows(pairs: np.ndarray) -> Rows:
        pairs = pairs[np.isin(pairs[:, 0], users)]
        return pairs_to_rows(
            np.stack([np.searchsorted(users, pairs[:, 0]), pairs[:, 1]], 1), len(users), device
        )

    return HeldOut(torch.as_tensor(users, device=device), rows(relevant), rows(np.concatenate(masked)))


def pairs_to_rows(pairs: np.ndarray, n_rows: int, device: torch.device) -> Rows:
    """CSR of (row, item) pairs [n, 2], the items of a row in ascending order."""
    pairs = pairs[np.lexsort((pairs[:, 1], pairs[:, 0]))]
    crow = np.concatenate([[0], np.cumsum(np.bincount(pairs[:, 0], minlength=n_rows))])
    return torch.as_tensor(crow, device=device), torch.as_tensor(pairs[:, 1].copy(), device=device)
