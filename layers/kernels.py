"""Autograd functions."""

import math

import torch
from torch.nn import functional as F

from layers.dropout import keep_mask
from layers.sparse import csr_product


def column_major(features):
    """The same [n, dim] with its columns one after another in memory, each at a multiple of 64 bytes; a tensor of a GPU as it is.

    Products with it and with its transpose are a sixth faster than with rows, at the few columns of a weight.
    """
    n, dim = features.shape
    if features.device.type != "cpu":
        return features
    columns = features.new_empty(dim, -(-n // 16) * 16)[:, :n]
    for part, rows in zip(columns.split(1024, 1), features.split(1024)):
        part.copy_(rows.T)
    return columns.T


class _InfoNCE(torch.autograd.Function):
    """Loss and gradient in one pass over row blocks, so the [n, m] scores are computed once and never kept."""

    @staticmethod
    def forward(ctx, a, b, target, temperature, block, dtype):
        a = a / temperature
        positive = (a * b.index_select(0, target)).sum(1)
        narrow_a, narrow_b = (a * math.log2(math.e)).to(dtype), b.to(dtype)  # exp2 is faster than exp
        grad_a, grad_b, total = torch.empty_like(a), torch.zeros_like(b), a.new_empty(len(a))
        loss, memory = (
            -positive.sum(),
            narrow_b.new_empty(len(b) * min(block, len(a))),
        )  # one for all blocks: it stays in the cache
        parts = (matrix.split(block) for matrix in (a, narrow_a, grad_a, total))
        for part, narrow, grad, sums in zip(*parts):
            scores = memory[: len(b) * len(part)].view(
                len(b), len(part)
            )  # [m, block], faster to make than [block, m]
            torch.mm(narrow_b, narrow.T, out=scores)
            if temperature < 1 / 60:  # else cosines are too small for exp to overflow
                top = scores.amax(0)
                scores -= top
                loss += math.log(2) * top.sum()
            likelihood = scores.exp2_()
            torch.sum(likelihood, 0, dtype=a.dtype, out=sums)
            weighted = part / sums[:, None]
            if dtype == a.dtype:
                torch.mm(likelihood.T, narrow_b, out=grad)
                grad_b.addmm_(likelihood, weighted)
            else:  # sums in the wide type
                grad[:] = likelihood.T @ narrow_b
                grad_b += likelihood @ weighted.to(dtype)
        loss += total.log().sum()
        grad_a /= total[:, None]
        grad_a -= b.index_select(0, target)
        grad_b.index_add_(0, target, a, alpha=-1)
        ctx.save_for_backward(grad_a.div_(len(a) * temperature), grad_b.div_(len(a)))
        return loss / len(a)

    @staticmethod
    def backward(ctx, grad):
        grad_a, grad_b = ctx.saved_tensors
        return grad * grad_a, grad * grad_b, None, None, None, None


class _Product(torch.autograd.Function):
    """a @ b with operands rounded to dtype, forward and backward; the result has b's type.

    For b a transposed weight autograd would take the gradient of b as (grad.T @ a).T, a tenth slower at 256 columns.
    """

    @staticmethod
    def forward(ctx, a, b, dtype):
        narrow_a, narrow_b = a.to(dtype), b.to(dtype)
        ctx.save_for_backward(narrow_a, narrow_b)
        ctx.types = a.dtype, b.dtype
        return (narrow_a @ narrow_b).to(b.dtype)

    @staticmethod
    def backward(ctx, grad):
        a, b = ctx.saved_tensors
        grad = grad.to(a.dtype)
        grad_a = (grad @ b.T).to(ctx.types[0]) if ctx.needs_input_grad[0] else None
        width = (
            1024 if a.device.type == "cpu" else a.shape[1]
        )  # MKL is up to a tenth faster for parts of a wide matrix
        grad_b = torch.cat([part.T @ grad for part in a.split(width, 1)])
        return grad_a, grad_b.to(ctx.types[1]), None


def product_type(config):
    """Type that --precision rounds the operands of large matrix products to; None: as they are."""
    return torch.bfloat16 if config.precision == "bf16" else None


def product(a, b, dtype):
    """Matrix product a [n, p] @ b [p, q] with operands rounded to dtype (None: as they are); the result has b's type."""
    return _Product.apply(a, b, dtype or b.dtype)


class _SparseProduct(torch.autograd.Function):
    """A constant sparse matrix times a dense one; the gradient needs the transposed matrix."""

    @staticmethod
    def forward(ctx, matrix, transposed, dense):
        ctx.transposed = transposed
        return csr_product(matrix.crow_indices(), matrix.col_indices(), matrix.values(), dense)

    @staticmethod
    def backward(ctx, grad):
        matrix = ctx.transposed
        return (
            None,
            None,
            csr_product(matrix.crow_indices(), matrix.col_indices(), matrix.values(), grad.contiguous()),
        )


class _Attention(torch.autograd.Function):
    """Attention-weighted mean over neighbours. Keeps numbers of size H * E for the backward pass, never [E, d] messages."""

    @staticmethod
    def forward(ctx, h, s_dst, s_src, graph, slope, dropout):
        """h: [H n, c]; s_dst: [H m]; s_src: [H n]; graph: n sources, m targets; returns [H m, c]."""
        scores = graph.at_target(s_dst).add_(graph.at_source(s_src))  # [H E]
        scores = F.leaky_relu_(scores, slope)
        weights = softmax_numerators(scores, s_dst, s_src, graph)
        total = graph.row_sums(weights)[:, None]
        used = keep_mask(weights, dropout).mul_(weights) if dropout else weights
        out = graph.product(used, h) / (total * (1 - dropout))
        ctx.graph, ctx.slope, ctx.dropout = graph, slope, dropout
        ctx.save_for_backward(h, scores, weights, used, total, out)
        return out

    @staticmethod
    def backward(ctx, grad):
        h, scores, weights, used, total, out = ctx.saved_tensors
        graph, mean = ctx.graph, (grad * out).sum(1, keepdim=True) / total
        grad = grad / (total * (1 - ctx.dropout))
        grad_h = graph.transposed_product(used, grad)
        # softmax: w (dL/dw - sum w dL/dw), where the sum over a node's edges is grad . out
        grad_scores = graph.sampled_product(grad, h).mul_(used).sub_(graph.at_target(mean).mul_(weights))
        grad_scores = torch.ops.aten.leaky_relu_backward(grad_scores, scores, ctx.slope, True)
        return grad_h, graph.row_sums(grad_scores), graph.column_sums(grad_scores), None, None, None


def softmax_numerators(scores, s_dst, s_src, graph):
    """exp(scores) up to a factor a row, without over- or underflow. scores: [H E], LeakyReLU of s_dst + s_src [H n]."""
    if scores.device.type == "cpu" and s_dst.abs().max() + s_src.abs().max() < 60:
        return scores.exp()  # in range as they are; saves a third of this function
    top = torch.segment_reduce(scores, "max", offsets=graph.crow)
    return (scores - graph.at_target(top)).exp_()


class _L1Cost(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, y):
        ctx.save_for_backward(x, y)
        if x.device.type != "cpu":
            return torch.cdist(x.T.contiguous(), y.T.contiguous(), p=1) / len(x)
        (n, p), q, block = x.shape, y.shape[1], 128
        width = max(2**20 // (block * q), 1)  # so many differences at a time stay in the cache
        cost, memory = x.new_zeros(p, q), x.new_empty(min(block, n) * min(width, p) * q)
        for columns, part in zip(x.split(width, 1), cost.split(width)):
            for a, b in zip(columns.split(block), y.split(block)):
                difference = memory[: a.numel() * q].view(*a.shape, q)
                torch.sub(a[:, :, None], b[:, None], out=difference)
                part += difference.abs_().sum(0)
        return cost / n

    @staticmethod
    def backward(ctx, grad):
        x, y = ctx.saved_tensors
        grad = grad / len(x)
        grad_x, grad_y = torch.empty_like(x), torch.zeros_like(y)
        for i in range(x.shape[1]):  # one [n, q] sign matrix at a time
            sign = torch.sign(x[:, i, None] - y)
            grad_x[:, i] = sign @ grad[i]
            grad_y -= sign * grad[i]
        return grad_x, grad_y
