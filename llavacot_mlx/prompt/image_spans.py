"""A question on its way to the model: token ids, tiles, and which rows see which images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llavacot_mlx.prompt.image_processor import Tiles


@dataclass(frozen=True)
class Prompt:
    """What a prefill starts from."""

    token_ids: tuple[int, ...]
    pictures: tuple[Tiles, ...]
    """One for each image token, in order."""


@dataclass(frozen=True)
class OpenImages:
    """Rows `start` to `stop` of a prompt see images `first` to `last` (exclusive).

    With `first == last` the rows come before every image, see `cache.Sight.open`.
    """

    start: int
    stop: int
    first: int
    last: int


def open_images(token_ids: Sequence[int], image_token_id: int) -> list[OpenImages]:
    """Which images each row of a prompt sees, as runs of rows that cover it in order.

    An image is open from its token up to the next image's; images whose tokens follow each other
    without text between are open together, up to the next image after the group. That is
    transformers' `get_cross_attention_token_mask`. Empty without an image.
    """
    positions = [row for row, token in enumerate(token_ids) if token == image_token_id]
    if not positions:
        return []
    runs = [OpenImages(0, positions[0], 0, 0)] if positions[0] else []
    group = 0  # the first image of the consecutive ones that the current image belongs to
    for image, position in enumerate(positions):
        if image and position != positions[image - 1] + 1:
            group = image
        stop = positions[image + 1] if image + 1 < len(positions) else len(token_ids)
        runs.append(OpenImages(position, stop, group, image + 1))
    return runs
