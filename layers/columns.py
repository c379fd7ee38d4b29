"""Vectors of d columns over P processes: each holds d / P of them, of every table, layer and attention head.

Whatever works on each column by itself (propagation over a graph, attention within a head, decay, Adam) needs
nothing from here. These functions are for what reads several columns together:

    sum_parts(x)      the sum over processes of what each made of its own columns
    all_columns(x)    vectors [n, own columns] -> [n, d], for a linear map or a similarity
    shared(x)         a value that all processes know and that each combines with its own columns

Every process computes the same loss. What reads all columns computes a part of its result, its own columns or
rows, so that the gradients that the processes find add up to that of one process. With one process each
function returns its argument. The collectives are those of torch.distributed; P divides d.
"""

from __future__ import annotations

import contextlib
import re
import typing
from collections.abc import Iterator

import torch
import torch.distributed as dist
from torch import nn

from utils import LostProcess

Kind = typing.TypeVar("Kind", bound=nn.Module)


def ranks() -> int:
    """Number of processes, P."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def rank() -> int:
    """Number of this process, from 0."""
    return dist.get_rank() if ranks() > 1 else 0


def own(n: int, of: int | None = None) -> slice:
    """The part of n columns or rows that this process, or process `of`, holds; the last holds a remainder."""
    p, r = ranks(), rank() if of is None else of
    return slice(r * (n // p), n if r == p - 1 else (r + 1) * (n // p))


def own_part(x: torch.Tensor, dim: int) -> torch.Tensor:
    """The part of a whole tensor that this process holds, along a dimension."""
    return x[(slice(None),) * dim + (own(x.shape[dim]),)]


@contextlib.contextmanager
def collective() -> Iterator[None]:
    """A block of communication. Raises LostProcess if another process has ended or does not answer."""
    try:
        yield
    except RuntimeError as error:
        reason = re.sub(r"\[\S*gloo\S*\] |\. .*", "", str(error).splitlines()[0])[:100]
        raise LostProcess(
            f"another process of the run has ended or does not answer ({reason}); a run continues from its "
            "last checkpoint with --resume RUN_FOLDER"
        ) from None


# ---------------------------------------------------------------- collectives with gradients


def sum_parts(x: torch.Tensor) -> torch.Tensor:
    """Sum of x over the processes, for a loss that all of them compute."""
    return x if ranks() == 1 else _SumParts.apply(x)


class _SumParts(torch.autograd.Function):
    """All-reduce. Each process knows the gradient of the sum, which is that of its part."""

    @staticmethod
    def forward(ctx, x):
        return all_reduce(x)

    @staticmethod
    def backward(ctx, grad):
        return grad


def shared(x: torch.Tensor) -> torch.Tensor:
    """x, the same on every process, where each combines it with its own columns."""
    return x if ranks() == 1 else _Shared.apply(x)


class _Shared(torch.autograd.Function):
    """Identity. The gradient is the sum of those that the processes find."""

    @staticmethod
    def forward(ctx, x):
        return x.view_as(x)

    @staticmethod
    def backward(ctx, grad):
        return all_reduce(grad)


def all_columns(x: torch.Tensor) -> torch.Tensor:
    """Vectors [n, d] of own columns [n, d / P]. Each process computes a part of what is made of them."""
    return x if ranks() == 1 else _AllColumns.apply(x)


class _AllColumns(torch.autograd.Function):
    """All-gather. The gradient is reduce-scattered: the sum over processes of those of the own columns."""

    @staticmethod
    def forward(ctx, x):
        parts = [torch.empty_like(x, memory_format=torch.contiguous_format) for _ in range(ranks())]
        with collective():
            dist.all_gather(parts, x.contiguous())
        return torch.cat(parts, 1)

    @staticmethod
    def backward(ctx, grad):
        sent = torch.stack(grad.chunk(ranks(), 1))  # [P, n, d / P]
        received = torch.empty_like(sent)
        # gloo has no reduce-scatter of its own, and this way the parts are added in a fixed order.
        with collective():
            dist.all_to_all_single(received, sent)
        return received.sum(0)


def all_reduce(x: torch.Tensor) -> torch.Tensor:
    """The sum of x over the processes, in a new tensor, without gradients."""
    total = x.clone(memory_format=torch.contiguous_format)
    with collective():
        dist.all_reduce(total)
    return total


def all_parts(x: torch.Tensor, dim: int = 0, to: int | None = None, size: int | None = None) -> torch.Tensor:
    """The parts of all processes, joined along a dimension in the order of the processes, without gradients.

    They may differ in size along this dimension alone. to: the process that receives them (default: all); the
    others get their own part back. size: that of the result along the dimension, if the parts are those of
    `own` (default: the processes tell each other the sizes of their parts).
    """
    if ranks() == 1:
        return x
    counts = part_sizes(x, dim) if size is None else [len(range(size)[own(size, r)]) for r in range(ranks())]
    padded = x.new_zeros([max(counts) if i == dim else size for i, size in enumerate(x.shape)])
    padded.narrow(dim, 0, x.shape[dim]).copy_(x)
    parts = [torch.empty_like(padded) for _ in counts] if to in (None, rank()) else None
    with collective():
        if to is None:
            dist.all_gather(parts, padded)
        else:
            dist.gather(padded, parts, dst=to)
    if parts is None:
        return x
    return torch.cat([part.narrow(dim, 0, n) for part, n in zip(parts, counts, strict=True)], dim)


def part_sizes(x: torch.Tensor, dim: int) -> list[int]:
    """The size along a dimension of the part of each process."""
    sizes = [x.new_empty(1, dtype=torch.int64) for _ in range(ranks())]
    with collective():
        dist.all_gather(sizes, x.new_tensor([x.shape[dim]], dtype=torch.int64))
    return torch.cat(sizes).tolist()


# ---------------------------------------------------------------- lengths and normalisation


def row_norms(x: torch.Tensor) -> torch.Tensor:
    """Euclidean norm over all columns of rows [n, own columns]: [n]. A row of zeros has the gradient 0."""
    if ranks() == 1:
        return x.norm(dim=1)
    squares = sum_parts(x.square().sum(1))
    is_zero = squares == 0
    return squares.masked_fill(is_zero, 1).sqrt().masked_fill(is_zero, 0)


def unit_rows(x: torch.Tensor) -> torch.Tensor:
    """Rows [n, own columns] scaled to length 1 over all columns; a row of zeros stays as it is."""
    return divide_rows(x, shared(row_norms(x)))


def divide_rows(x: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
    """Rows [n, c] divided by their lengths [n], where these are not 0.

    F.normalize divides a row of zeros by 1e-12, and its gradient too: an item without features would fill
    Adam's second moments with numbers that no later gradient of the layer can match.
    """
    return x / lengths.masked_fill(lengths == 0, 1)[:, None]


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm over all d columns, with own columns [n, d / P] as input and output."""

    def __init__(self, d: int):
        super().__init__(d)
        own_outputs(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise each row and apply the learnt scale and shift."""
        if ranks() == 1:
            return super().forward(x)
        (d,) = self.normalized_shape
        centred = x - shared(sum_parts(x.sum(1)) / d)[:, None]
        variance = shared(sum_parts(centred.square().sum(1)) / d)[:, None]
        return centred / (variance + self.eps).sqrt() * self.weight + self.bias


# ---------------------------------------------------------------- parameters


def own_parameter(whole: torch.Tensor, dim: int) -> nn.Parameter:
    """Parameter of the part of a tensor that this process holds along a dimension."""
    # With one process no copy is made.
    part = whole if ranks() == 1 else own_part(whole, dim).clone()
    return mark_part(part, Share(dim, whole.shape[dim]))


class Share(typing.NamedTuple):
    """How the processes share a parameter: the dimension that is divided, and its size in the whole."""

    dim: int
    size: int


def mark_part(part: torch.Tensor, share: Share) -> nn.Parameter:
    """Parameter of a tensor that is this process's part of a whole; share_of tells."""
    parameter = nn.Parameter(part)
    parameter.share = share  # type: ignore[attr-defined]
    return parameter


def share_of(parameter: torch.Tensor) -> Share | None:
    """How the processes share a parameter; None: each holds all of it."""
    return getattr(parameter, "share", None)


def own_outputs(module: Kind) -> Kind:
    """A module (Linear, LayerNorm) that computes its own output columns alone, by its weight's own rows."""
    for name, parameter in list(module.named_parameters(recurse=False)):
        setattr(module, name, own_parameter(parameter.data, 0))
    return module


def normal_table(n: int, d: int, deviation: float) -> nn.Parameter:
    """Own columns of a table [n, d] drawn from N(0, deviation^2): the numbers that one process would draw."""
    if ranks() == 1:
        return own_parameter(deviation * torch.randn(n, d), 1)
    # Drawn in blocks, so that no process holds the whole table. torch draws 16 normal numbers at a time.
    block = 2**14
    sizes = [block] * (n // block - 1)
    drawn = [own_part(torch.randn(size, d), 1).clone() for size in (*sizes, n - sum(sizes))]
    return mark_part(deviation * torch.cat(drawn), Share(1, d))
