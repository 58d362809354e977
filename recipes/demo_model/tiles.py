"""Cuts pictures into tiles exactly like transformers' processor, but faster.

`settings()` are the processor's settings, saved beside the model as preprocessor_config.json.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image
from transformers.models.mllama.image_processing_pil_mllama import (
    MllamaImageProcessorPil,
    convert_aspect_ratios_to_ids_np,
    get_image_size_fit_to_canvas,
    get_optimal_tiled_canvas,
)

TILE = 64  # pixels
TILES = 4
MEAN = (0.48145466, 0.4578275, 0.40821073)
DEVIATION = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Fitted:
    """A picture on its canvas, cut into tiles."""

    tiles: np.ndarray  # (TILES, 3, TILE, TILE) uint8; absent tiles are zero
    rows: int  # of tiles
    columns: int  # of tiles
    width: int  # of the picture on the canvas, pixels; the rest is black
    height: int

    @property
    def ratio_id(self) -> int:
        """Mllama's number of the tile arrangement, from 1."""
        return int(convert_aspect_ratios_to_ids_np([[(self.rows, self.columns)]], TILES)[0, 0])


def fit(image: Image.Image) -> Fitted:
    """Resizes to the best canvas, pads, cuts into tiles; not yet normalized."""
    canvas_height, canvas_width = get_optimal_tiled_canvas(image.height, image.width, TILES, TILE)
    height, width = get_image_size_fit_to_canvas(
        image.height, image.width, canvas_height, canvas_width, TILE
    )
    canvas = np.zeros((canvas_height, canvas_width, 3), dtype=np.uint8)
    canvas[:height, :width] = image.resize((int(width), int(height)), Image.Resampling.BILINEAR)
    rows, columns = int(canvas_height) // TILE, int(canvas_width) // TILE
    cut = canvas.reshape(rows, TILE, columns, TILE, 3).transpose(0, 2, 4, 1, 3)
    tiles = np.zeros((TILES, 3, TILE, TILE), dtype=np.uint8)
    tiles[: rows * columns] = cut.reshape(rows * columns, 3, TILE, TILE)
    return Fitted(tiles, rows, columns, int(width), int(height))


def processor() -> MllamaImageProcessorPil:
    """transformers' processor with the demo model's settings."""
    return MllamaImageProcessorPil(
        size={"height": TILE, "width": TILE},
        max_image_tiles=TILES,
        image_mean=list(MEAN),
        image_std=list(DEVIATION),
    )


def settings() -> dict[str, object]:
    """preprocessor_config.json."""
    return {
        "image_processor_type": "MllamaImageProcessor",
        "processor_class": "MllamaProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": list(MEAN),
        "image_std": list(DEVIATION),
        "max_image_tiles": TILES,
        "resample": int(Image.Resampling.BILINEAR),
        "rescale_factor": 1 / 255,
        "size": {"height": TILE, "width": TILE},
    }


def normalized(tiles: np.ndarray, tile_mask: np.ndarray) -> np.ndarray:
    """float32 of (pictures, tiles, 3, height, width); absent tiles stay zero."""
    mean = np.array(MEAN, dtype=np.float32)[:, None, None]
    deviation = np.array(DEVIATION, dtype=np.float32)[:, None, None]
    values = (tiles.astype(np.float32) / 255 - mean) / deviation
    return values * tile_mask[:, :, None, None, None]


def check_against_transformers(images: list[Image.Image]) -> None:
    """Raises AssertionError if a picture differs from transformers' result."""
    theirs = processor()
    for image in images:
        expected = theirs(image, return_tensors="np")
        fitted = fit(image)
        mask = np.arange(TILES)[None] < fitted.rows * fitted.columns
        ours = normalized(fitted.tiles[None], mask.astype(np.float32))
        assert expected["aspect_ratio_ids"].item() == fitted.ratio_id, image.size
        assert (expected["aspect_ratio_mask"][0, 0] == mask[0]).all(), image.size
        difference = np.abs(expected["pixel_values"][0] - ours).max()
        assert difference < 1e-4, (image.size, difference)
