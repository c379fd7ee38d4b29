"""VBPR."""

import torch
from torch import nn

from layers.losses import squared_norm
from models.mf import MF


class VBPR(MF):
    """Visual BPR (He & McAuley 2016): gamma_u . gamma_i + theta_u . E f_i + beta_i + b . f_i, all of it learnt but f.

    f_i is the concatenation of the item's features, each modality scaled to a mean length of 1. Both gamma and theta have d
    dimensions, as in the field's tables; the user's bias does not change a ranking and is left out.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        users, items, d = len(self.user), len(self.item), config.recdim
        features = torch.cat([unit_mean_length(matrix) for matrix in dataset.features.values()], 1)
        self.register_buffer("features", features, persistent=False)  # [I, d_f]
        self.theta = nn.Parameter(0.1 * torch.randn(users, d))
        self.bias = nn.Parameter(torch.zeros(items, 1))
        self.content = nn.Linear(features.shape[1], d + 1, bias=False)  # E and, last, b

    def embeddings(self):
        """User vectors [U, 2 d + 1], the last of their columns 1, and item vectors [I, 2 d + 1], the last of theirs the bias."""
        content = self.content(self.features)  # [I, d + 1]
        item = torch.cat([self.item, content[:, :-1], content[:, -1:] + self.bias], 1)
        return torch.cat([self.user, self.theta, torch.ones_like(self.theta[:, :1])], 1), item

    def of_batch(self, batch):
        """Vectors of batch.each_user [v, 2 d + 1] and batch.each_item [r, 2 d + 1], and their gamma [v, d] and [r, d]."""
        user, item = self.embeddings()
        return (
            user.index_select(0, batch.each_user),
            item.index_select(0, batch.each_item),
            *super().of_batch(batch)[2:],
        )

    def norm(self, batch, user, item):
        """Mean squared norm of the triples' embeddings and biases, and the squared norm of E and b."""
        more = squared_norm(
            (self.theta.index_select(0, batch.each_user), batch.user_at),
            (self.bias, batch.pos),
            (self.bias, batch.neg),
        )
        return super().norm(batch, user, item) + more + self.content.weight.square().sum()


def unit_mean_length(features):
    """Features [n, d] divided by the mean length of their rows."""
    return features / features.norm(dim=1).mean().clamp_min(1e-12)
