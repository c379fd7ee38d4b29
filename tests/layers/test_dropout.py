"""Dropout masks: their share, independence and seed; the layer that applies them."""

import math

import pytest
import torch

from layers.dropout import Dropout, keep_mask


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.95])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_mask_drops_the_given_share_independently_and_depends_on_the_seed_alone(p, dtype):
    x = torch.randn(1001, 203, dtype=dtype)
    torch.manual_seed(3)
    kept = keep_mask(x, p)
    assert kept.shape == x.shape and kept.dtype == dtype and torch.equal(kept, (kept != 0).to(dtype))
    n, share = x.numel(), kept.double().mean().item()
    assert abs(share - (1 - p)) <= 5 * math.sqrt(p * (1 - p) / n) + 2**-17
    # One draw of the generator decides four neighbouring entries, which must not be correlated.
    centred = kept.flatten().double() - share
    for lag in (1, 2, 3, 4, 203):
        correlation = (centred[lag:] * centred[:-lag]).mean()
        assert abs(correlation) <= 5 * max(share * (1 - share), 1e-12) / math.sqrt(n)
    torch.manual_seed(3)
    assert torch.equal(kept, keep_mask(x, p))


def test_dropout_scales_the_entries_it_keeps_and_is_off_in_eval_mode():
    torch.manual_seed(0)
    x = torch.ones(300, 50, requires_grad=True)
    out = Dropout(0.25)(x)
    out.sum().backward()
    assert out.unique().tolist() == [0.0, pytest.approx(4 / 3)]
    assert out.mean().item() == pytest.approx(1, abs=0.02)
    assert torch.equal(x.grad, out.detach())
    assert Dropout(0.25).eval()(x) is x and Dropout(0.0)(x) is x
