"""An image encoder that needs no model: the mean colours of a picture's 4 x 4 parts.

It tells pictures of different colours and layouts apart and knows nothing of what they show. It is for trying
things out without a download; a model such as CLIP belongs into its place for results.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from data.encoders import Encoder, require, unit_rows

NAME = "colours"  # of --model
PARTS = 4  # per side


def colour_encoder(normalize: int) -> Encoder:
    """The encoder: red, green and blue of each part, from -1 to 1, in one vector of length 48."""
    pillow = require("PIL.Image")

    def encode(pictures: list[Any]) -> np.ndarray:
        parts = [picture.convert("RGB").resize((PARTS, PARTS), pillow.Resampling.BOX) for picture in pictures]
        rows = np.stack([np.asarray(part, np.float32).ravel() / 127.5 - 1 for part in parts])
        return unit_rows(rows) if normalize else rows

    about = {"model": NAME, "parts": PARTS, "normalize": normalize}
    return Encoder(3 * PARTS**2, encode, about)
