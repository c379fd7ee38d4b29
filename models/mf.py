"""Matrix factorisation trained with BPR (Rendle 2009)."""

from __future__ import annotations

import torch

from dataloader import Batch, Dataset
from layers.columns import normal_table, row_norms
from layers.losses import squared_norm
from models.base import Recommender, batch_bpr
from world import Config


class MF(Recommender):
    """A vector for each user and item, drawn from N(0, 0.1^2) and trained with BPR and weight decay."""

    def __init__(self, config: Config, dataset: Dataset):
        super().__init__(config, dataset)
        self.user = normal_table(dataset.interactions.n_users, config.recdim, 0.1)  # [U, d]
        self.item = normal_table(dataset.interactions.n_items, config.recdim, 0.1)  # [I, d]

    def embeddings(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """User vectors [U, d] and item vectors [I, d], or the given rows of them."""
        return select(self.user, users), select(self.item, items)

    def item_parts(self) -> dict[str, torch.Tensor]:
        """All of an item's vector is its ID vector."""
        return {"id": self.embeddings()[1]}

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """BPR and the weighted norm of the embeddings of the batch."""
        user, item = self.embeddings(batch.unique_users, batch.unique_items)
        bpr, norm = batch_bpr(user, item, batch), self.norm(batch)
        return {"loss": bpr + self.config.decay * norm, "bpr": bpr, "norm": norm}

    def norm(self, batch: Batch) -> torch.Tensor:
        """Mean squared norm of the embeddings (layer 0) of the batch's triples."""
        user, item = select(self.user, batch.unique_users), select(self.item, batch.unique_items)
        return squared_norm((user, batch.user_index), (item, batch.pos_index), (item, batch.neg_index))

    def diagnostics(self) -> dict[str, torch.Tensor]:
        """Mean norm of the user and of the item embeddings."""
        return {"norm/user": row_norms(self.user).mean(), "norm/item": row_norms(self.item).mean()}


def select(vectors: torch.Tensor, rows: torch.Tensor | None) -> torch.Tensor:
    """Rows [r] of vectors [n, d], or all of them."""
    return vectors if rows is None else vectors.index_select(0, rows)
