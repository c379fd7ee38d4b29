"""MGCN: multi-view graph convolutional network for multimedia recommendation (Yu 2023, arXiv 2308.03588)."""

from __future__ import annotations

import typing
from collections.abc import Collection

import scipy.sparse as sp
import torch
from torch import nn

from dataloader import Batch, Dataset, Needs
from layers.kernels import sparse_product
from layers.losses import info_nce, total
from models.base import HistoryPart, Recommender, batch_bpr, product_dtype
from models.item_graphs import bipartite_blocks, similarity_graph, with_transpose
from models.lightgcn import LightGCN
from models.mf import select
from models.settings import MGCN_SETTINGS
from world import Config


class MGCN(LightGCN):
    """LightGCN's ID vectors plus purified features, propagated apart and weighted by the user's behaviour.

    With f^m the features of modality m, E the ID embeddings, M modalities, and the item graph S^m =
    D^-1/2 S D^-1/2 of the cosines of an item with itself and its k nearest items:

    - features: x_i^m = W1_m f_i^m + b1_m
    - behaviour-guided purifier: y_i^m = e_i * sigmoid(W2_m x_i^m + b2_m)
    - user-item view: E_id = LightGCN(E)
    - item-item view: E_i^m = (S^m)^L y^m with L = item_graph_layers; users E_u^m = R E_i^m, R the normalised
      user-item matrix
    - importance: a_m = softmax over m of q . tanh(W4 E^m + b4); shared part E_s = sum over m of a_m E^m
    - preference: P_m = sigmoid(W3_m E_id + b3_m)
    - fused: E_mul = E_s + 1/M sum over m of P_m * (E^m - E_s)
    - vectors: E_id + E_mul; the score is their inner product
    - L_C = InfoNCE(E_mul, E_id) over the batch's users, plus the same over its positive items
    - loss: BPR + mgcn_contrast L_C + decay |e|^2 of the batch's triples

    Each distinct user and item of a batch is a candidate once, and InfoNCE has cosine similarities. k counts
    other items.
    """

    needs: typing.ClassVar[Needs] = Needs(adjacency=True, features=True, neighbours=True)
    settings = MGCN_SETTINGS
    prefix = "mgcn"
    user_block: torch.Tensor
    item_block: torch.Tensor

    def __init__(self, config: Config, dataset: Dataset):
        super().__init__(config, dataset)
        d, own = config.recdim, vars(config)
        self.contrast, self.temperature = own[f"{self.prefix}_contrast"], own[f"{self.prefix}_temperature"]
        nn.init.xavier_uniform_(self.user)
        nn.init.xavier_uniform_(self.item)
        for m, matrix in dataset.features.items():
            self.register_buffer(f"{m}_features", matrix, persistent=False)
        graphs = self.item_graphs(dataset)
        for view, graph in graphs.items():
            forward, backward = with_transpose(graph, self.adjacency.device)
            self.register_buffer(f"{view}_graph", forward, persistent=False)
            self.register_buffer(f"{view}_graph_transposed", backward, persistent=False)
        user_block, item_block = bipartite_blocks(self.adjacency, len(self.user))
        self.register_buffer("user_block", user_block, persistent=False)
        self.register_buffer("item_block", item_block, persistent=False)
        self.project = nn.ModuleDict({m: nn.Linear(x.shape[1], d) for m, x in dataset.features.items()})
        self.purify = nn.ModuleDict({view: nn.Linear(d, d) for view in graphs})
        self.prefer = nn.ModuleDict({view: nn.Linear(d, d) for view in graphs})
        self.make_fuser()

    def make_fuser(self) -> None:
        """The layers that weigh the modalities."""
        d = self.config.recdim
        self.query = nn.Sequential(nn.Linear(d, d), nn.Tanh(), nn.Linear(d, 1, bias=False))

    @classmethod
    def search_space(cls, config: Config, modalities: Collection[str]) -> tuple[str, ...]:
        """Learning rate, decay, layers, neighbours and the weight of the contrastive term."""
        own = ("layer=1..3", "item_knn_k=5,10,20", f"{cls.prefix}_contrast=1e-3,1e-2,1e-1")
        return (*Recommender.search_space(config, modalities), *own)

    @classmethod
    def varying(cls, config: Config) -> str:
        """The number of candidates of the contrastive term."""
        return "the contrastive term has the distinct users and items of a batch, and their number varies"

    def item_graphs(self, dataset: Dataset) -> dict[str, sp.csr_matrix]:
        """{view: item graph [I, I]}, a view a modality."""
        return {
            m: similarity_graph(matrix.cpu().numpy(), dataset.neighbours[m])
            for m, matrix in dataset.features.items()
        }

    def features(self) -> dict[str, torch.Tensor]:
        """{view: features x [I, d] before the purifier}."""
        return {m: project(getattr(self, f"{m}_features")) for m, project in self.project.items()}

    def item_view(self, view: str, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Users [U, d] and items [I, d] of a view of features x [I, d]."""
        item = self.item * self.purify[view](x).sigmoid()
        for _ in range(self.config.item_graph_layers):
            item = sparse_product(
                getattr(self, f"{view}_graph"), getattr(self, f"{view}_graph_transposed"), item
            )
        return sparse_product(self.user_block, self.item_block, item), item

    def fuse(self, identity: torch.Tensor, views: dict[str, torch.Tensor]) -> torch.Tensor:
        """E_mul [n, d] of rows E_id [n, d] and E^m [n, d] of each view."""
        importance = torch.cat([self.query(x) for x in views.values()], 1).softmax(1)  # [n, M]
        shared = total(a[:, None] * x for a, x in zip(importance.unbind(1), views.values(), strict=True))
        own = [self.prefer[view](identity).sigmoid() * (x - shared) for view, x in views.items()]
        return shared + total(own) / len(own)

    def parts(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[tuple[torch.Tensor, torch.Tensor], tuple[torch.Tensor, torch.Tensor]]:
        """(E_id, E_mul) of users [U, d] and of items [I, d], or of the given rows."""
        views = {view: self.item_view(view, x) for view, x in self.features().items()}
        both = []
        for identity, rows, side in zip(
            super().embeddings(users, items), (users, items), (0, 1), strict=True
        ):
            chosen = {view: select(vectors[side], rows) for view, vectors in views.items()}
            both.append((identity, self.fuse(identity, chosen)))
        return both[0], both[1]

    def embeddings(
        self, users: torch.Tensor | None = None, items: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """User vectors [U, d] and item vectors [I, d], or the given rows of them."""
        user, item = self.parts(users, items)
        return total(user), total(item)

    def item_parts(self) -> dict[str, torch.Tensor]:
        """E_id, and E_mul, in which the modalities are mixed."""
        return dict(zip(("id", "content"), self.parts()[1], strict=True))

    def history_part(self) -> HistoryPart | None:
        """None: the preferences make a user's vector no sum over items."""
        return None

    def loss(self, batch: Batch) -> dict[str, torch.Tensor]:
        """BPR, the contrastive term, and the weighted norm of the embeddings."""
        user, item = self.parts(batch.unique_users, batch.unique_items)
        positive = [part.index_select(0, batch.unique_pos) for part in item]
        terms = {
            "bpr": batch_bpr(total(user), total(item), batch),
            "contrast": self.info_nce(user[1], user[0]) + self.info_nce(positive[1], positive[0]),
            "norm": self.norm(batch),
        }
        loss = terms["bpr"] + self.contrast * terms["contrast"] + self.config.decay * terms["norm"]
        return {"loss": loss, **terms}

    def info_nce(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """InfoNCE of anchors and candidates [n, d]."""
        return info_nce(a, b, self.temperature, dtype=product_dtype(self.config))

    def new_user_vectors(
        self, histories: sp.csr_matrix, item: torch.Tensor
    ) -> tuple[torch.Tensor, list[str]]:
        """Mean vector of the user's items."""
        return Recommender.new_user_vectors(self, histories, item)
