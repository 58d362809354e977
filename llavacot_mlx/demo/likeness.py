"""Tells drawings of the little world from other images, such as photographs."""

from __future__ import annotations

import numpy as np
from PIL import Image

from llavacot_mlx.demo.scenes import COLOURS

_SIDE = 192  # pixels of the longer side, at which an image is measured
_NEAR_COLOUR = 45  # levels of the channel that differs most; the world's own colours vary by 10
_GREYEST = 60  # levels between a pixel's channels, up to which it may belong to the background
_NEAR_BACKGROUND = 48  # levels around the background's median; its patterns vary by 40
# Of 2,000 scenes the smallest share is 0.94 and 0.013; noise, gradients and photographs stay below
# 0.7, and documents have no colour.
_LEAST_EXPLAINED = 0.88
_LEAST_COLOURED = 0.006


def is_like_the_world(image: Image.Image) -> bool:
    """Whether an RGB image may be a drawing of the world: its colours on one grey background."""
    small = image.copy()
    small.thumbnail((_SIDE, _SIDE), Image.Resampling.BOX)
    pixels = np.asarray(small.convert("RGB")).reshape(-1, 3).astype(np.int16)
    colours = np.array(list(COLOURS.values()), dtype=np.int16)
    distances = np.abs(pixels[:, None] - colours).max(axis=2).min(axis=1)
    coloured = distances <= _NEAR_COLOUR
    grey = ~coloured & (pixels.max(axis=1) - pixels.min(axis=1) <= _GREYEST)
    if not grey.any():
        return False
    middle = np.median(pixels[grey], axis=0)
    background = grey & (np.abs(pixels - middle).max(axis=1) <= _NEAR_BACKGROUND)
    explained = np.mean(coloured | background)
    return bool(coloured.mean() >= _LEAST_COLOURED and explained >= _LEAST_EXPLAINED)
