"""A GPU is not waited for within an epoch: how often the host reads results does not depend on the steps."""

from collections import Counter

import pytest
import torch
from helpers import random_features
from model_helpers import TRAINED, choose_gpu_branches
from pretend_cuda import CUDA, Waits, pretend_cuda
from small_runs import start

from data.graphs import nearest_neighbours
from procedure import train_epoch


def waits_of_an_epoch(folder, **changes):
    """Operations of an epoch in the GPU branches for which the host would wait: {name: times}."""
    run = start(folder, **changes)
    with Waits() as waits:
        assert train_epoch(run.model, run.optimizer, run.sampler, run.progress)
    return Counter(waits.names)


def test_waits_are_counted_in_both_directions():
    x = torch.ones(3, requires_grad=True)

    class Reads(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x * 2

        @staticmethod
        def backward(ctx, grad):
            return grad * float(grad.sum())

    with Waits() as waits:
        y = Reads.apply(x)
        y[y > 1].sum().backward()
    assert Counter(waits.names) == {"index": 1, "index_put": 1, "_local_scalar_dense": 1}


@pytest.mark.parametrize("changes", TRAINED.values(), ids=TRAINED)
def test_more_steps_in_an_epoch_are_no_more_waits(small_dataset, monkeypatch, changes):
    choose_gpu_branches(monkeypatch)
    changes = {"plan_every": 1, "sinkhorn_iters": 12, **changes}
    few = waits_of_an_epoch(small_dataset, bpr_batch=128, **changes)
    many = waits_of_an_epoch(small_dataset, bpr_batch=24, **changes)
    assert few == many and few.total() < 50


def test_waits_of_neighbours_grow_with_its_rows_alone():
    """There are as many blocks of similarities as pairs of blocks of rows."""
    with pretend_cuda() as cuda:
        nearest_neighbours(random_features(60, 6), 4, CUDA, block=10)
    assert len(cuda.waits) < 12
