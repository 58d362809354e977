"""What one training step reads: a batch as arrays, in the order in which it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from llavacot_mlx.model.config import ModelConfig
from llavacot_mlx.pictures import Tiles

from .features import Features
from .sample import Target

Picture = Features | Tiles
"""What the frozen vision tower made of a picture, or its tiles where the tower is trained."""


@dataclass(frozen=True)
class View:
    """Which tokens of a row see how much of its picture."""

    closed: int
    """Tokens before the image token. They see all tiles, absent ones included, and their MLPs in
    the cross-attention layers are idle, see `cache.Sight.open`."""
    seen: int
    """Image tokens of the real tiles, which come first: what all later tokens see."""
    aspect_ratio_id: int
    """Of tiles that are yet to go through the vision tower; else 0."""


@dataclass(frozen=True)
class Inputs:
    """A batch whose rows with pictures come first; of its tokens, only the learned ones count."""

    ids: mx.array
    """(rows, tokens) int32, padded on the right."""
    images: tuple[mx.array, ...]
    """Of the first rows: features (1, all tiles' tokens, hidden), or pixels as in `Tiles`."""
    views: tuple[View, ...]
    """One an image."""
    places: mx.array
    """(learned,) int32: where in the flattened ids the token before a learned one is."""
    targets: mx.array
    """(learned,) int32: the learned tokens."""
    kinds: mx.array
    """(learned,) int32, of `Target`."""

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        targets: np.ndarray,
        pictures: Sequence[Picture | None],
        config: ModelConfig,
    ) -> Inputs:
        """From ids and targets as `Batch` has them, with the picture of each row.

        A row that has a picture must have an image token, and only such a row. A target at the
        first position is not learned, because nothing comes before it.
        """
        order = sorted(range(len(ids)), key=lambda row: pictures[row] is None)
        ids, targets = ids[order], targets[order]
        views, images = [], []
        for row, index in enumerate(order):
            picture = pictures[index]
            assert (picture is not None) == (config.image_token_id in ids[row]), index
            if picture is not None:
                closed = int(np.argmax(ids[row] == config.image_token_id))
                views.append(_view(picture, closed, config))
                images.append(
                    picture.array if isinstance(picture, Features) else mx.array(picture.pixels)
                )
        learned = targets[:, 1:] != Target.MASKED
        rows, before = np.nonzero(learned)
        return cls(
            ids=mx.array(ids),
            images=tuple(images),
            views=tuple(views),
            places=mx.array((rows * ids.shape[1] + before).astype(np.int32)),
            targets=mx.array(ids[:, 1:][learned].astype(np.int32)),
            kinds=mx.array(targets[:, 1:][learned].astype(np.int32)),
        )


def _view(picture: Picture, closed: int, config: ModelConfig) -> View:
    if isinstance(picture, Features):
        return View(closed, picture.tiles * config.vision.tokens_per_tile, 0)
    seen = len(picture.pixels) * config.vision.tokens_per_tile
    return View(closed, seen, picture.aspect_ratio_id)
