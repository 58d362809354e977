"""Shrinks a huge image while it is read, so that nothing after it takes memory by the gigabyte."""

from __future__ import annotations

import math

from PIL import Image

MAX_PIXELS = 50_000_000
"""Of an image that is not shrunk: more than a model sees of any, and than most cameras make."""
_MAX_WIDE_PIXELS = 12_500_000  # of more than 8 bits, which are computed with in 64
_MAX_SIDE = 65_535
_BAND_PIXELS = 8_000_000  # that are converted at a time


def decode_smaller(image: Image.Image) -> None:
    """Has a huge JPEG decoded at a half, a quarter or an eighth of its size; call before `load`."""
    factor = _factor(image)
    if factor > 1 and image.format == "JPEG":
        image.draft(None, (image.width // factor, image.height // factor))


def shrunk(image: Image.Image) -> Image.Image:
    """The image itself, or a smaller one if it is huge: the mean of each square of its pixels."""
    factor = _factor(image)
    if factor == 1:
        return image
    mode = _averaged_mode(image)
    size = (-(-image.width // factor), -(-image.height // factor))
    small = Image.new(mode, size)
    height = factor * max(1, _BAND_PIXELS // (image.width * factor))
    for top in range(0, image.height, height):
        band = image.crop((0, top, image.width, min(top + height, image.height)))
        band.info = image.info  # a transparent color
        small.paste(band.convert(mode).reduce(factor), (0, top // factor))
    small.info = {key: value for key, value in image.info.items() if key != "transparency"}
    return small


def _factor(image: Image.Image) -> int:
    limit = _MAX_WIDE_PIXELS if image.mode[0] in "IF" else MAX_PIXELS
    by_area = math.ceil(math.sqrt(image.width * image.height / limit))
    return max(1, by_area, -(-max(image.size) // _MAX_SIDE))


def _averaged_mode(image: Image.Image) -> str:
    """The mode in which the mean of pixels is a color between them."""
    if image.has_transparency_data:
        return "RGBA"
    if image.mode[0] == "I":
        return "I"
    return {"1": "L", "P": "RGB"}.get(image.mode, image.mode)
