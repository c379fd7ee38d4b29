"""Dropout masks."""

import torch
from torch import nn


def keep_mask(x, p):
    """Which numbers of x dropout keeps, as 1 or 0 of its shape and type: each 1 with probability 1 - p, rounded to a multiple of 2^-16.

    Sixteen random bits decide, so that four numbers share a draw of the generator; torch's own dropout takes one draw or more each,
    on a single thread of a CPU.
    """
    bits = torch.empty(-(-x.numel() // 4), dtype=torch.int64, device=x.device).random_(-(2**63), None)
    kept = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    return torch.ge(bits.view(torch.int16)[: x.numel()].view(x.shape), round(p * 2**16) - 2**15, out=kept)


class Dropout(nn.Dropout):
    """torch's Dropout with the random numbers of utils.keep_mask."""

    def forward(self, x):
        """x of any shape."""
        if not self.training or not self.p:
            return x
        return x * keep_mask(x, self.p).div_(1 - self.p)
