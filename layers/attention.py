"""Graph attention."""

import dataclasses

import numpy as np
import scipy.sparse as sp
import torch
from torch import nn
from torch.nn import functional as F

from layers.dropout import Dropout
from layers.kernels import _Attention, product, product_type
from layers.sparse import csr_product, csr_tensor


@dataclasses.dataclass(frozen=True)
class AttentionGraph:
    """Edges from n source nodes to m target nodes, laid out so that attention with H heads is one sparse product.

    Head h, target i is row h * m + i and head h, source j column h * n + j of a block-diagonal CSR pattern, so features [H, n, c]
    viewed as [H * n, c] are multiplied by it as they lie in memory, head after head: what one head gathers stays in the
    cache. The graph of a loader has all nodes on both sides and is symmetric; at_rows takes some of the targets.
    """

    heads: int
    n: int
    crow: torch.Tensor  # [H * m + 1] int32
    col: torch.Tensor  # [H * E] int32
    target: torch.Tensor  # [E] int64, the row of each edge within a head
    source: torch.Tensor  # [E] int64, its column within a head
    back_crow: torch.Tensor  # the transposed pattern: [H * n + 1] int32
    back_col: torch.Tensor  # [H * E] int32
    back: torch.Tensor  # [E] int64, which edge each entry of the transposed pattern is
    rows: torch.Tensor | None = None  # [m] int64, the nodes that the targets are; None: all of them

    def matrix(self, values):
        """The block-diagonal matrix [H m, H n] with these values [H * E] as a sparse tensor."""
        return csr_tensor(self.crow, self.col, values, (len(self.crow) - 1, self.heads * self.n))

    def product(self, values, dense):
        """The matrix with these values [H * E] times dense [H * n, c]: [H * m, c]."""
        return csr_product(self.crow, self.col, values, dense)

    def transposed_product(self, values, dense):
        """The transposed matrix times dense [H * m, c]: [H * n, c]."""
        return csr_product(self.back_crow, self.back_col, each_head(values, self.back, self.heads), dense)

    def row_sums(self, values):
        """Sum of the values [H * E] of each target: [H * m]."""
        return self.matrix(values) @ values.new_ones(self.heads * self.n)

    def column_sums(self, values):
        """Sum of the values [H * E] of each source: [H * n]."""
        if values.device.type == "cpu":
            sums = values.new_zeros(self.heads, self.n)
            return sums.scatter_add_(
                1, self.source.expand(self.heads, -1), values.view(self.heads, -1)
            ).flatten()
        size = (
            self.heads * self.n,
            len(self.crow) - 1,
        )  # a GPU adds in whatever order, so the result would not be the same twice
        return csr_tensor(
            self.back_crow, self.back_col, each_head(values, self.back, self.heads), size
        ) @ values.new_ones(size[1])

    def sampled_product(self, a, b):
        """a[i] . b[j] at every entry (i, j) of the pattern: [H * m, c] and [H * n, c] -> [H * E]."""
        result = self.matrix(a.new_zeros(len(self.col)))
        return torch.sparse.sampled_addmm(result, a, b.T, beta=0.0, out=result).values()

    def at_target(self, x):
        """x [H * m] at the row of every entry: [H * E]."""
        return each_head(x, self.target, self.heads)

    def at_source(self, x):
        """x [H * n] at the column of every entry: [H * E]."""
        return each_head(x, self.source, self.heads)

    def at_rows(self, rows):
        """The same edges to some targets only: rows [m] int64, each once, of a graph with all of them."""
        first = self.crow[rows].long()
        counts = self.crow[rows + 1].long() - first
        crow = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
        target = torch.repeat_interleave(counts)
        edges = (first - crow[:-1]).index_select(0, target) + torch.arange(len(target), device=rows.device)
        source = self.source.index_select(0, edges)
        back = source.int().sort(stable=True).indices
        back_crow = torch.cat([counts.new_zeros(1), torch.bincount(source, minlength=self.n).cumsum(0)])
        return with_heads(
            self.heads, self.n, crow, target, source, (back_crow, target.index_select(0, back), back), rows
        )


def each_head(x, index, heads):
    """x [H * n] viewed as [H, n], the entries at index [E] of each: [H * E]. gather uses all threads, index_select one."""
    return x.reshape(heads, -1).gather(1, index.expand(heads, -1)).flatten()


