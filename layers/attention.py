"""Graph attention."""

import dataclasses
import numpy as np
import scipy.sparse as sp
import torch
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
    crow: torch.Tensor        # [H * m + 1] int32
    col: torch.Tensor         # [H * E] int32
    target: torch.Tensor      # [E] int64, the row of each edge within a head
    source: torch.Tensor      # [E] int64, its column within a head
    back_crow: torch.Tensor   # the transposed pattern: [H * n + 1] int32
    back_col: torch.Tensor    # [H * E] int32
    back: torch.Tensor        # [E] int64, which edge each entry of the transposed pattern is
    rows: torch.Tensor | None = None      # [m] int64, the nodes that the targets are; None: all of them

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
            return sums.scatter_add_(1, self.source.expand(self.heads, -1), values.view(self.heads, -1)).flatten()
        size = (self.heads * self.n, len(self.crow) - 1)        # a GPU adds in whatever order, so the result would not be the same twice
        return csr_tensor(self.back_crow, self.back_col, each_head(values, self.back, self.heads), size) @ values.new_ones(size[1])

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
        return with_heads(self.heads, self.n, crow, target, source, (back_crow, target.index_select(0, back), back), rows)


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
    return with_heads(heads, n, *(torch.from_numpy(part).long().to(device) for part in (one_head.indptr, target, one_head.indices, back.data)))


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
        return AttentionGraph(heads, n, *pattern, target, source, *repeat(back_crow, back_column, len(crow) - 1), back, rows)
    return AttentionGraph(heads, n, *pattern, target, source, *pattern, back, rows)
