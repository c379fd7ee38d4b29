"""Multi-head graph attention over a fixed graph, and the branch of one modality that is made of it."""

from __future__ import annotations

import math

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn
from torch.nn import functional as F

from layers.columns import all_columns, own_outputs, own_parameter, ranks
from layers.cosine import nearest_rows
from layers.device import on_cpu
from layers.dropout import Dropout
from layers.kernels import attention, product
from layers.sparse import csr_product, csr_tensor
from utils import UserError

SLOPE = 0.2  # of LeakyReLU for negative scores, as in GAT

# ---------------------------------------------------------------- the graph


class AttentionGraph(nn.Module):
    """Edges from n source to m target nodes, stored such that attention with H heads is one sparse product.

    With h a head, i a target and j a source, row h * m + i and column h * n + j of a block-diagonal CSR
    pattern are an edge of that head. Features [H, n, c] viewed as [H * n, c] are thus multiplied head after
    head, and what one head gathers stays in the cache. from_neighbours gives the graph of all nodes, which is
    symmetric unless `directed`; select_targets keeps the edges of some targets.

    The tensors are buffers, so that the graph moves with its model, and stay out of the state dict.
    """

    crow: torch.Tensor  # [H * m + 1] int32, row pointers
    col: torch.Tensor  # [H * E] int32, columns
    target: torch.Tensor  # [E] int64, target of each edge within a head
    source: torch.Tensor  # [E] int64, source of each edge within a head
    transposed_crow: torch.Tensor  # [H * n + 1] int32, row pointers of the transposed pattern
    transposed_col: torch.Tensor  # [H * E] int32, its columns
    transposed_edge: torch.Tensor  # [E] int64, the edge that each of its entries is
    directed = False  # whether a node attends to its own neighbours alone
    nodes: torch.Tensor | None  # [m] int64, the nodes that the targets are; None: all n, in order

    def __init__(
        self,
        heads: int,
        n: int,
        crow: torch.Tensor,
        target: torch.Tensor,
        source: torch.Tensor,
        transposed: torch.Tensor | tuple[torch.Tensor, torch.Tensor, torch.Tensor],
        nodes: torch.Tensor | None = None,
    ):
        """Repeat the pattern of one head for H heads.

        crow: [m + 1], target and source: [E] int64, sorted by target, then source. transposed: of a symmetric
        pattern the edge [E] that each entry of the transposed pattern is; otherwise (row pointers, columns,
        edge) of the transposed pattern. nodes: as the attribute.
        """
        super().__init__()
        self.heads, self.n = heads, n
        pattern = repeat_heads(heads, crow, source, n)
        if isinstance(transposed, tuple):
            transposed_crow, transposed_col, edge = transposed
            transposed_pattern = repeat_heads(heads, transposed_crow, transposed_col, len(crow) - 1)
        else:
            edge, transposed_pattern = transposed, pattern
        tensors = {
            "crow": pattern[0],
            "col": pattern[1],
            "target": target,
            "source": source,
            "transposed_crow": transposed_pattern[0],
            "transposed_col": transposed_pattern[1],
            "transposed_edge": edge,
            "nodes": nodes,
        }
        for name, tensor in tensors.items():
            self.register_buffer(name, tensor, persistent=False)

    @classmethod
    def from_neighbours(cls, neighbours: np.ndarray, heads: int, directed: bool = False) -> AttentionGraph:
        """Graph of a neighbour table [n, k]: edges in both directions, each once, and a self loop a node.

        directed: only the edges from the neighbours to the node that they are neighbours of (eq. 2).
        """
        n, k = neighbours.shape
        rows = np.repeat(np.arange(n), k)
        pattern = sp.csr_matrix((np.ones(n * k, np.float32), (rows, neighbours.ravel())), (n, n))
        if not directed:
            pattern = (pattern + pattern.T + sp.eye(n, format="csr", dtype=np.float32)).tocsr()
        pattern.sort_indices()
        edge = sp.csr_matrix((np.arange(pattern.nnz), pattern.indices, pattern.indptr), (n, n)).T.tocsr()
        edge.sort_indices()
        target = np.repeat(np.arange(n), np.diff(pattern.indptr))
        arrays = (pattern.indptr, target, pattern.indices, edge.indptr, edge.indices, edge.data)
        crow, of_edge, source, *rest = (torch.from_numpy(array).long() for array in arrays)
        graph = cls(heads, n, crow, of_edge, source, (rest[0], rest[1], rest[2]) if directed else rest[2])
        graph.directed = directed
        return graph

    def select_targets(self, nodes: torch.Tensor) -> AttentionGraph:
        """The edges to these nodes [m] int64, each named once, of a graph in which all nodes are targets."""
        first = self.crow[nodes].long()
        counts = self.crow[nodes + 1].long() - first
        crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        target = torch.repeat_interleave(counts)
        edges = (first - crow[:-1]).index_select(0, target) + torch.arange(len(target), device=nodes.device)
        source = self.source.index_select(0, edges)
        edge = source.int().sort(stable=True).indices
        counts = torch.bincount(source, minlength=self.n)
        transposed = (torch.cat([counts.new_zeros(1), counts.cumsum(0)]), target.index_select(0, edge), edge)
        return AttentionGraph(self.heads, self.n, crow, target, source, transposed, nodes)

    def append_targets(self, neighbours: torch.Tensor) -> AttentionGraph:
        """The graph with new nodes that attend to their neighbours, attended to by none.

        Unless the graph is directed, new nodes attend to themselves too, as all others do.

        neighbours: [m, k] int64 ids of old nodes. For inference only: the transposed pattern is left empty.
        """
        m = len(neighbours)
        new = torch.arange(self.n, self.n + m, device=neighbours.device)
        sources = neighbours.sort(1).values  # [m, k], or [m, k + 1] with self loops
        if not self.directed:
            sources = torch.cat([sources, new[:, None]], 1)
        degree = sources.shape[1]
        ends = len(self.source) + degree * torch.arange(1, m + 1, device=neighbours.device)
        crow = torch.cat([self.crow[: self.n + 1].long(), ends])
        target = torch.cat([self.target, new.repeat_interleave(degree)])
        source = torch.cat([self.source, sources.flatten()])
        return AttentionGraph(self.heads, self.n + m, crow, target, source, self.transposed_edge[:0])

    def matrix(self, values: torch.Tensor) -> torch.Tensor:
        """Block-diagonal sparse matrix [H m, H n] with these values [H E]."""
        return csr_tensor(self.crow, self.col, values, (len(self.crow) - 1, self.heads * self.n))

    def product(self, values: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """matrix(values) @ dense: [H n, c] -> [H m, c]."""
        return csr_product(self.crow, self.col, values, dense)

    def transposed_product(self, values: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
        """matrix(values).T @ dense: [H m, c] -> [H n, c]."""
        values = gather_heads(values, self.transposed_edge, self.heads)
        return csr_product(self.transposed_crow, self.transposed_col, values, dense)

    def sampled_product(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        """a[i] . b[j] for every edge (i, j): [H m, c] and [H n, c] -> [H E]."""
        result = self.matrix(a.new_zeros(len(self.col)))
        return torch.sparse.sampled_addmm(result, a, b.T, beta=0.0, out=result).values()

    def target_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of the values [H E] over the edges of each target: [H m]."""
        return self.matrix(values) @ values.new_ones(self.heads * self.n)

    def source_sums(self, values: torch.Tensor) -> torch.Tensor:
        """Sum of the values [H E] over the edges of each source: [H n]."""
        if on_cpu(values):
            sums, source = values.new_zeros(self.heads, self.n), self.source.expand(self.heads, -1)
            return sums.scatter_add_(1, source, values.view(self.heads, -1)).flatten()
        # A scatter on a GPU adds with atomics, one after the other where edges share a source.
        size = (self.heads * self.n, len(self.crow) - 1)
        values = gather_heads(values, self.transposed_edge, self.heads)
        return csr_tensor(self.transposed_crow, self.transposed_col, values, size) @ values.new_ones(size[1])

    def gather_target(self, x: torch.Tensor) -> torch.Tensor:
        """x [H m] of the target of every edge: [H E]."""
        return gather_heads(x, self.target, self.heads)

    def gather_source(self, x: torch.Tensor) -> torch.Tensor:
        """x [H n] of the source of every edge: [H E]."""
        return gather_heads(x, self.source, self.heads)


def repeat_heads(
    heads: int, crow: torch.Tensor, col: torch.Tensor, width: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Block-diagonal CSR pattern, int32, of the same pattern `heads` times; width: columns of one block."""
    if heads * max(len(col), width) >= 2**31:
        raise UserError(
            f"--attn_heads {heads}: times {max(len(col), width)} edges or nodes is more than a graph can "
            "have (2^31); take fewer heads or a smaller --item_knn_k"
        )
    head = torch.arange(heads, dtype=torch.int32, device=col.device)[:, None]
    ends = crow[1:].int() + len(col) * head
    return torch.cat([ends.new_zeros(1), ends.flatten()]), (col.int() + width * head).flatten()


def gather_heads(x: torch.Tensor, index: torch.Tensor, heads: int) -> torch.Tensor:
    """Entries at index [E] of every head of x [H n]: [H E]."""
    # gather uses all threads of a CPU, index_select one.
    return x.reshape(heads, -1).gather(1, index.expand(heads, -1)).flatten()


# ---------------------------------------------------------------- the layers


class GraphAttention(nn.Module):
    """One multi-head graph attention layer (Velickovic 2018, eq. 3) before its non-linearity.

    out_i = concat over heads h of sum_j alpha_ij^h W^h x_j + b, where alpha_ij^h is the softmax over the
    neighbours j of i in the graph of LeakyReLU(a_dst^h . W^h x_i + a_src^h . W^h x_j).

    dtype: type that the operands of the projection W x are rounded to (None: not rounded); bias: False
    keeps the bias b at zero; init: initialisation, see initialise_attention. Of several processes each has
    its own heads, and with them its own columns of the result.
    """

    def __init__(
        self,
        d_in: int,
        d: int,
        heads: int,
        attn_dropout: float = 0.0,
        dtype: torch.dtype | None = None,
        bias: bool = True,
        init: str = "xavier",
    ):
        super().__init__()
        self.heads, self.dtype = heads // ranks(), dtype
        self.attn_dropout = Dropout(attn_dropout)
        weight, a_src, a_dst = (torch.empty(n, size) for n, size in ((d, d_in), *[(heads, d // heads)] * 2))
        initialise_attention(weight, a_src, a_dst, init)
        self.weight, self.a_src, self.a_dst = (own_parameter(whole, 0) for whole in (weight, a_src, a_dst))
        self.bias = own_parameter(torch.zeros(d), 0).requires_grad_(bias)

    def forward(self, graph: AttentionGraph, x: torch.Tensor) -> torch.Tensor:
        """Features of the n source nodes [n, d_in] -> vectors of the m target nodes [m, own columns]."""
        h = product(x, self.weight.T, self.dtype)  # [n, own columns]
        # One block-diagonal product gives the scores of all heads.
        vectors = torch.block_diag(*torch.stack([self.a_dst, self.a_src], 2))  # [own columns, 2 H]
        scores = (h @ vectors).view(len(x), self.heads, 2)
        s_dst, s_src = scores.permute(2, 1, 0).contiguous()  # [H, n] each
        h = h.view(len(x), self.heads, -1).transpose(0, 1).contiguous()  # [H, n, d / H]
        if graph.nodes is not None:
            s_dst = s_dst.index_select(1, graph.nodes)
        dropout = self.attn_dropout.p if self.attn_dropout.training else 0.0
        out = attention(h.flatten(0, 1), s_dst.flatten(), s_src.flatten(), graph, SLOPE, dropout)
        return out.view(self.heads, -1, h.shape[2]).transpose(0, 1).flatten(1) + self.bias


@torch.no_grad()
def initialise_attention(weight: torch.Tensor, a_src: torch.Tensor, a_dst: torch.Tensor, init: str) -> None:
    """Draw the weights of a layer. weight: [d, d_in]; a_src, a_dst: [H, c].

    init "xavier": Glorot & Bengio's uniform distribution. "dgl": their normal distribution with gain sqrt(2),
    the vectors taken as tensors [1, H, c] whose fan-in is H c and fan-out c, as DGL's GATConv does.
    """
    if init == "xavier":
        for parameter in (weight, a_src, a_dst):
            nn.init.xavier_uniform_(parameter)
        return
    for parameter in (weight, a_src[None], a_dst[None]):
        nn.init.xavier_normal_(parameter, gain=math.sqrt(2))


class Branch(nn.Module):
    """Graph attention over one modality's features, LeakyReLU(0.2) after each layer (eq. 3).

    feat_proj: a linear map to d dimensions before the first layer; feat_dropout and branch_dropout: dropout
    before and after each layer; dtype, bias, init: as of GraphAttention, dtype for the linear map too.
    """

    def __init__(
        self,
        d_in: int,
        d: int,
        layers: int,
        heads: int,
        attn_dropout: float = 0.0,
        feat_dropout: float = 0.0,
        branch_dropout: float = 0.0,
        feat_proj: bool = False,
        dtype: torch.dtype | None = None,
        bias: bool = True,
        init: str = "xavier",
    ):
        super().__init__()
        self.dtype = dtype
        self.project = own_outputs(nn.Linear(d_in, d)) if feat_proj else nn.Identity()
        sizes = [d if feat_proj else d_in] + [d] * (layers - 1)
        self.layers = nn.ModuleList(
            GraphAttention(size, d, heads, attn_dropout, dtype=dtype, bias=bias, init=init) for size in sizes
        )
        self.before, self.after = Dropout(feat_dropout), Dropout(branch_dropout, dim=1)

    def forward(
        self, graph: AttentionGraph, x: torch.Tensor, nodes: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Vectors of the nodes of `graph`, or of some of them: [n or r, own columns].

        x: [n, d_in] features; nodes: [r] int64, each once, the nodes whose vectors are returned (None: all).
        """
        # On a CPU the last layer attends for the wanted nodes alone. A GPU would have to wait for their
        # number of edges, which takes longer than attending for all.
        last = graph if nodes is None or not on_cpu(x) else graph.select_targets(nodes)
        if isinstance(self.project, nn.Linear):
            x = all_columns(product(x, self.project.weight.T, self.dtype) + self.project.bias)
        for number, layer in enumerate(self.layers, 1):
            edges = last if number == len(self.layers) else graph
            x = self.after(F.leaky_relu(layer(edges, self.before(x)), 0.2))
            if number < len(self.layers):
                x = all_columns(x)
        return x if nodes is None or last is not graph else x.index_select(0, nodes)

    def attend(
        self,
        graph: AttentionGraph,
        x: torch.Tensor,
        new: torch.Tensor,
        k: int,
        allowed: torch.Tensor | None = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Vectors of new nodes, known by their features alone, without training.

        x: [n, d_in] features of the nodes of `graph`; new: [m, d_in]. A new node attends to its k nearest
        nodes by cosine similarity (eq. 2), see append_targets; allowed: [n] bool, those to choose from (None:
        all). Returns (vectors [m, d], the nearest nodes [m, k] int64).
        """
        neighbours = nearest_rows(new, x, k, allowed)
        x = torch.cat([x, new.to(x.dtype)])
        return self(graph.append_targets(neighbours), x)[graph.n :], neighbours
