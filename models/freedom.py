"""FREEDOM: freezing and denoising graph structures for multimodal recommendation (Zhou & Shen 2023)."""

from __future__ import annotations

import functools
import operator
import typing
from collections.abc import Collection

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn

from data.graphs import edge_weights
from dataloader import Batch, Dataset, Needs
from layers.columns import own_outputs
from layers.cosine import mean_direction, nearest_rows
from layers.kernels import sparse_product
from layers.losses import total
from layers.sparse import bipartite_adjacency
from models.base import HistoryPart, Recommender, batch_bpr
from models.item_graphs import with_transpose
from models.lightgcn import LightGCN
from models.mf import select
from models.neighbours import graph_shares
from world import Config


class FREEDOM(LightGCN):
    """LightGCN on a user-item graph thinned anew each epoch, plus ID vectors over a frozen item graph.

    An item vector is the item's LightGCN vector plus S^l E, with E the ID embeddings and S the weighted mean
    of the modalities' kNN graphs. The loss adds BPR between user vectors and linearly projected features, and
    decay |e|^2 of the batch's triples, which the paper does not have. Scoring uses the whole user-item graph.
    """

    needs: typing.ClassVar[Needs] = Needs(adjacency=True, features=True, neighbours=True)
    item_graph: torch.Tensor
    item_graph_transposed: torch.Tensor
    thinned: torch.Tensor

    def __init__(self, config: Config, dataset: Dataset):
        super().__init__(config, dataset)
        self.pairs = dataset.interactions.train
        self.weights = edge_weights(dataset.interactions, config.edge_weight)
        self.steps_per_epoch = -(-len(self.pairs) // config.bpr_batch)
        degree_u, degree_i = (np.bincount(ids)[ids] for ids in self.pairs.T)
        self.keep_rate = 1 / np.sqrt(degree_u * degree_i)  # [n], relative odds of an edge to be kept
        self.thinned_epoch = -1
        self.register_buffer("thinned", self.adjacency, persistent=False)
        graph = mean_neighbour_graph(
            dataset.neighbours, graph_shares(dataset.neighbours, config.item_graph_image)
        )
        item_graph, transposed = with_transpose(graph, self.adjacency.device)
        self.register_buffer("item_graph", item_graph, persistent=False)
        self.register_buffer("item_graph_transposed", transposed, persistent=False)
        for m, matrix in dataset.features.items():
            self.register_buffer(f"{m}_features", matrix, persistent=False)
        self.project = nn.ModuleDict(
            {
                m: own_outputs(nn.Linear(matrix.shape[1], config.recdim))
                for m, matrix in dataset.features.items()
            }
        )

    @classmethod
    def search_space(cls, config: Config, modalities: Collection[str]) -> tuple[str, ...]:
        """Learning rate, decay, and FREEDOM's own settings."""
        own = ("item_graph_image=0..1", "edge_dropout=0..0.9", "feature_bpr_weight=1e-5..1e-1:log")
        return (*Recommender.search_space(config, modalities), *own, "item_knn_k=5,10,20")

    @classmethod
    def varying(cls, config: Config) -> str:
        """The thinned graph."""
        return "the user-item graph is another one in each epoch"

    def begin_step(self, step: int) -> None:
        """Thin the user-item graph at the first step of an epoch."""
        epoch = step // self.steps_per_epoch
        if epoch != self.thinned_epoch:
            self.thinned_epoch, self.thinned = epoch, self.thin(epoch)

    def thin(self, epoch: int) -> torch.Tensor:
        """Normalised graph of an epoch's edges: a share 1 - edge_dropout of all, drawn without replacement.

        It depends on the epoch and the seed alone, so that a resumed run draws the same graph.
        """
        # torch's generator on a CPU uses the lowest 32 bits of a seed alone, which cannot hold both numbers.
        rng = np.random.default_rng((self.config.seed, epoch))
        # The edges with the smallest exponential arrival times are a sample without replacement (Efraimidis &
        # Spirakis 2006).
        times = rng.exponential(size=len(self.keep_rate)) / self.keep_rate
        count = max(int(len(times) * (1 - self.config.edge_dropout)), 1)
        kept = np.sort(np.argpartition(times, count - 1)[:count])
        sizes = len(self.user), len(self.item)
        graph = bipartite_adjacency(self.pairs[kept], *sizes, self.user.device, self.weights[kept])
        return graph.to(self.user.dtype)

    def graph(self) -> torch.Tensor:
        """The thinned graph of the epoch while training, the whole graph while scoring."""
        return self.thinned if self.training else self.adjacency

    def embeddings(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """User vectors [U, d] and item vectors [I, d], or the given rows of them."""
        user, item = super().embeddings(users, items)
        return user, item + select(self.content(), items)

    def content(self) -> torch.Tensor:
        """The ID embeddings after their layers over the item graph, S^l E: [I, d]."""
        content: torch.Tensor = self.item
        for _ in range(self.config.item_graph_layers):
            content = sparse_product(self.item_graph, self.item_graph_transposed, content)
        return content

    def item_parts(self) -> dict[str, torch.Tensor]:
        """The LightGCN vector, and what comes over the item graph, in which the modalities are mixed."""
        return {"id": super().embeddings()[1], "content": self.content()}

    def feature_sizes(self) -> dict[str, int]:
        """{modality: dimension of its features}; {} without an item graph, which cold items need."""
        names = self.project if self.config.item_graph_layers else ()
        return {m: getattr(self, f"{m}_features").shape[1] for m in names}

    def cold_item_vectors(self, features: dict[str, torch.Tensor]) -> torch.Tensor:
        """Vectors made of those of the nearest items: the item_knn_k nearest in training of each modality.

        Over the item graph comes the mean of S^{l-1} E, modalities having their shares of the graph. In place
        of the LightGCN vector that cold items lack stands the mean direction of those of the nearest items.
        """
        content: torch.Tensor = self.item
        for _ in range(self.config.item_graph_layers - 1):
            content = sparse_product(self.item_graph, self.item_graph_transposed, content)
        shares, k = graph_shares(features, self.config.item_graph_image), self.config.item_knn_k
        nearest = {
            m: nearest_rows(matrix, getattr(self, f"{m}_features"), k, self.known_items(m))
            for m, matrix in features.items()
        }
        near = super().embeddings()[1][torch.cat([*nearest.values()], 1)]
        return mean_direction(near) + total(shares[m] * content[rows].mean(1) for m, rows in nearest.items())

    def history_part(self) -> HistoryPart | None:
        """LightGCN's, whose user vectors these are."""
        return super().history_part()

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """BPR, BPR with the projected features of each modality, and the weighted norm of the embeddings."""
        user, item = self.embeddings(batch.unique_users, batch.unique_items)
        terms = {"bpr": batch_bpr(user, item, batch), "norm": self.norm(batch)}
        loss = terms["bpr"] + self.config.decay * terms["norm"]
        if self.config.feature_bpr_weight:
            terms["feature_bpr"] = total(self.feature_bpr(user, m, batch) for m in self.project)
            loss = loss + self.config.feature_bpr_weight * terms["feature_bpr"]
        return {"loss": loss, **terms}

    def feature_bpr(self, user: torch.Tensor, m: str, batch: Batch) -> torch.Tensor:
        """BPR of the users [v, d] of a batch with the projected features of modality m."""
        features = getattr(self, f"{m}_features").index_select(0, batch.unique_items)
        return batch_bpr(user, self.project[m](features), batch)


def mean_neighbour_graph(neighbours: dict[str, np.ndarray], shares: dict[str, float]) -> sp.csr_matrix:
    """FREEDOM's frozen item graph [I, I] float32: sum over modalities of share * mean over neighbours.

    neighbours: {m: [I, k]}, where an item's own id stands for "no neighbour"; shares: {m: weight}. Edges are
    directed and a row's degree is its number of neighbours, so D^-1/2 S D^-1/2 of the paper divides by that
    number.
    """
    graphs = []
    for m, table in neighbours.items():
        n, k = table.shape
        rows, cols = np.repeat(np.arange(n), k), table.ravel()
        others = rows != cols
        degree = np.bincount(rows[others], minlength=n)
        weight = shares[m] / degree[rows[others]]
        graphs.append(sp.csr_matrix((weight, (rows[others], cols[others])), (n, n)))
    return functools.reduce(operator.add, graphs).astype(np.float32)
