"""Autograd functions of the training step, each beside a plain reference that it is tested against.

A function is here because its plain form is too slow or too large: it would keep all intermediate results for
the backward pass, or compute them row by row. To learn what one computes, read its reference.
"""

from __future__ import annotations

import math
import typing

import torch
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from layers.columns import own, ranks, sum_parts
from layers.device import on_cpu
from layers.dropout import keep_mask
from layers.shared_memory import one_copy
from layers.sparse import csr_product

if typing.TYPE_CHECKING:
    from layers.attention import AttentionGraph


# ---------------------------------------------------------------- matrix products in a narrower type


def product_reference(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """a [n, p] @ b [p, q] -> [n, q]."""
    return a @ b


def product(a: torch.Tensor, b: torch.Tensor, dtype: torch.dtype | None = None) -> torch.Tensor:
    """Matrix product a [n, p] @ b [p, q] with operands rounded to dtype (None: not rounded), in b's type."""
    return _Product.apply(a, b, dtype or b.dtype)


class _Product(torch.autograd.Function):
    """product_reference with operands rounded to a type, forward and backward."""

    @staticmethod
    def forward(ctx, a, b, dtype):
        narrow_a, narrow_b = a.to(dtype), b.to(dtype)
        ctx.save_for_backward(narrow_a, narrow_b)
        ctx.types = a.dtype, b.dtype
        return (narrow_a @ narrow_b).to(b.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        grad = grad.to(a.dtype)
        grad_a = (grad @ b.T).to(ctx.types[0]) if ctx.needs_input_grad[0] else None
        if not ctx.needs_input_grad[1]:
            return grad_a, None, None
        # Autograd would compute (grad.T @ a).T for a transposed weight b, which is slower; on a CPU, MKL is
        # up to a tenth faster still on parts of a wide matrix.
        width = 1024 if on_cpu(a) else a.shape[1]
        grad_b = torch.cat([part.T @ grad for part in a.split(width, 1)])
        return grad_a, grad_b.to(ctx.types[1]), None


def column_major(features: torch.Tensor) -> torch.Tensor:
    """Copy of features [n, dim] in column-major order on a CPU, each column at a multiple of 64 bytes.

    Products of features with a weight of few columns, and of their transpose with a gradient, are a sixth
    faster in this layout. The processes of one machine share the copy. On a GPU the features are returned
    unchanged.
    """
    n, dim = features.shape
    if not on_cpu(features):
        return features

    def fill(columns: torch.Tensor) -> None:
        for part, rows in zip(columns[:, :n].split(1024, 1), features.split(1024), strict=True):
            part.copy_(rows.T)

    return one_copy((dim, -(-n // 16) * 16), features.dtype, fill)[:, :n].T


# ---------------------------------------------------------------- LightGCN's propagation


def propagation_reference(matrix: torch.Tensor, layers: int, x: torch.Tensor) -> torch.Tensor:
    """Mean of the layers x, A x, ..., A^L x of a sparse matrix A [n, n] (He 2020): [n, d] -> [n, d]."""
    total, layer = x, x
    for _ in range(layers):
        layer = matrix @ layer
        total = total + layer
    return total / (layers + 1)


def propagate(
    matrix: torch.Tensor,
    layers: int,
    user: torch.Tensor,
    item: torch.Tensor,
    users: torch.Tensor | None = None,
    items: torch.Tensor | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Propagate embeddings over a symmetric constant graph: the mean over layers of users and of items.

    matrix: sparse CSR [U + I, U + I]; user: [U, d]; item: [I, d]; users, items: [r] int64, the rows to return
    (None: all). All rows are propagated in either case, but only those returned are copied and get a
    gradient.
    """
    return _Propagation.apply(matrix, layers, users, items, user, item)


class _Propagation(torch.autograd.Function):
    """propagation_reference of some rows. The matrix is symmetric, so the backward pass is the same."""

    @staticmethod
    def forward(ctx, matrix, layers, users, items, user, item):
        ctx.matrix, ctx.layers, ctx.rows, ctx.sizes = matrix, layers, (users, items), (len(user), len(item))
        return mean_of_layers(matrix, layers, (user, item), ctx.rows)

    @staticmethod
    @once_differentiable
    def backward(ctx, *grads):
        full = []
        for rows, size, grad in zip(ctx.rows, ctx.sizes, grads, strict=True):
            if rows is not None:
                grad = grad.new_zeros(size, grad.shape[1]).index_add_(0, rows, grad)
            full.append(grad)
        return None, None, None, None, *mean_of_layers(ctx.matrix, ctx.layers, full)


def mean_of_layers(
    matrix: torch.Tensor,
    layers: int,
    parts: typing.Sequence[torch.Tensor],
    rows: typing.Sequence[torch.Tensor | None] | None = None,
    width: int = 32,
) -> tuple[torch.Tensor, ...]:
    """propagation_reference without gradients, evaluated as (x + A (x + A (x + ...))) / (L + 1).

    parts: consecutive blocks of rows of x, [n_i, d] each; rows: for each part the rows to return (None: all).
    width: on a CPU, columns pass through all layers in blocks of this many, because the rows that the next
    layer gathers are then more likely to be in the cache still; at d = 800 this takes at most half of the
    time.
    """
    crow, col, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
    sizes, d = [len(part) for part in parts], parts[0].shape[1]
    rows = rows or [None] * len(parts)
    out = tuple(
        part.new_empty(len(part) if wanted is None else len(wanted), d)
        for part, wanted in zip(parts, rows, strict=True)
    )
    width = width if on_cpu(matrix) else d
    for start in range(0, d, width):
        columns = slice(start, start + width)
        x = torch.cat([part[:, columns] for part in parts]).div_(layers + 1)
        total = x
        for _ in range(layers):
            total = csr_product(crow, col, values, total).add_(x)
        for target, part, wanted in zip(out, total.split(sizes), rows, strict=True):
            target[:, columns] = part if wanted is None else part.index_select(0, wanted)
    return out


def sparse_product(matrix: torch.Tensor, transposed: torch.Tensor, dense: torch.Tensor) -> torch.Tensor:
    """Product of a constant sparse CSR matrix [n, m] and dense [m, d], with a gradient for dense.

    transposed: the transposed matrix as CSR [m, n], which the backward pass needs.
    """
    return _SparseProduct.apply(matrix, transposed, dense)


class _SparseProduct(torch.autograd.Function):
    """matrix @ dense for a constant matrix."""

    @staticmethod
    def forward(ctx, matrix, transposed, dense):
        ctx.transposed = transposed
        return csr_product(matrix.crow_indices(), matrix.col_indices(), matrix.values(), dense)

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        matrix = ctx.transposed
        product = csr_product(matrix.crow_indices(), matrix.col_indices(), matrix.values(), grad.contiguous())
        return None, None, product


# ---------------------------------------------------------------- graph attention


def attention_reference(
    h: torch.Tensor, s_dst: torch.Tensor, s_src: torch.Tensor, graph: AttentionGraph, slope: float
) -> torch.Tensor:
    """Attention-weighted mean over the neighbours of each target, head by head (Velickovic 2018, eq. 3-4).

    h: [H n, c] features of the sources; s_dst: [H m] and s_src: [H n], the two halves of the attention score;
    returns [H m, c]. The score of an edge is LeakyReLU(s_dst[target] + s_src[source]), its weight the softmax
    over the edges of the target.
    """
    h, s_dst, s_src = (x.view(graph.heads, -1, *x.shape[1:]) for x in (h, s_dst, s_src))
    scores = F.leaky_relu(s_dst[:, graph.target] + s_src[:, graph.source], slope)  # [H, E]
    target = graph.target.expand_as(scores)
    top = torch.zeros_like(s_dst).scatter_reduce(1, target, scores, "amax", include_self=False).detach()
    weights = (scores - top.gather(1, target)).exp()
    total = torch.zeros_like(s_dst).index_add(1, graph.target, weights)
    out = h.new_zeros(*s_dst.shape, h.shape[2])
    out = out.index_add(1, graph.target, weights[:, :, None] * h[:, graph.source])
    return (out / total[:, :, None]).flatten(0, 1)


def attention(
    h: torch.Tensor,
    s_dst: torch.Tensor,
    s_src: torch.Tensor,
    graph: AttentionGraph,
    slope: float,
    dropout: float = 0.0,
) -> torch.Tensor:
    """attention_reference with dropout of the weights."""
    return _Attention.apply(h, s_dst, s_src, graph, slope, dropout)


class _Attention(torch.autograd.Function):
    """Keeps numbers of size H * E for the backward pass, never [E, d] messages."""

    @staticmethod
    def forward(ctx, h, s_dst, s_src, graph, slope, dropout):
        scores = graph.gather_target(s_dst).add_(graph.gather_source(s_src))  # [H E]
        scores = F.leaky_relu_(scores, slope)
        weights = softmax_numerators(scores, s_dst, s_src, graph)
        total = graph.target_sums(weights)[:, None]
        kept = keep_mask(weights, dropout, 0).mul_(weights) if dropout else weights
        out = graph.product(kept, h) / (total * (1 - dropout))
        ctx.graph, ctx.slope, ctx.dropout = graph, slope, dropout
        ctx.save_for_backward(h, scores, weights, kept, total, out)
        return out

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        h, scores, weights, kept, total, out = ctx.saved_tensors
        graph = ctx.graph
        # Softmax backward: dL/ds = w (dL/dw - sum over the target's edges of w dL/dw). That sum is grad .
        # out.
        mean = (grad * out).sum(1, keepdim=True) / total
        grad = grad / (total * (1 - ctx.dropout))
        grad_h = graph.transposed_product(kept, grad)
        grad_scores = graph.sampled_product(grad, h).mul_(kept)
        grad_scores.sub_(graph.gather_target(mean).mul_(weights))
        grad_scores = torch.ops.aten.leaky_relu_backward(grad_scores, scores, ctx.slope, True)
        return grad_h, graph.target_sums(grad_scores), graph.source_sums(grad_scores), None, None, None


def softmax_numerators(
    scores: torch.Tensor, s_dst: torch.Tensor, s_src: torch.Tensor, graph: AttentionGraph
) -> torch.Tensor:
    """exp(scores) [H E], up to a factor that the edges of a target share, without overflow or underflow."""
    # exp of float32 is safe below 60: no maximum has to be subtracted, which saves a third of this function.
    # A GPU would have to wait for the comparison.
    if on_cpu(scores) and s_dst.abs().max() + s_src.abs().max() < 60:
        return scores.exp()
    top = torch.segment_reduce(scores, "max", offsets=graph.crow)
    return (scores - graph.gather_target(top)).exp_()


# ---------------------------------------------------------------- InfoNCE


def info_nce_reference(
    a: torch.Tensor, b: torch.Tensor, target: torch.Tensor, temperature: float
) -> torch.Tensor:
    """Mean over r of -log softmax(a_r . b / temperature)[target_r]. a: [n, d]; b: [m, d]; target: [n]."""
    return F.cross_entropy(a @ b.T / temperature, target)


def unit_info_nce(
    a: torch.Tensor,
    b: torch.Tensor,
    temperature: float,
    target: torch.Tensor | None = None,
    block: int = 480,
    dtype: torch.dtype | None = None,
    counts: torch.Tensor | None = None,
) -> torch.Tensor:
    """info_nce_reference of rows of length 1, of all columns. Of several processes each takes its share of a.

    target: [n] int64 (default: r); block: anchors processed at a time; dtype: type that operands of matrix
    products are rounded to (default: not rounded); counts: [m], how often each row of b is a candidate and,
    without a target, the same row of a an anchor (default: once).
    """
    weights = counts if target is None else None
    if target is None:
        target = torch.arange(len(a), device=a.device)
    n, dtype = len(a) if weights is None else weights.sum(), dtype or a.dtype
    if ranks() > 1:
        part = own(len(a))
        a, target, weights = a[part], target[part], None if weights is None else weights[part]
    return sum_parts(_InfoNCE.apply(a, b, target, temperature, block, dtype, counts, weights, n))


class _InfoNCE(torch.autograd.Function):
    """Loss and gradient in one pass over blocks of rows: the [n, m] scores are computed once and never kept.

    Products are made in `dtype`, sums in the type of a. counts [m] multiply the rows of b, weights [n] those
    of a (None: 1). The sum over the rows of a is divided by `count`.
    """

    @staticmethod
    def forward(ctx, a, b, target, temperature, block, dtype, counts, weights, count):
        a = a / temperature
        weight = a.new_ones(1) if weights is None else weights
        positive = (a * b.index_select(0, target)).sum(1)
        narrow_a, narrow_b = (a * math.log2(math.e)).to(dtype), b.to(dtype)  # exp2 is faster than exp
        grad_a, grad_b, total = torch.empty_like(a), torch.zeros_like(b), a.new_empty(len(a))
        top = a.new_zeros(len(a))
        # One buffer for all blocks stays in the cache. Scores are [m, block]: faster to compute than [block,
        # m].
        buffer = narrow_b.new_empty(len(b) * min(block, len(a)))
        scaled = a * weight[:, None]
        # In the type of the scores, so that their product needs no conversion and no copy.
        repeats = None if counts is None else counts[:, None].to(dtype)
        parts = (matrix.split(block) for matrix in (scaled, narrow_a, grad_a, total, top))
        for part, narrow, grad, sums, largest in zip(*parts, strict=True):
            scores = buffer[: len(b) * len(part)].view(len(b), len(part))
            torch.mm(narrow_b, narrow.T, out=scores)
            if temperature < 1 / 60:  # at higher temperatures exp of a cosine / temperature cannot overflow
                largest.copy_(scores.amax(0))
                scores -= largest
            likelihood = scores.exp2_()
            if repeats is not None:
                likelihood *= repeats
            torch.sum(likelihood, 0, dtype=a.dtype, out=sums)
            weighted = part / sums[:, None]
            if dtype == a.dtype:
                torch.mm(likelihood.T, narrow_b, out=grad)
                grad_b.addmm_(likelihood, weighted)
            else:
                grad[:] = likelihood.T @ narrow_b
                grad_b += likelihood @ weighted.to(dtype)
        loss = (weight * (total.log() + math.log(2) * top - positive)).sum()
        grad_a /= total[:, None]
        grad_a -= b.index_select(0, target)
        grad_b.index_add_(0, target, scaled, alpha=-1)
        grad_a *= weight[:, None]
        ctx.save_for_backward(grad_a.div_(count * temperature), grad_b.div_(count))
        return loss / count

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        grad_a, grad_b = ctx.saved_tensors
        return grad * grad_a, grad * grad_b, *[None] * 7


# ---------------------------------------------------------------- L1 cost of optimal transport


def l1_cost_reference(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """C[i, j] = mean over rows b of |x[b, i] - y[b, j]| (eq. 10), through an [n, p, q] tensor."""
    return (x[:, :, None] - y[:, None, :]).abs().mean(0)


def l1_cost(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """l1_cost_reference in O(n (p + q) + p q) memory: on Baby at d = 800 the reference needs 17 GiB."""
    return _L1Cost.apply(x, y)


class _L1Cost(torch.autograd.Function):
    """Differences are made in blocks that stay in the cache."""

    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        if not on_cpu(x):
            return torch.cdist(x.T.contiguous(), y.T.contiguous(), p=1) / len(x)
        (n, p), q, block = x.shape, y.shape[1], 128
        width = max(2**20 // (block * q), 1)  # columns of x at a time: the differences stay in the cache
        cost, buffer = x.new_zeros(p, q), x.new_empty(min(block, n) * min(width, p) * q)
        for columns, part in zip(x.split(width, 1), cost.split(width), strict=True):
            for a, b in zip(columns.split(block), y.split(block), strict=True):
                difference = buffer[: a.numel() * q].view(*a.shape, q)
                torch.sub(a[:, :, None], b[:, None], out=difference)
                part += difference.abs_().sum(0)
        return cost / n

    @staticmethod
    @once_differentiable
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        grad = grad / len(x)
        grad_x, grad_y = torch.empty_like(x), torch.zeros_like(y)
        for i in range(x.shape[1]):  # one [n, q] matrix of signs at a time
            sign = torch.sign(x[:, i, None] - y)
            grad_x[:, i] = sign @ grad[i]
            grad_y -= sign * grad[i]
        return grad_x, grad_y
