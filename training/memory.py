"""Memory of the process: what glibc keeps, and the peak."""

from __future__ import annotations

import contextlib
import ctypes
import resource
import sys

import torch

from layers.device import on_cpu


def keep_freed_memory() -> None:
    """Make glibc keep the memory that torch frees for its next tensors instead of returning it.

    Otherwise every large intermediate of a training step costs a page fault for each of its pages, which
    takes longer than most operations on it. Does nothing with another C library.
    """
    with contextlib.suppress(AttributeError, OSError):
        mallopt = ctypes.CDLL("libc.so.6").mallopt
        mallopt(-4, 0)  # M_MMAP_MAX: take large blocks from the heap too
        mallopt(-1, -1)  # M_TRIM_THRESHOLD: never shrink the heap


def peak_memory_mb(device: torch.device) -> float:
    """Peak memory of this process in MB (10^6 bytes): resident, or allocated on a CUDA device."""
    if not on_cpu(device):
        return torch.cuda.max_memory_allocated(device) / 1e6
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e6 if sys.platform == "darwin" else peak * 1024 / 1e6
