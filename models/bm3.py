"""BM3: bootstrap latent representations for multimodal recommendation (Zhou 2023, arXiv 2207.05969)."""

from __future__ import annotations

import typing
from collections.abc import Collection

import scipy.sparse as sp
import torch
from torch import nn
from torch.nn import functional as F

from dataloader import Batch, Dataset, Needs
from layers.dropout import Dropout
from layers.losses import squared_norm, total
from models.base import HistoryPart, Recommender
from models.lightgcn import LightGCN
from models.mf import select
from models.settings import BM3_SETTINGS
from world import Config


class BM3(LightGCN):
    """LightGCN trained without negatives: each vector predicts dropped-out views of those it belongs to.

    With E the embeddings, A the normalised user-item graph, f_i^m the features and L layers:

    - backbone: h = mean of the layers E, A E, ..., A^L E; items add their embedding, h_i + e_i
    - features: h_i^m = W_m f_i^m + b_m
    - predictor, one for all: h~ = W_p h + b_p
    - views: h' = stop_gradient(dropout(h))
    - C(a, b) = 1 - cos(a, b)
    - L_rec = C(h~_u, h'_i) + C(h~_i, h'_u)
    - L_align = sum over m of C(h~_i^m, h'_i), L_mask = sum over m of C(h~_i^m, h'_i^m)
    - L = L_rec + bm3_weight (L_align + L_mask) + decay (|h_u|^2 + |h_i|^2), means over the batch's pairs
    - score: h~_u . h~_i

    The paper's C is -cos, which differs by a constant, and its sum has bm3_weight 1. The features pass no
    gradient to the embeddings, only to the predictor. With bm3_train_features they are parameters, as in
    MMRec; docs/baselines.md has what that does on Baby.
    """

    needs: typing.ClassVar[Needs] = Needs(adjacency=True, features=True)
    settings = BM3_SETTINGS

    def __init__(self, config: Config, dataset: Dataset):
        super().__init__(config, dataset)
        d, own = config.recdim, vars(config)
        nn.init.xavier_uniform_(self.user)
        nn.init.xavier_uniform_(self.item)
        for m, matrix in dataset.features.items():
            if own["bm3_train_features"]:
                self.register_parameter(f"{m}_features", nn.Parameter(matrix.clone()))
            else:
                self.register_buffer(f"{m}_features", matrix, persistent=False)
        self.project = nn.ModuleDict({m: xavier(x.shape[1], d) for m, x in dataset.features.items()})
        self.predict = xavier(d, d)
        self.drop = Dropout(own["bm3_dropout"])
        self.weight = own["bm3_weight"]

    @classmethod
    def search_space(cls, config: Config, modalities: Collection[str]) -> tuple[str, ...]:
        """Learning rate, decay, layers and dropout (the grids of the paper) and what concerns features."""
        return (
            *Recommender.search_space(config, modalities),
            "layer=1,2",
            "bm3_dropout=0.3,0.5",
            "bm3_weight=1e-2..2:log",
            "bm3_train_features=0,1",
        )

    def backbone(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """h of users [U, d] and of items [I, d], or of the given rows."""
        user, item = super().embeddings(users, items)
        return user, item + select(self.item, items)

    def embeddings(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """h~ of users [U, d] and of items [I, d], or of the given rows."""
        user, item = self.backbone(users, items)
        return self.predict(user), self.predict(item)

    def history_part(self) -> HistoryPart | None:
        """LightGCN's part, after the predictor."""
        part = super().history_part()
        return part and part._replace(vectors=part.vectors @ self.predict.weight.T)

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """The three alignment terms and the weighted norm of h; the batch's negatives are not used."""
        user, item = self.backbone(batch.unique_users, batch.unique_items)
        norm = squared_norm((user, batch.user_index), (item, batch.pos_index))
        user, item = user.index_select(0, batch.user_index), item.index_select(0, batch.pos_index)
        user_view, item_view = self.view(user), self.view(item)
        feature = [
            project(getattr(self, f"{m}_features").index_select(0, batch.pos))
            for m, project in self.project.items()
        ]
        predicted = [self.predict(x) for x in feature]
        terms = {
            "rec": distance(self.predict(user), item_view) + distance(self.predict(item), user_view),
            "align": total(distance(x, item_view) for x in predicted),
            "mask": total(distance(x, self.view(own)) for x, own in zip(predicted, feature, strict=True)),
            "norm": norm,
        }
        aligned = self.weight * (terms["align"] + terms["mask"])
        return {"loss": terms["rec"] + aligned + self.config.decay * norm, **terms}

    def view(self, h: torch.Tensor) -> torch.Tensor:
        """h' of h [n, d]."""
        return self.drop(h.detach())

    def new_user_vectors(
        self, histories: sp.csr_matrix, item: torch.Tensor
    ) -> tuple[torch.Tensor, list[str]]:
        """h~ [n, d] of LightGCN's vectors of new users."""
        user, notes = super().new_user_vectors(histories, item)
        # Without layers it is the mean of item vectors, which are predicted already.
        return (self.predict(user) if self.config.layer else user), notes


def xavier(inputs: int, outputs: int) -> nn.Linear:
    """Linear layer with Xavier's initial weights (Glorot & Bengio 2010)."""
    linear = nn.Linear(inputs, outputs)
    nn.init.xavier_uniform_(linear.weight)
    return linear


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """C of vectors [n, d], mean over rows."""
    return (1 - F.cosine_similarity(a, b)).mean()
