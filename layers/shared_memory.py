"""Constant tensors of which the processes of one machine hold a single copy in main memory.

The pages of a shared mapping belong to no process alone: Pss in /proc/PID/smaps counts each of P processes'
part, Rss counts them in full in every process.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Sequence

import torch

from layers.agreement import from_all, together
from layers.columns import rank, ranks


def one_copy(
    shape: Sequence[int], dtype: torch.dtype, fill: Callable[[torch.Tensor], object]
) -> torch.Tensor:
    """A new tensor on the CPU that fill(tensor) has set; all processes have to call this together.

    Of several processes, the first of each machine alone calls `fill`, and those of a machine share the
    memory, which none of them may change later. Where the system is not Linux, each has its own.
    """
    if ranks() == 1 or not hasattr(os, "memfd_create"):
        tensor = torch.empty(*shape, dtype=dtype)
        fill(tensor)
        return tensor
    machines = from_all(os.environ.get("GROUP_RANK", ""))  # torchrun numbers its nodes
    first = machines.index(machines[rank()])
    path, file = "", -1
    with together():
        if rank() == first:
            # Without a name in any folder, so that nothing is left over when the processes are killed.
            file = os.memfd_create("recgoat")
            path = f"/proc/{os.getpid()}/fd/{file}"
            fill(mapped(path, shape, dtype))
    path = from_all(path)[first]
    with together():
        tensor = mapped(path, shape, dtype)
    if file >= 0:
        os.close(file)  # all have mapped it
    return tensor


def mapped(path: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
    """Tensor of a file, which all that map it share; the file is extended to its size."""
    return torch.from_file(path, shared=True, size=math.prod(shape), dtype=dtype).view(*shape)
