"""Dropout with masks that are cheap to draw on a CPU."""

import math

import torch
from torch import nn

from layers.columns import own_part, ranks


def keep_mask(x: torch.Tensor, p: float, dim: int | None = None) -> torch.Tensor:
    """Dropout mask of x's shape and type: each entry is 1 with probability 1 - p, else 0.

    The probability is rounded to a multiple of 2^-16: one 64-bit draw of the generator decides four entries.
    torch's own dropout spends at least one draw an entry, on a single CPU thread.

    dim: the dimension along which x is this process's part of a whole, whose mask is the same for every
    number of processes (None: x is whole).
    """
    shape = [size * ranks() if i == dim else size for i, size in enumerate(x.shape)]
    n = math.prod(shape)
    bits = torch.empty(-(-n // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    drawn = bits.view(torch.int16)[:n].view(shape)
    if dim is not None:
        drawn = own_part(drawn, dim)
    mask = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return torch.ge(drawn, round(p * 2**16) - 2**15, out=mask)


class Dropout(nn.Dropout):
    """torch.nn.Dropout with the masks of keep_mask; dim: as there."""

    def __init__(self, p: float, dim: int | None = None):
        super().__init__(p)
        self.dim = dim

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero entries of x, of any shape, with probability p and scale the others by 1 / (1 - p)."""
        if not self.training or not self.p:
            return x
        return x * keep_mask(x, self.p, self.dim).div_(1 - self.p)
