"""Models that score with item-to-item weights alone and have nothing to train."""

from __future__ import annotations

import scipy.sparse as sp
import torch

from dataloader import Dataset
from layers.sparse import from_scipy
from models.base import ItemWeights, Recommender
from utils import UserError
from world import Config


class ItemModel(Recommender):
    """Base class: the score of an item is the sum of its weights over the user's TRAIN items."""

    weights: torch.Tensor

    @classmethod
    def check(cls, config: Config) -> None:
        """Refuse what needs vectors, and the neighbourhood term: they score with weights of their own."""
        super().check(config)
        if config.projector:
            raise UserError(f"--projector 1: --model {config.model} has no vectors to show; leave it out")
        if config.neighbour_weight:
            raise UserError(
                f"--neighbour_weight {config.neighbour_weight:g}: --model {config.model} scores with its own "
                "item weights alone; leave it out"
            )

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
