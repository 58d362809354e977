"""The input of a prefill: token ids and tiles, and which positions see which images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from llavacot_mlx.prompt.image_processor import Tiles


@dataclass(frozen=True)
class Prompt:
    """The token ids and images of a prompt."""

    token_ids: tuple[int, ...]
    images: tuple[Tiles, ...]
    """One per image token, in order."""


@dataclass(frozen=True)
class VisibleImages:
    """Positions `start` to `stop` of a prompt that see images `first` to `last` (both exclusive).

    With `first == last` the positions come before every image, see `ImageSpan.after_image`.
    """

    start: int
    stop: int
    first: int
    last: int


def visible_images(token_ids: Sequence[int], image_token_id: int) -> list[VisibleImages]:
    """Returns which images each position of a prompt sees, as consecutive runs of positions.

    An image is visible from its token up to the next image's. Images whose tokens follow each other
    without text in between are visible together, up to the next image after the group. This is
    transformers' `get_cross_attention_token_mask`. Empty without an image.
    """
    positions = [index for index, token in enumerate(token_ids) if token == image_token_id]
    if not positions:
        return []
    runs = [VisibleImages(0, positions[0], 0, 0)] if positions[0] else []
    group = 0  # the first image of the consecutive ones that the current image belongs to
    for image, position in enumerate(positions):
        if image and position != positions[image - 1] + 1:
            group = image
        stop = positions[image + 1] if image + 1 < len(positions) else len(token_ids)
        runs.append(VisibleImages(position, stop, group, image + 1))
    return runs
