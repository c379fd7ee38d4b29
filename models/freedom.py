"""FREEDOM."""

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from layers.kernels import _SparseProduct
from layers.losses import triple_bpr
from layers.sparse import bipartite_adjacency, propagate_rows, to_csr_tensor
from models.lightgcn import LightGCN


class FREEDOM(LightGCN):
    """FREEDOM (Zhou & Shen 2023): LightGCN on a user-item graph thinned anew each epoch, plus ID vectors over a frozen item graph.

    An item is its LightGCN vector plus S^l of its ID vectors, S the mean of the kNN graphs of the modalities. The loss adds
    BPR between users and linearly projected features. While scoring, the user-item graph is whole.
    """

    def __init__(self, config, dataset):
        super().__init__(config, dataset)
        train = dataset.interactions.train
        self.config, self.item_graph, self.pairs = config, dataset.item_graph, train
        self.steps = -(-len(train) // config.bpr_batch)  # an epoch
        degrees = [torch.bincount(ids).sqrt()[ids] for ids in torch.from_numpy(train).unbind(1)]
        self.odds = 1 / (degrees[0] * degrees[1]).double()  # [n] of an edge to be kept
        self.projected = list(dataset.features)
        for m, matrix in dataset.features.items():
            self.register_buffer(f"{m}_features", matrix, persistent=False)
        self.project = nn.ModuleDict(
            {m: nn.Linear(matrix.shape[1], config.recdim) for m, matrix in dataset.features.items()}
        )
        self.age, self.thinned = 0, (-1, None)

    def get_extra_state(self):
        """Training steps so far, for the state dict: they say which epoch's graph to make."""
        return torch.tensor(self.age)

    def set_extra_state(self, state):
        """Take them from a state dict."""
        self.age, self.thinned = int(state), (-1, None)

    def thinned_adjacency(self):
        """The normalised graph of this epoch's edges: a share 1 - edge_dropout of all, drawn without replacement by their odds."""
        epoch = self.age // self.steps
        if self.thinned[0] != epoch:
            self.thinned = (epoch, self.draw_edges(epoch))
        return self.thinned[1]

    def draw_edges(self, epoch):
        """The graph of epoch `epoch`, which depends on nothing but its number and the seed."""
        generator = torch.Generator().manual_seed((self.config.seed << 32) + epoch)
        # the smallest of exponential times with these rates: sampling without replacement (Efraimidis & Spirakis 2006)
        times = torch.empty(len(self.odds), dtype=torch.float64).exponential_(generator=generator) / self.odds
        kept = (
            times.topk(max(int(len(times) * (1 - self.config.edge_dropout)), 1), largest=False)
            .indices.sort()
            .values
        )
        return bipartite_adjacency(self.pairs[kept.numpy()], len(self.user), len(self.item), self.user.device)

    def content(self):
        """ID vectors of all items over the frozen item graph [I, d]."""
        item = self.item
        for _ in range(self.config.item_graph_layers):
            item = _SparseProduct.apply(*self.item_graph, item)
        return item

    def embeddings(self):
        """User vectors [U, d] and item vectors [I, d] over the whole user-item graph."""
        user, item = super().embeddings()
        return user, item + self.content()

    def of_batch(self, batch):
        """As LightGCN's, over this epoch's graph in training, and with the item graph."""
        adjacency = self.adjacency
        if self.training:
            adjacency, self.age = self.thinned_adjacency(), self.age + 1
        user, item, *layer0 = propagate_rows(
            adjacency, self.layers, (batch.each_user, batch.each_item), self.user, self.item
        )
        return user, item + self.content().index_select(0, batch.each_item), *layer0

    def loss(self, batch):
        """BPR, BPR on each modality's projected features, and the weighted norm of the layer-0 embeddings of the batch."""
        user, item, *layer0 = self.of_batch(batch)
        terms = {"bpr": triple_bpr(user, item, batch), "norm": self.norm(batch, *layer0)}
        total = terms["bpr"] + self.decay * terms["norm"]
        if self.config.feature_bpr_weight:
            terms["feature_bpr"] = sum(self.feature_bpr(user, m, batch) for m in self.projected)
            total = total + self.config.feature_bpr_weight * terms["feature_bpr"]
        return {"loss": total, **terms}

    def feature_bpr(self, user, m, batch):
        """BPR of users [v, d] with the projected features of modality m; each item of the batch is projected once."""
        return triple_bpr(
            user, self.project[m](getattr(self, f"{m}_features").index_select(0, batch.each_item)), batch
        )


def mean_neighbour_graph(neighbours, shares, device):
    """FREEDOM's frozen item graph: sum over modalities of share * the mean over an item's neighbours, and its transpose.

    neighbours: {m: [I, k] int64}; shares: {m: weight}. An item's own id among its neighbours stands for none. Edges are
    directed; each row's degree is the number of its neighbours, so D^-1/2 S D^-1/2 of the paper divides by it.
    Returns two sparse CSR [I, I] float32.
    """
    total = 0
    for m, table in neighbours.items():
        n, k = table.shape
        rows, cols = np.repeat(np.arange(n), k), table.ravel()
        others = rows != cols
        degree = np.bincount(rows[others], minlength=n)
        weight = shares[m] / degree[rows[others]]
        total = total + sp.csr_matrix((weight, (rows[others], cols[others])), (n, n))
    return to_csr_tensor(total.astype(np.float32), device), to_csr_tensor(
        total.T.tocsr().astype(np.float32), device
    )


def graph_shares(modalities, image):
    """{modality: weight}: `image` for the image graph if there are others, the rest in equal parts for those."""
    if "image" not in modalities or len(modalities) == 1:
        return {m: 1 / len(modalities) for m in modalities}
    return {m: image if m == "image" else (1 - image) / (len(modalities) - 1) for m in modalities}