def attention_graph(neighbours, heads, device):
    """[n, k] neighbours -> AttentionGraph: edges both ways, each once, and one self loop a node."""
    n, k = neighbours.shape
    rows = np.repeat(np.arange(n), k)
    directed = sp.csr_matrix((np.ones(n * k, np.float32), (rows, neighbours.ravel())), (n, n))
    one_head = (directed + directed.T + sp.eye(n, format="csr", dtype=np.float32)).tocsr()
    one_head.sort_indices()
    back = sp.csr_matrix((np.arange(one_head.nnz), one_head.indices, one_head.indptr), (n, n)).T.tocsr()
    back.sort_indices()
    target = np.repeat(np.arange(n), np.diff(one_head.indptr))
    return with_heads(
        heads,
        n,
        *(
            torch.from_numpy(part).long().to(device)
            for part in (one_head.indptr, target, one_head.indices, back.data)
        ),
    )


def with_heads(heads, n, crow, target, source, back, rows=None):
    """The pattern of one head -> AttentionGraph. crow [m + 1], target [E] and source [E], all int64.

    back: [E] int64 for a symmetric pattern, else (crow, column, edge) of the transposed one; rows: as of AttentionGraph.
    """
    head = torch.arange(heads, dtype=torch.int32, device=source.device)[:, None]

    def repeat(crow, column, width):
        ends = crow[1:].int() + len(column) * head
        return torch.cat([ends.new_zeros(1), ends.flatten()]), (column.int() + width * head).flatten()

    pattern = repeat(crow, source, n)
    if isinstance(back, tuple):
        back_crow, back_column, back = back
        return AttentionGraph(
            heads, n, *pattern, target, source, *repeat(back_crow, back_column, len(crow) - 1), back, rows
        )
    return AttentionGraph(heads, n, *pattern, target, source, *pattern, back, rows)


class GraphAttention(nn.Module):
    """One multi-head graph attention layer (Velickovic 2018, eq. 3) before its non-linearity.

    out_i = concat over h of sum_j alpha_ij^h W^h x_j + b, with alpha_ij^h the softmax over the neighbours j of i of
    LeakyReLU(a_dst^h . W^h x_i + a_src^h . W^h x_j), slope 0.2; neighbours include i. [n, d_in] -> [m, d], the targets of the graph.
    """

    def __init__(self, d_in, d, heads, attn_dropout=0.0, slope=0.2, dtype=None):
        super().__init__()
        self.heads, self.slope, self.attn_dropout, self.dtype = heads, slope, Dropout(attn_dropout), dtype
        self.weight = nn.Parameter(torch.empty(d, d_in))
        self.a_src = nn.Parameter(torch.empty(heads, d // heads))
        self.a_dst = nn.Parameter(torch.empty(heads, d // heads))
        self.bias = nn.Parameter(torch.zeros(d))
        for parameter in (self.weight, self.a_src, self.a_dst):
            nn.init.xavier_uniform_(parameter)

    def forward(self, graph, x):
        """graph: AttentionGraph of n nodes with the same number of heads; x: [n, d_in]."""
        h = product(x, self.weight.T, self.dtype)  # [n, d]
        vectors = torch.block_diag(
            *torch.stack([self.a_dst, self.a_src], 2)
        )  # [d, 2 H]: one product for all heads
        s_dst, s_src = (h @ vectors).view(len(x), self.heads, 2).permute(2, 1, 0).contiguous()  # [H, n] each
        h = h.view(len(x), self.heads, -1).transpose(0, 1).contiguous()  # [H, n, d / H]
        if graph.rows is not None:
            s_dst = s_dst.index_select(1, graph.rows)
        dropout = self.attn_dropout.p if self.attn_dropout.training else 0.0
        out = _Attention.apply(h.flatten(0, 1), s_dst.flatten(), s_src.flatten(), graph, self.slope, dropout)
        return out.view(self.heads, -1, h.shape[2]).transpose(0, 1).flatten(1) + self.bias


class Branch(nn.Module):
    """Graph attention layers over one modality's features, LeakyReLU(0.2) after each (eq. 3): [n, d_m] -> [n, d]."""

    def __init__(self, config, d_in, layers):
        super().__init__()
        d, self.dtype = config.recdim, product_type(config)
        self.project = nn.Linear(d_in, d) if config.feat_proj else nn.Identity()
        sizes = [d if config.feat_proj else d_in] + [d] * (layers - 1)
        self.layers = nn.ModuleList(
            GraphAttention(size, d, config.attn_heads, config.attn_dropout, dtype=self.dtype)
            for size in sizes
        )
        self.before, self.after = Dropout(config.feat_dropout), Dropout(config.branch_dropout)

    def forward(self, graph, x, rows=None):
        """graph: AttentionGraph over the rows of x [n, d_m]; rows: [r] int64, the nodes that are wanted, each once; None: all."""
        if isinstance(self.project, nn.Linear):  # its operands are rounded too
            x = product(x, self.project.weight.T, self.dtype) + self.project.bias
        for layer in self.layers:
            if rows is not None and layer is self.layers[-1]:
                graph = graph.at_rows(rows)
            x = self.after(F.leaky_relu(layer(graph, self.before(x)), 0.2))
        return x
