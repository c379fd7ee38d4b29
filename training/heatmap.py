"""A matrix as a picture with axes and a scale, for TensorBoard.

pixels = heatmap(Heatmap(plan, "dimension of text", "dimension of ID"))     # [height, width, 3] uint8
"""

from __future__ import annotations

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from models.base import Heatmap

SIZE = 384  # pixels of the matrix on its longer side, at least
MARGIN, BAR = 72, 18  # pixels around the matrix, and of the scale's width
FONT = 18  # pixels; TensorBoard shows the picture at about two thirds of its size
TICKS = 4  # parts of an axis
# Colours of the values from 0 to the largest, evenly spaced: white to dark blue, readable in grey.
COLOURS = np.array([(255, 255, 255), (190, 215, 235), (90, 160, 210), (25, 95, 165), (8, 30, 80)], float)


def heatmap(picture: Heatmap) -> np.ndarray:
    """Pixels [height, width, 3] uint8 of a matrix of values of at least 0."""
    matrix = picture.matrix.float().cpu().numpy()
    top = max(float(matrix.max()), 1e-30)
    factor = max(1, SIZE // max(matrix.shape))
    field = colours(matrix / top).repeat(factor, 0).repeat(factor, 1)
    height, width = field.shape[:2]
    canvas = Image.new("RGB", (width + 3 * MARGIN + BAR, height + 2 * MARGIN), "white")
    canvas.paste(Image.fromarray(field), (MARGIN, MARGIN))
    scale = colours(np.linspace(1, 0, height)[:, None]).repeat(BAR, 1)
    canvas.paste(Image.fromarray(scale), (width + 2 * MARGIN, MARGIN))
    draw = ImageDraw.Draw(canvas)
    draw.font = ImageFont.load_default(FONT)
    draw.text((MARGIN, 16), f"rows: {picture.rows}, columns: {picture.columns}", fill="black")
    for part in range(TICKS + 1):
        x, y = MARGIN + width * part // TICKS, MARGIN + height * part // TICKS
        draw.text((x, MARGIN + height + 6), str(matrix.shape[1] * part // TICKS), fill="black", anchor="mt")
        draw.text((MARGIN - 6, y), str(matrix.shape[0] * part // TICKS), fill="black", anchor="rm")
        value = f"{top * (1 - part / TICKS):.2g}"
        draw.text((width + 2 * MARGIN + BAR + 4, y), value, fill="black", anchor="lm")
    for left, right in ((MARGIN, MARGIN + width), (width + 2 * MARGIN, width + 2 * MARGIN + BAR)):
        draw.rectangle((left - 1, MARGIN - 1, right, MARGIN + height), outline="black")
    return np.asarray(canvas)


def colours(values: np.ndarray) -> np.ndarray:
    """Colours [h, w, 3] uint8 of values [h, w] from 0 to 1."""
    places = np.linspace(0, 1, len(COLOURS))
    channels = [np.interp(values, places, COLOURS[:, channel]) for channel in range(3)]
    return np.stack(channels, -1).astype(np.uint8)
