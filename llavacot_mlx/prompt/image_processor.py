"""Images become the tiles that the vision tower reads.

The reference is transformers' PIL image processor for Mllama; `tests/parity` compares every value.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from PIL import Image

from llavacot_mlx.checked import KeyRules, OneOf, Range, checked, named, read_json
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import VisionConfig

_WHITE = (255, 255, 255, 255)


@dataclass(frozen=True)
class Tiles:
    """An image cut into tiles."""

    pixels: np.ndarray
    """(tiles, height, width, channels), float32, normalized; only the real tiles."""
    rows: int
    columns: int
    aspect_ratio_id: int
    """1-based number of the arrangement; 0 means no image."""


@dataclass(frozen=True)
class ImageProcessor:
    """Cuts images into tiles by the checkpoint's own settings."""

    tile_size: int
    max_tiles: int
    resample: int
    levels: np.ndarray
    """Rescaled and normalized value of each 8-bit value, (256, channels), float32."""

    @classmethod
    def load(cls, folder: Path, vision: VisionConfig) -> ImageProcessor:
        """Reads `preprocessor_config.json`, or `processor_config.json` as transformers 5 writes it.

        Raises UserError when a setting is missing, disagrees with `config.json`, or asks for
        something that this image processor does not do.
        """
        file = folder / "preprocessor_config.json"
        if file.exists():
            settings = read_json(file, "")
        else:
            nested = folder / "processor_config.json"
            if not nested.exists():
                raise UserError(f"{file} is missing: it says how pictures are cut into tiles")
            file, settings = nested, read_json(nested, "")
            settings = settings.get("image_processor") if isinstance(settings, dict) else None
        if not isinstance(settings, dict):
            raise UserError(f"{file} holds no settings of a picture processor")
        with named(file):
            return _image_processor(settings, vision)

    def __call__(self, image: Image.Image) -> Tiles:
        """Cuts an upright image of any mode and size into tiles."""
        rgb = to_rgb(image)
        width, height = rgb.size
        rows, columns = self.arrangement(height, width)
        new_height, new_width = self._fit_size(height, width, rows, columns)
        # PIL resizes 8-bit channels; so does the reference, before anything else is computed.
        resized = np.asarray(rgb.resize((new_width, new_height), resample=self.resample))
        size = self.tile_size
        canvas = np.zeros((rows * size, columns * size, resized.shape[2]), dtype=np.uint8)
        canvas[:new_height, :new_width] = resized  # the black border is normalized like the rest
        values = self.levels[canvas, np.arange(canvas.shape[2])]
        tiles = values.reshape(rows, size, columns, size, -1).swapaxes(1, 2)
        aspect_ratio_id = tile_arrangements(self.max_tiles).index((rows, columns)) + 1
        pixels = np.ascontiguousarray(tiles.reshape(rows * columns, size, size, -1))
        return Tiles(pixels, rows, columns, aspect_ratio_id)

    def arrangement(self, height: int, width: int) -> tuple[int, int]:
        """Returns the rows and columns of tiles whose canvas changes the image's size least.

        This is the smallest enlargement if there is one, else the smallest reduction; of several,
        the one with the smallest canvas.
        """
        scales = [
            (min(rows * self.tile_size / height, columns * self.tile_size / width), rows, columns)
            for rows, columns in tile_arrangements(self.max_tiles)
        ]
        enlarging = [scale for scale, _, _ in scales if scale >= 1]
        best = min(enlarging) if enlarging else max(scale for scale, _, _ in scales)
        candidates = [(rows, columns) for scale, rows, columns in scales if scale == best]
        return min(candidates, key=math.prod)

    def _fit_size(self, height: int, width: int, rows: int, columns: int) -> tuple[int, int]:
        """Returns the height and width after resizing: at least a tile, at most the canvas."""
        size = self.tile_size
        target_height = min(max(height, size), rows * size)
        target_width = min(max(width, size), columns * size)
        scale_height, scale_width = target_height / height, target_width / width
        if scale_width < scale_height:
            return min(math.floor(height * scale_width) or 1, target_height), target_width
        return target_height, min(math.floor(width * scale_height) or 1, target_width)


def tile_arrangements(max_tiles: int) -> list[tuple[int, int]]:
    """Returns all (rows, columns) of at most `max_tiles` tiles, in the order of their ids."""
    return [
        (rows, columns)
        for rows in range(1, max_tiles + 1)
        for columns in range(1, max_tiles // rows + 1)
    ]


_Level = Annotated[float, Range(above=-1e30, below=1e30)]
_Factor = Annotated[float, Range(above=0, below=1e30)]
_OnlyTrue = Annotated[bool, OneOf(True)]


@dataclass(frozen=True)
class _Size:
    height: int
    width: int


@dataclass(frozen=True)
class _Settings:
    """The settings that are read from a file."""

    size: _Size
    max_image_tiles: int
    resample: Annotated[int, OneOf(*map(int, Image.Resampling))]
    image_mean: _Level | tuple[_Level, ...]
    image_std: _Factor | tuple[_Factor, ...]
    rescale_factor: _Factor | tuple[_Factor, ...]
    do_resize: _OnlyTrue = True
    do_pad: _OnlyTrue = True
    do_rescale: _OnlyTrue = True
    do_normalize: _OnlyTrue = True
    do_convert_rgb: _OnlyTrue = True


_RULES = KeyRules(unknown=None, missing=", and the result depends on it")


def _image_processor(values: dict[str, Any], vision: VisionConfig) -> ImageProcessor:
    settings = checked(_Settings, values, _RULES)
    size, max_tiles = settings.size, settings.max_image_tiles
    if not size.height == size.width == vision.image_size:
        raise UserError(
            f"size {size.height} × {size.width} is not config.json's tile of {vision.image_size} px"
        )
    if max_tiles != vision.max_num_tiles:
        raise UserError(
            f"max_image_tiles is {max_tiles}, and config.json's max_num_tiles is "
            f"{vision.max_num_tiles}"
        )
    mean, std = np.atleast_1d(settings.image_mean), np.atleast_1d(settings.image_std)
    if not len(mean) == len(std) == vision.num_channels:
        raise UserError(f"image_mean and image_std need {vision.num_channels} values each")
    # The reference multiplies in float64, stores float32, and normalizes in float32.
    factor = np.atleast_1d(settings.rescale_factor)
    if len(factor) != 1:
        raise UserError("rescale_factor must be one number")
    rescaled = (np.arange(256, dtype=np.float64) * factor).astype(np.float32)
    levels = (rescaled[:, None] - mean.astype(np.float32)) / std.astype(np.float32)
    return ImageProcessor(vision.image_size, max_tiles, settings.resample, levels)


def to_rgb(image: Image.Image) -> Image.Image:
    """Converts an image to RGB; transparent parts become white."""
    if "A" in image.getbands() or image.info.get("transparency") is not None:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, _WHITE), image).convert("RGB")
    return image.convert("RGB")
