"""The contract between the program and a model: class Recommender.

The trainer, the evaluation, tune.py, report.py and recommend.py ask a model nothing but what stands here, and
no other part of the program knows a model by its name. A built-in model is a file in this folder (the paper's
own is model.py) and a line in models/registry.py; CONTRIBUTING.md shows how to train a class from a file of
your own.

U users, I items, d embedding size, B batch, m a modality (text, image, audio).
"""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Collection

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from dataloader import Batch, Dataset, Needs
from layers.columns import ranks
from layers.losses import bpr_loss
from layers.sparse import from_scipy
from models.neighbours import neighbour_weights, uses_content
from utils import UserError
from world import Config


@dataclasses.dataclass(frozen=True)
class ItemWeights:
    """A score term from the user's TRAIN items: factor * sum over these items j of matrix[j, i] for item i.

    spread: divide this term and the rest of the score by their standard deviations over the items first.
    """

    matrix: torch.Tensor  # sparse CSR [I, I]
    factor: float = 1.0
    spread: bool = False


class HistoryPart(typing.NamedTuple):
    """What the TRAIN items of users contribute to their vectors: user = rest + weights[user] @ vectors."""

    weights: sp.csr_matrix  # [U, I], non-zero where the user has the item
    vectors: torch.Tensor  # [I, d]


class Heatmap(typing.NamedTuple):
    """A matrix [h, w] with values of at least 0, and what its rows and columns are."""

    matrix: torch.Tensor
    rows: str
    columns: str


