"""LightGCN (He 2020)."""

from __future__ import annotations

import typing

import numpy as np
import scipy.sparse as sp
import torch

from dataloader import Dataset, Needs
from layers.kernels import mean_of_layers, propagate
from layers.sparse import to_scipy
from models.base import HistoryPart, Recommender, sparse_like, trained_part
from models.mf import MF
from world import Config


class LightGCN(MF):
    """LightGCN (eq. 4-5): the mean of the layers E, A E, ..., A^L E; A is the normalised user-item graph."""

    needs: typing.ClassVar[Needs] = Needs(adjacency=True)
    adjacency: torch.Tensor

    def __init__(self, config: Config, dataset: Dataset):
        super().__init__(config, dataset)
        self.register_buffer("adjacency", dataset.adjacency, persistent=False)  # sparse CSR [U + I, U + I]

    @classmethod
    def search_space(cls, config: Config, modalities: typing.Collection[str]) -> tuple[str, ...]:
        """Learning rate, decay and the number of layers."""
        return (*super().search_space(config, modalities), "layer=1..4")

    def graph(self) -> torch.Tensor:
        """The graph that embeddings are propagated over."""
        return self.adjacency

    def embeddings(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Propagated user vectors [U, d] and item vectors [I, d], or the given rows of them."""
        return propagate(self.graph(), self.config.layer, self.user, self.item, users, items)

    def history_part(self) -> HistoryPart | None:
        """What reaches a user over each of their items in the L layers; None with no layer.

        The rest is the user's own embedding at layer 0, divided by L + 1.
        """
        layers, n_users = self.config.layer, len(self.user)
        if not layers:
            return None
        _, below = mean_of_layers(self.adjacency, layers - 1, (self.user, self.item))
        return HistoryPart(to_scipy(self.adjacency)[:n_users, n_users:], below * (layers / (layers + 1)))

    def new_user_vectors(
        self, histories: sp.csr_matrix, item: torch.Tensor
    ) -> tuple[torch.Tensor, list[str]]:
        """Vectors [n, d] from one propagation over a user's items, which keep their trained embeddings.

        That is the user's row of (E^0 + ... + E^L) / (L + 1), E^{l+1} = A E^l, with a zero vector at layer 0:
        layer l of the user comes from layer l - 1 of the items. Where ratings weigh the edges, those of new
        users count as 1. Items without TRAIN interactions, whose embeddings are untrained, do not count.
        """
        layers = self.config.layer
        if not layers:
            return Recommender.new_user_vectors(self, histories, item)
        edges = self.adjacency.crow_indices().diff()[len(self.user) :].cpu().numpy()
        histories, count, notes = trained_part(histories, edges > 0)
        degree = edges + 1.0  # the edge of the new user counts too
        weights = sp.diags(np.maximum(count, 1) ** -0.5) @ histories @ sp.diags(degree**-0.5)
        _, below = mean_of_layers(self.adjacency, layers - 1, (self.user, self.item))
        return sparse_like(weights, item) @ below * (layers / (layers + 1)), notes
