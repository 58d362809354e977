"""What the frozen vision tower makes of a picture, outside of any gradient."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.pictures import Tiles


@dataclass(frozen=True)
class Features:
    """A picture as the text model reads it."""

    array: mx.array
    """(1, all tiles' tokens, hidden): those of the real tiles come first."""
    tiles: int
    """Real ones."""


def compute_features(model: Mllama, tiles: Tiles) -> Features:
    """Runs the vision tower on one picture."""
    array = model.image_features(mx.array(tiles.pixels), tiles.aspect_ratio_id)
    mx.eval(array)
    return Features(array, len(tiles.pixels))
