"""VBPR: visual Bayesian personalised ranking (He & McAuley 2016)."""

from __future__ import annotations

import typing

import scipy.sparse as sp
import torch
from torch import nn
from torch.nn import functional as F

from dataloader import Batch, Dataset, Needs
from layers.columns import normal_table, own_outputs, own_parameter, sum_parts
from layers.losses import squared_norm
from models.mf import MF, select
from world import Config


class VBPR(MF):
    """Score gamma_u . gamma_i + theta_u . E f_i + beta_i + b . f_i, where all but the features f are trained.

    f_i concatenates the item's modalities, each scaled to a mean length of 1. Both gamma and theta have d
    dimensions, as in the field's tables. The user's bias does not change a ranking and is omitted.
    """

    needs: typing.ClassVar[Needs] = Needs(features=True)
    features: torch.Tensor

    def __init__(self, config: Config, dataset: Dataset):
        super().__init__(config, dataset)
        users, items, d = len(self.user), len(self.item), config.recdim
        self.lengths = {m: mean_length(matrix) for m, matrix in dataset.features.items()}
        self.sizes = {m: matrix.shape[1] for m, matrix in dataset.features.items()}
        features = self.joined(dataset.features)
        self.register_buffer("features", features, persistent=False)  # [I, d_f]
        self.theta = normal_table(users, d, 0.1)
        # The bias is one more column, held by the last process; the others have none.
        self.bias = own_parameter(torch.zeros(items, 1), 1)
        self.content = own_outputs(nn.Linear(features.shape[1], d + 1, bias=False))  # E; its last row is b

    def embeddings(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """User vectors [U, 2 d + 1], the last column 1, and item vectors [I, 2 d + 1], the last the bias."""
        gamma, theta = select(self.user, users), select(self.theta, users)
        user = torch.cat([gamma, theta, theta.new_ones(len(theta), self.bias.shape[1])], 1)
        content, d = self.content(select(self.features, items)), theta.shape[1]  # [n, d + 1]
        bias = content[:, d:] + select(self.bias, items)
        return user, torch.cat([select(self.item, items), content[:, :d], bias], 1)

    def joined(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Features of all modalities, each divided by its mean length in the catalogue: [n, d_f]."""
        return torch.cat([features[m] / length for m, length in self.lengths.items()], 1)

    def item_parts(self) -> dict[str, torch.Tensor]:
        """gamma_i, E f_i and b . f_i of each modality, and the bias beta_i."""
        d = self.theta.shape[1]
        parts = {"id": F.pad(self.item, (0, d + 1))}
        blocks = zip(*(x.split([*self.sizes.values()], 1) for x in (self.features, self.content.weight)))
        for m, (features, weight) in zip(self.sizes, blocks, strict=True):
            parts[m] = F.pad(features @ weight.T, (d, 0))
        return {**parts, "bias": F.pad(self.bias, (2 * d, 0))}

    def norm(self, batch: Batch) -> torch.Tensor:
        """Mean squared norm of the triples' embeddings and biases, plus the squared norm of E and b."""
        theta = self.theta.index_select(0, batch.unique_users), batch.user_index
        more = squared_norm(theta, (self.bias, batch.pos), (self.bias, batch.neg))
        return super().norm(batch) + more + sum_parts(self.content.weight.square().sum())

    def new_user_vectors(
        self, histories: sp.csr_matrix, item: torch.Tensor
    ) -> tuple[torch.Tensor, list[str]]:
        """Mean vector of the user's items; an item's bias counts once."""
        user, notes = super().new_user_vectors(histories, item)
        user[:, -1] = 1
        return user, notes

    def feature_sizes(self) -> dict[str, int]:
        """{modality: dimension of its features}."""
        return self.sizes

    def cold_item_vectors(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """What the features say alone: gamma and beta, which are untrained, are 0."""
        content, d = self.content(self.joined(features)), self.theta.shape[1]
        return torch.cat(
            [content.new_zeros(len(content), self.item.shape[1]), content[:, :d], content[:, d:]], 1
        )


def mean_length(features: torch.Tensor) -> float:
    """Mean length of the rows of features [n, d], not 0."""
    return float(features.norm(dim=1).mean().clamp_min(1e-12))
