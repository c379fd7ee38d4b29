"""Models that score with item-to-item weights alone and have nothing to train."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
import torch

from dataloader import Dataset
from layers.sparse import from_scipy
from models.base import ItemWeights, Recommender
from world import Config


class ItemModel(Recommender):
    """Base class: the score of an item is the sum of its weights over the user's TRAIN items."""

    weights: torch.Tensor

    def __init__(self, config: Config, dataset: Dataset):
        super().__init__(config, dataset)
        self.n_users = dataset.interactions.n_users
        matrix = from_scipy(self.make_weights(config, dataset), torch.device("cpu"))
        self.register_buffer("weights", matrix, persistent=False)

    def make_weights(self, config: Config, dataset: Dataset) -> sp.csr_matrix:
        """The weights [I, I] float32: entry (j, i) is what item j of the user adds to the score of item i."""
        raise NotImplementedError

    def embeddings(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors without any dimension: all of the score comes from item_weights."""
        n_users = self.n_users if users is None else len(users)
        n_items = len(self.weights) if items is None else len(items)
        values = self.weights.values()
        return values.new_zeros(n_users, 0), values.new_zeros(n_items, 0)

    def item_weights(self) -> ItemWeights:
        """The weights."""
        return ItemWeights(self.weights)


def keep_largest(matrix: sp.csr_matrix, k: int) -> sp.csr_matrix:
    """The k entries of largest magnitude in each row of a sparse matrix; of equal ones, the lower columns."""
    matrix.sort_indices()
    rows = np.repeat(np.arange(matrix.shape[0]), np.diff(matrix.indptr))
    order = np.lexsort((matrix.indices, -np.abs(matrix.data), rows))
    rank = np.arange(matrix.nnz) - matrix.indptr[rows[order]]
    kept = order[rank < k]
    return sp.csr_matrix((matrix.data[kept], (rows[kept], matrix.indices[kept])), matrix.shape)
