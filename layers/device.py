"""Which kind of device a tensor is on: the one question that CPU and GPU code paths differ by."""

import torch

CPU_KINDS = ("cpu",)  # a test that empties this runs the GPU path of all code on a CPU


def on_cpu(where: torch.Tensor | torch.device) -> bool:
    """Whether operations on this tensor or device take the CPU path. Every branch on the device asks here."""
    device = where if isinstance(where, torch.device) else where.device
    return device.type in CPU_KINDS
