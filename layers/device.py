"""Which kind of device a tensor is on: the one question that CPU and GPU code paths differ by."""

import torch


def on_cpu(tensor: torch.Tensor) -> bool:
    """Whether operations on this tensor take the CPU path. Every branch on the device asks here."""
    return tensor.device.type == "cpu"
