"""LATTICE: mining latent structures for multimedia recommendation (Zhang 2021, arXiv 2104.09036)."""

from __future__ import annotations

import functools
import typing
from collections.abc import Callable, Collection, Mapping

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn
from torch.nn import functional as F

from data.graphs import nearest_neighbours
from dataloader import Dataset, Needs
from layers.kernels import sparse_product
from layers.losses import directions
from layers.sparse import to_scipy
from models.base import HistoryPart, Recommender, having_features
from models.item_graphs import similarity_graph, with_transpose
from models.lightgcn import LightGCN
from models.mf import select
from models.settings import LATTICE_SETTINGS
from world import Config


class LATTICE(LightGCN):
    """LightGCN whose item vectors add those of an item graph that is learnt from the features.

    With f^m the features of modality m, e the ID embeddings, and graph(x) = D^-1/2 S D^-1/2 of the cosines
    S_ij of an item with itself and its k nearest items (negative ones count as 0; D are row sums):

    - initial graph: S~^m = graph(f^m)
    - learnt graph: A~^m = graph(W_m f^m + b_m)
    - skip connection: A^m = lattice_initial S~^m + (1 - lattice_initial) A~^m
    - over modalities: A = sum over m of softmax(alpha)_m A^m, alpha learnt
    - convolution: h^0 = e_i, h^l = A h^(l-1), for item_graph_layers layers
    - vectors: user LightGCN_u, item LightGCN_i + h_i / |h_i|; the score is their inner product
    - loss: BPR + decay |e|^2 of the batch's triples

    As in the authors' program, A is made anew at the start of an epoch and has gradients in the first step
    alone: W_m, b_m and alpha change in that step, and A of training does not until the next epoch. Scores are
    made with A of the present weights. k counts other items: the paper counts the item itself.
    """

    needs: typing.ClassVar[Needs] = Needs(adjacency=True, features=True, neighbours=True)
    settings = LATTICE_SETTINGS
    shares: torch.Tensor
    fixed: torch.Tensor
    fixed_transposed: torch.Tensor

    def __init__(self, config: Config, dataset: Dataset):
        super().__init__(config, dataset)
        self.initial_share = vars(config)["lattice_initial"]
        self.steps_per_epoch = -(-len(dataset.interactions.train) // config.bpr_batch)
        self.learning = False  # whether A has gradients in the coming step
        nn.init.xavier_uniform_(self.user)
        nn.init.xavier_uniform_(self.item)
        self.project = nn.ModuleDict(
            {m: nn.Linear(x.shape[1], config.recdim) for m, x in dataset.features.items()}
        )
        self.alpha = nn.Parameter(torch.zeros(len(self.project)))
        # A of the epoch. It is part of a checkpoint, because a run that is resumed within an epoch has other
        # weights than at its start: softmax(alpha), and columns and values of each A~^m.
        self.register_buffer("shares", self.alpha.detach().softmax(0))
        for m, matrix in dataset.features.items():
            whole = having_features(dataset, m, config.missing_fill)[:, None]
            self.register_buffer(f"{m}_whole", whole, persistent=False)
            # The features may be on a GPU; the model is not until it is complete.
            features, table = matrix.masked_fill(~whole, 0).cpu(), dataset.neighbours[m]
            self.register_buffer(f"{m}_features", matrix, persistent=False)
            graphs = with_transpose(similarity_graph(features.numpy(), table), matrix.device)
            self.register_buffer(f"{m}_graph", graphs[0], persistent=False)
            self.register_buffer(f"{m}_graph_transposed", graphs[1], persistent=False)
            nearest = torch.from_numpy(table).long()
            self.register_buffer(f"{m}_nearest", nearest)
            x = self.project[m](features).masked_fill(~whole.cpu(), 0)
            values = learnt_graph(x, nearest)[1]
            self.register_buffer(f"{m}_learnt", values.detach())
        self.register_load_state_dict_post_hook(lambda module, _: module.make_fixed())
        self.make_fixed()

    @classmethod
    def search_space(cls, config: Config, modalities: Collection[str]) -> tuple[str, ...]:
        """Learning rate, decay, LightGCN layers, neighbours and the share of the initial graph."""
        own = ("layer=1..3", "item_knn_k=5,10,20", "lattice_initial=0.5,0.7,0.9")
        return (*Recommender.search_space(config, modalities), *own)

    @classmethod
    def varying(cls, config: Config) -> str:
        """The first step of an epoch."""
        return "the item graph is learnt in the first step of an epoch alone"

    @torch.no_grad()
    def begin_step(self, step: int) -> None:
        """Make A anew at the first step of an epoch."""
        self.learning = step % self.steps_per_epoch == 0
        if self.learning:
            self.shares.copy_(self.alpha.softmax(0))
            for m, (nearest, values) in self.learnt_graphs().items():
                getattr(self, f"{m}_nearest").copy_(nearest)
                getattr(self, f"{m}_learnt").copy_(values)
            self.make_fixed()

    @torch.no_grad()
    def learnt_graphs(self) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
        """{modality: nearest items [I, k] and values [I, 1 + k] of A~^m} of the present weights."""
        graphs = {}
        for m in self.project:
            x = self.projected(m)
            k = getattr(self, f"{m}_nearest").shape[1]
            nearest = torch.from_numpy(nearest_neighbours(x.float().cpu().numpy(), k, x.device)).to(x.device)
            graphs[m] = nearest.long(), learnt_graph(x, nearest.long())[1]
        return graphs

    def make_fixed(self) -> None:
        """Make A of the epoch and its transpose from the buffers of a checkpoint."""
        learnt = {m: (getattr(self, f"{m}_nearest"), getattr(self, f"{m}_learnt")) for m in self.project}
        for name, matrix in zip(("fixed", "fixed_transposed"), self.mixed(self.shares, learnt), strict=True):
            self.register_buffer(name, matrix, persistent=False)

    def mixed(
        self, shares: torch.Tensor, learnt: Mapping[str, tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """A [I, I] and its transpose, sparse CSR without gradients. learnt: as of learnt_graphs."""
        graph = sp.csr_matrix((len(self.item), len(self.item)))
        for share, (m, (nearest, values)) in zip(shares.tolist(), learnt.items(), strict=True):
            columns = with_own(nearest).cpu().numpy()
            rows = np.repeat(np.arange(len(columns)), columns.shape[1])
            found = sp.csr_matrix((values.cpu().numpy().ravel(), (rows, columns.ravel())), graph.shape)
            initial = to_scipy(getattr(self, f"{m}_graph"))
            graph = graph + share * (self.initial_share * initial + (1 - self.initial_share) * found)
        matrix, transposed = with_transpose(graph, self.item.device)
        return matrix.to(self.item.dtype), transposed.to(self.item.dtype)

    def projected(self, m: str) -> torch.Tensor:
        """W_m f^m + b_m of all items [I, d]; zeros for an item without features, which b_m would move."""
        x = self.project[m](getattr(self, f"{m}_features"))
        return x.masked_fill(~getattr(self, f"{m}_whole"), 0)

    def convolution(self) -> Callable[[torch.Tensor], torch.Tensor]:
        """The function h -> A h [I, d].

        A has gradients in the first training step of an epoch; it is that of the epoch in the others, and of
        the present weights in evaluation.
        """
        if not self.training:
            return functools.partial(sparse_product, *self.mixed(self.alpha.softmax(0), self.learnt_graphs()))
        if not self.learning:
            return functools.partial(sparse_product, self.fixed, self.fixed_transposed)
        learnt = {m: learnt_graph(self.projected(m), getattr(self, f"{m}_nearest")) for m in self.project}

        def convolve(h: torch.Tensor) -> torch.Tensor:
            out = torch.zeros_like(h)
            for share, (m, (columns, values)) in zip(self.alpha.softmax(0), learnt.items(), strict=True):
                initial = sparse_product(
                    getattr(self, f"{m}_graph"), getattr(self, f"{m}_graph_transposed"), h
                )
                found = F.embedding_bag(columns, h, per_sample_weights=values, mode="sum")
                out = out + share * (self.initial_share * initial + (1 - self.initial_share) * found)
            return out

        return convolve

    def content(self) -> torch.Tensor:
        """h of all items [I, d]."""
        h: torch.Tensor = self.item
        convolve = self.convolution()
        for _ in range(self.config.item_graph_layers):
            h = convolve(h)
        return h

    def embeddings(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """User vectors [U, d] and item vectors [I, d], or the given rows of them."""
        user, item = super().embeddings(users, items)
        return user, item + directions(select(self.content(), items))

    def item_parts(self) -> dict[str, torch.Tensor]:
        """The LightGCN vector, and what comes over the item graph, in which the modalities are mixed."""
        return {"id": super().embeddings()[1], "content": directions(self.content())}

    def history_part(self) -> HistoryPart | None:
        """LightGCN's, whose user vectors these are."""
        return super().history_part()


def learnt_graph(x: torch.Tensor, nearest: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Columns [I, 1 + k] and values of the normalised cosine graph of rows x [I, d], with gradients.

    nearest: [I, k] ids of the nearest others, where an item's own id stands for "no neighbour".
    """
    columns, unit = with_own(nearest), directions(x)
    cosines = (rows_of(unit, columns) @ unit.unsqueeze(2)).squeeze(2).relu()
    absent = columns == columns[:, :1]
    absent[:, 0] = False
    cosines = cosines.masked_fill(absent, 0)
    # A row without features has no direction: its degree is 0, and so are its weights.
    scale = cosines.sum(1).clamp_min(1e-12).rsqrt()
    return columns, cosines * scale[:, None] * rows_of(scale, columns)


def with_own(nearest: torch.Tensor) -> torch.Tensor:
    """Ids [I, k] of the neighbours of all items, each item's own before them: [I, 1 + k]."""
    return torch.cat([torch.arange(len(nearest), device=nearest.device)[:, None], nearest], 1)


def rows_of(x: torch.Tensor, index: torch.Tensor) -> torch.Tensor:
    """x[index] for x [n, ...] and index [r, k]: [r, k, ...]."""
    return x.index_select(0, index.flatten()).view(*index.shape, *x.shape[1:])
