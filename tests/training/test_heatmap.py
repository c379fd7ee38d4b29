"""Pictures of matrices: every value has its colour, and the size allows for axes and scale."""

import torch

from models.base import Heatmap
from training.heatmap import BAR, MARGIN, SIZE, colours, heatmap


def test_values_keep_their_places_and_larger_ones_are_darker():
    matrix = torch.tensor([[0.0, 1.0, 2.0], [4.0, 3.0, 0.0]])
    pixels = heatmap(Heatmap(matrix, "a", "b"))
    factor = SIZE // 3
    assert pixels.shape == (2 * factor + 2 * MARGIN, 3 * factor + 3 * MARGIN + BAR, 3)
    centres = pixels[MARGIN + factor // 2 :: factor, MARGIN + factor // 2 :: factor][:2, :3]
    darkness = -centres.astype(int).sum(-1).ravel()
    assert darkness.argsort(kind="stable").tolist() == matrix.ravel().argsort(stable=True).tolist()
    assert (centres == colours(matrix.numpy() / 4)).all()


def test_zeros_are_white():
    pixels = heatmap(Heatmap(torch.zeros(4, 4), "a", "b"))
    assert (pixels[MARGIN + 1 : -MARGIN - 1, MARGIN + 1 : MARGIN + SIZE - 1] == 255).all()
