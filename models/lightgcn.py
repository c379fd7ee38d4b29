"""LightGCN."""

from layers.sparse import propagate, propagate_rows
from models.mf import MF


class LightGCN(MF):
    """LightGCN (He 2020, eq. 4-5): the mean of layers 0..L of E <- A E, with A the normalised user-item graph."""

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        self.layers = config.layer
        self.adjacency = dataset.adjacency

    def embeddings(self):
        """Propagated user vectors [U, d] and item vectors [I, d]."""
        return propagate(self.adjacency, self.layers, self.user, self.item)

    def of_batch(self, batch):
        """Propagated vectors of batch.each_user [v, d] and batch.each_item [r, d], and the same of layer 0: (user, item, user, item)."""
        return propagate_rows(
            self.adjacency, self.layers, (batch.each_user, batch.each_item), self.user, self.item
        )
