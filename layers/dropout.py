"""Dropout with masks that are cheap to draw on a CPU."""

import torch
from torch import nn


def keep_mask(x: torch.Tensor, p: float) -> torch.Tensor:
    """Dropout mask of x's shape and type: each entry is 1 with probability 1 - p, else 0.

    The probability is rounded to a multiple of 2^-16: one 64-bit draw of the generator decides four entries.
    torch's own dropout spends at least one draw an entry, on a single CPU thread.
    """
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    mask = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return torch.ge(bits.view(torch.int16)[: x.numel()].view(x.shape), round(p * 2**16) - 2**15, out=mask)


class Dropout(nn.Dropout):
    """torch.nn.Dropout with the masks of keep_mask."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Zero entries of x, of any shape, with probability p and scale the others by 1 / (1 - p)."""
        if not self.training or not self.p:
            return x
        return x * keep_mask(x, self.p).div_(1 - self.p)
