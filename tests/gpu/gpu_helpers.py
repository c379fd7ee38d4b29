"""Shared by the tests that need a GPU: their marks, and models and batches on the CPU and on the GPU."""

import pytest
import torch
from model_helpers import build

from dataloader import Batch

GPU = torch.device("cuda")
NEEDS_GPU = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")]


def on_gpu(batch):
    """A Batch on the GPU."""
    return Batch(*(part.to(GPU) for part in batch))


def pair_of_models(folder, dtype=torch.float32, **changes):
    """A model on the CPU, after its first begin_step, and one on the GPU with its weights and buffers."""
    cpu, gpu = (build(folder, **changes).to(dtype).to(device).train() for device in ("cpu", GPU))
    cpu.begin_step(0)
    gpu.begin_step(0)
    gpu.load_state_dict(cpu.state_dict())
    return cpu, gpu
