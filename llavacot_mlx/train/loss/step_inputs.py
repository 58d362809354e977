"""The inputs of one training step: a batch as arrays, in the order in which it is computed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from llavacot_mlx.model.config import ModelConfig
from llavacot_mlx.prompt.image_processor import Tiles
from llavacot_mlx.train.data.sample import TokenKind
from llavacot_mlx.train.loss.feature_cache import Features

Picture = Features | Tiles
"""An image's features from the frozen vision tower, or its tiles where the tower is trained."""


@dataclass(frozen=True)
class View:
    """The part of its image that each token of a row attends to."""

    image_index: int
    """Index of the image token. Tokens before it attend to all tiles, absent ones included, and
    skip the MLPs of the cross-attention layers, as in inference."""
    visible: int
    """Number of image tokens of the real tiles, which come first: what the image token and the
    tokens after it attend to."""
    aspect_ratio_id: int
    """The aspect ratio id, if the image is given as tiles for the vision tower; 0 for features."""


@dataclass(frozen=True)
class Inputs:
    """A batch, its rows with an image first. Only tokens that have a loss are listed as labels."""

    ids: mx.array
    """(rows, tokens) int32, padded on the right."""
    images: tuple[mx.array, ...]
    """The images of the first rows: features (1, image tokens, hidden), or pixels as in `Tiles`."""
    views: tuple[View, ...]
    """One per image."""
    positions: mx.array
    """(labels,) int32: index into the flattened ids of the token before each label."""
    labels: mx.array
    """(labels,) int32: the tokens that have a loss."""
    token_kinds: mx.array
    """(labels,) int32: the `TokenKind` of each label."""

    @classmethod
    def of(
        cls,
        ids: np.ndarray,
        token_kinds: np.ndarray,
        pictures: Sequence[Picture | None],
        config: ModelConfig,
    ) -> Inputs:
        """Takes ids and token kinds as `Batch` has them, and the image of each row.

        A row has an image exactly if it has an image token. The first token of a row never has a
        loss, because no token comes before it.
        """
        order = sorted(range(len(ids)), key=lambda row: pictures[row] is None)
        ids, token_kinds = ids[order], token_kinds[order]
        views, images = [], []
        for row, index in enumerate(order):
            picture = pictures[index]
            assert (picture is not None) == (config.image_token_id in ids[row]), index
            if picture is not None:
                image_index = int(np.argmax(ids[row] == config.image_token_id))
                views.append(_view(picture, image_index, config))
                images.append(
                    picture.array if isinstance(picture, Features) else mx.array(picture.pixels)
                )
        loss_mask = token_kinds[:, 1:] != TokenKind.MASKED
        rows, before = np.nonzero(loss_mask)
        return cls(
            ids=mx.array(ids),
            images=tuple(images),
            views=tuple(views),
            positions=mx.array((rows * ids.shape[1] + before).astype(np.int32)),
            labels=mx.array(ids[:, 1:][loss_mask].astype(np.int32)),
            token_kinds=mx.array(token_kinds[:, 1:][loss_mask].astype(np.int32)),
        )


def _view(picture: Picture, image_index: int, config: ModelConfig) -> View:
    if isinstance(picture, Features):
        return View(image_index, picture.tiles * config.vision.tokens_per_tile, 0)
    visible = len(picture.pixels) * config.vision.tokens_per_tile
    return View(image_index, visible, picture.aspect_ratio_id)
