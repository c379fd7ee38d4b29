"""Matrix factorisation."""

import torch
from torch import nn

from layers.losses import squared_norm, triple_bpr


class MF(nn.Module):
    """Matrix factorisation trained with BPR. Embeddings start from N(0, 0.1^2)."""

    def __init__(self, config, dataset):
        super().__init__()
        self.decay = config.decay
        self.user = nn.Parameter(0.1 * torch.randn(dataset.interactions.n_users, config.recdim))  # [U, d]
        self.item = nn.Parameter(0.1 * torch.randn(dataset.interactions.n_items, config.recdim))  # [I, d]

    def embeddings(self):
        """User vectors [U, d] and item vectors [I, d]."""
        return self.user, self.item

    def of_batch(self, batch):
        """Vectors of batch.each_user [v, d] and batch.each_item [r, d], and the same of layer 0: (user, item, user, item)."""
        user, item = self.user.index_select(0, batch.each_user), self.item.index_select(0, batch.each_item)
        return user, item, user, item

    def loss(self, batch):
        """BPR and the weighted norm of the layer-0 embeddings of the batch."""
        user, item, *layer0 = self.of_batch(batch)
        bpr, norm = triple_bpr(user, item, batch), self.norm(batch, *layer0)
        return {"loss": bpr + self.decay * norm, "bpr": bpr, "norm": norm}

    def norm(self, batch, user, item):
        """Mean squared norm of the triples' layer-0 embeddings, those of batch.each_user [v, d] and batch.each_item [r, d]."""
        return squared_norm((user, batch.user_at), (item, batch.pos_at), (item, batch.neg_at))

    def diagnostics(self):
        """Mean norm of the user and item embeddings."""
        return {"norm/user": self.user.norm(dim=1).mean(), "norm/item": self.item.norm(dim=1).mean()}