class Recommender(nn.Module):
    """Base class of all models. The score of user u and item i is user[u] . item[i], see `embeddings`.

    Tensors that are not trained are registered as buffers, so that model.to(device) moves them.
    """

    needs: typing.ClassVar[Needs] = Needs()
    # Settings of this model alone, {name: world.setting(...)}: they become flags, and fields of its Config.
    settings: typing.ClassVar[dict[str, typing.Any]] = {}

    neighbour_weights: torch.Tensor
    in_training: torch.Tensor
    cold_items: torch.Tensor

    def __init__(self, config: Config, dataset: Dataset):
        super().__init__()
        self.config = config
        self.keep_cold_items(dataset)
        if config.neighbour_weight:
            weights = from_scipy(neighbour_weights(config, dataset), torch.device("cpu"))
            self.register_buffer("neighbour_weights", weights, persistent=False)

    def keep_cold_items(self, dataset: Dataset) -> None:
        """Keep the features of items that are held out entirely, if this model makes vectors of them.

        cold_items: [c] ids of those that final_vectors replaces; an item that lacks a modality is none of
        them. in_training: [I] bool, the items with TRAIN interactions; {m}_known: those with features of m,
        or all if none has.
        """
        self.register_buffer("cold_items", torch.zeros(0, dtype=torch.int64), persistent=False)
        data = dataset.interactions
        known = torch.from_numpy(np.bincount(data.train[:, 1], minlength=data.n_items) > 0)
        self.register_buffer("in_training", known, persistent=False)
        if type(self).cold_item_vectors is Recommender.cold_item_vectors:
            return
        having = {m: having_features(dataset, m, self.config.missing_fill) for m in dataset.features}
        for m, rows in having.items():
            both = known.to(rows.device) & rows
            self.register_buffer(
                f"{m}_known", both if both.any() else known.to(rows.device), persistent=False
            )
        ids = torch.from_numpy(data.cold_items)
        if not (len(ids) and self.config.cold_vectors and dataset.features):
            return
        if ranks() > 1:
            raise UserError("--cold_vectors 1 needs one process where items are cold; take --cold_vectors 0")
        whole = torch.stack([*having.values()]).all(0)
        self.cold_items = ids[whole.cpu()[ids]]
        for m, matrix in dataset.features.items():
            rows = matrix[self.cold_items.to(matrix.device)]
            self.register_buffer(f"cold_{m}", rows, persistent=False)

    def known_items(self, m: str) -> torch.Tensor:
        """The items that may be neighbours of new ones by a modality, see keep_cold_items: [I] bool."""
        return getattr(self, f"{m}_known")

    @classmethod
    def data_needs(cls, config: Config) -> Needs:
        """What load_dataset has to build: `needs`, and the content graphs of the neighbourhood term."""
        if config.neighbour_weight and uses_content(config):
            return dataclasses.replace(cls.needs, features=True, neighbours=True)
        return cls.needs

    @classmethod
    def check(cls, config: Config) -> None:
        """Raise UserError for settings that this model cannot be built with."""
        if config.missing and config.missing_fill == "id":
            raise UserError(
                f"--missing_fill id: --model {config.model} has no modality vectors that an ID vector could "
                "replace; take zero, mean or neighbours"
            )

    @classmethod
    def search_space(cls, config: Config, modalities: Collection[str]) -> tuple[str, ...]:
        """What tune.py searches by default, as its --space takes it; modalities: those the dataset has."""
        return ("lr=5e-4..3e-2:log", "decay=1e-5..1e-1:log")

    # ---- training

    @classmethod
    def varying(cls, config: Config) -> str:
        """Why a training step cannot be replayed with other batches of the same sizes, in words; "": it can.

        Batches may then have repeated rows at the end of their distinct ones (training/step.py).
        """
        return ""

    def begin_step(self, step: int) -> None:
        """Change state that the coming training step depends on; step counts from 0 over the whole run.

        The trainer calls it before every loss. It is the only place where a model changes anything but its
        weights, so that `loss` and `embeddings` are functions of weights, buffers and random numbers.
        """

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """Total loss under the key "loss", and its terms by name, all 0-dim tensors."""
        raise NotImplementedError

    # ---- scoring

    def embeddings(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """User vectors [U, d] and item vectors [I, d], or only those of the given rows.

        users: [v], items: [r] int64, each row once.
        """
        raise NotImplementedError

    def final_vectors(self) -> tuple[torch.Tensor, torch.Tensor]:
        """User vectors [U, d] and item vectors [I, d] to rank with.

        They are those of `embeddings`, but cold_item_vectors for cold_items, see keep_cold_items.
        """
        user, item = self.embeddings()
        if self.replaces_cold_items():
            features = {m: getattr(self, f"cold_{m}") for m in self.feature_sizes()}
            item = item.index_copy(0, self.cold_items, self.cold_item_vectors(features))
        return user, item

    def replaces_cold_items(self) -> bool:
        """Whether final_vectors has vectors made of features for cold_items."""
        return bool(len(self.cold_items) and self.feature_sizes())

    def item_weights(self) -> ItemWeights | None:
        """A further score term from the user's TRAIN items, by default the neighbourhood term; None: none."""
        config = self.config
        if not config.neighbour_weight:
            return None
        return ItemWeights(
            self.neighbour_weights, config.neighbour_weight, config.neighbour_scale == "spread"
        )

    # ---- explanations, in one process and in eval mode

    def item_parts(self) -> dict[str, torch.Tensor]:
        """The item vectors of `embeddings` as a sum of named parts, [I, d] each; by default of one part."""
        return {"vectors": self.embeddings()[1]}

    def history_part(self) -> HistoryPart | None:
        """The part of the user vectors that comes from each TRAIN item; None: they have no such part.

        A class that replaces `embeddings` has to say this anew: an inherited one is not used.
        """
        return None

    # ---- the log

    def diagnostics(self) -> dict[str, torch.Tensor]:
        """Numbers about the model's state for the log, 0-dim tensors by name."""
        return {}

    def images(self) -> dict[str, Heatmap]:
        """Matrices for TensorBoard, by name."""
        return {}

    # ---- users and items that were not in training

    def new_user_vectors(
        self, histories: sp.csr_matrix, item: torch.Tensor
    ) -> tuple[torch.Tensor, list[str]]:
        """Vectors [n, d] of users known by their items alone, and notes for the user of the program.

        histories: [n, I] sparse 0/1; item: [I, d], the item vectors of `final_vectors`. By default the mean
        of the vectors of the user's items, except those that have neither TRAIN interactions nor a vector
        made of their features: they are untrained.
        """
        known = self.in_training.cpu().index_fill(0, self.cold_items.cpu(), True).numpy()
        histories, count, notes = trained_part(histories, known)
        return sparse_like(sp.diags(1 / np.maximum(count, 1)) @ histories, item) @ item, notes

    def feature_sizes(self) -> dict[str, int]:
        """{modality: dimension} of the features that cold_item_vectors needs; {}: it has no such vectors."""
        return {}

    def cold_item_vectors(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Vectors [n, d] of items known by their features alone: {modality: [n, d_m]}, see feature_sizes."""
        raise UserError(f"--model {self.config.model}: has no vectors for items that were not in training")


def product_dtype(config: Config) -> torch.dtype | None:
    """Type that --precision rounds the operands of large matrix products to; None: not rounded."""
    return torch.bfloat16 if config.precision == "bf16" else None


def batch_bpr(user: torch.Tensor, item: torch.Tensor, batch: Batch) -> torch.Tensor:
    """BPR loss of a batch from the vectors of its unique users [v, d] and unique items [r, d]."""
    return bpr_loss(
        user.index_select(0, batch.user_index),
        item.index_select(0, batch.pos_index),
        item.index_select(0, batch.neg_index),
    )


def having_features(dataset: Dataset, m: str, fill: str) -> torch.Tensor:
    """Which items have features of a modality, not zeros or (fill, --missing_fill) the mean: [I] bool."""
    rows = dataset.features[m].any(1)
    if fill == "mean" and m in dataset.missing:
        rows &= ~torch.from_numpy(dataset.missing[m]).to(rows.device)
    return rows


def trained_part(
    histories: sp.csr_matrix, trained: np.ndarray
) -> tuple[sp.csr_matrix, np.ndarray, list[str]]:
    """The histories [n, I] without items that are untrained, their sizes [n], and a note about empty ones."""
    histories = histories @ sp.diags(trained.astype(float))
    count = np.asarray(histories.sum(1)).ravel()
    lost = int((count == 0).sum())
    note = f"note: {lost} new users have only items that were not in training; their vectors are zeros"
    return histories, count, [note] if lost else []


def sparse_like(matrix: sp.spmatrix, tensor: torch.Tensor) -> torch.Tensor:
    """A scipy matrix as a sparse CSR tensor with the type and device of a tensor."""
    return from_scipy(matrix.astype(np.float64), tensor.device).to(tensor.dtype)
