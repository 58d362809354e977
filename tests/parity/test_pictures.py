"""Pictures become the same tiles as in transformers' PIL image processor, bit for bit."""

import io
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pytest
from parity.checkpoints import GEOMETRIES, Geometry, hf_config, picture_settings, write_json
from parity.oracle import Oracle, picture
from PIL import Image, ImageOps
from transformers.models.mllama.image_processing_pil_mllama import MllamaImageProcessorPil

from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.images import open_image

PICTURES_PER_MODE = 24


class Both:
    """Our tile image_processor and transformers' processor with the settings of one geometry."""

    def __init__(
        self, folder: Path, geometry: Geometry, change: Mapping[str, object] = MappingProxyType({})
    ) -> None:
        hf_config(geometry).save_pretrained(folder)
        settings = picture_settings(geometry) | change
        write_json(folder / "preprocessor_config.json", settings)
        self.ours = ImageProcessor.load(folder, load_config(folder).vision)
        self.theirs = MllamaImageProcessorPil.from_pretrained(folder)

    def check(self, image: Image.Image, ours: Image.Image | None = None) -> tuple[int, int]:
        """Compare the tiles of `image`; `ours`, if given, is what our side sees instead.

        Returns rows and columns.
        """
        cut = self.ours(image if ours is None else ours)
        expected = self.theirs(image, return_tensors="np")
        tiles = cut.rows * cut.columns
        real = expected["pixel_values"][0, 0, :tiles].transpose(0, 2, 3, 1)
        what = f"{image.mode} {image.size}"
        assert cut.aspect_ratio_id == expected["aspect_ratio_ids"].item(), what
        assert tiles == expected["aspect_ratio_mask"].sum(), what
        assert cut.pixels.dtype == np.float32
        assert np.array_equal(cut.pixels, real), what
        assert not expected["pixel_values"][0, 0, tiles:].any()
        return cut.rows, cut.columns


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Both]:
    """Both sides, by the greatest number of tiles; 28 pixels a tile."""
    return {
        tiles: Both(tmp_path_factory.mktemp("settings"), Geometry(max_tiles=tiles))
        for tiles in (1, 2, 3, 4, 6)
    }


def sizes(seed: int, count: int) -> list[tuple[int, int]]:
    """Random (width, height), from one pixel to ten tiles a side, many of them long and thin."""
    values = np.random.default_rng(seed)
    return [tuple(int(n) for n in np.exp(values.uniform(0, 5.6, 2))) for _ in range(count)]


def in_mode(mode: str, size: tuple[int, int], seed: int) -> Image.Image:
    """A random picture in a PIL mode, values beyond 8 bits and partly transparent where it can."""
    values = np.random.default_rng(seed)
    shape = size[::-1]
    if mode.startswith("I;16"):
        wide = Image.fromarray(values.integers(0, 600, shape, dtype=np.uint16))
        return wide if wide.mode == mode else wide.convert(mode)
    if mode == "I":
        return Image.fromarray(values.integers(-100, 400, shape, dtype=np.int32))
    if mode == "F":
        return Image.fromarray(values.uniform(-100, 400, shape).astype(np.float32))
    image = picture(*size, seed=seed)
    if mode == "LAB":
        return Image.frombytes("LAB", size, image.tobytes())
    if mode in {"RGBA", "LA", "PA", "RGBa"}:
        opaque = image.convert("P").convert("PA") if mode == "PA" else image
        opaque.putalpha(Image.fromarray(values.integers(0, 256, shape, dtype=np.uint8)))
        return opaque if opaque.mode == mode else opaque.convert(mode)
    return image.convert(mode)


MODES = (
    *("RGB", "RGBA", "RGBa", "RGBX", "L", "LA", "P", "PA", "1"),
    *("I;16", "I;16B", "I", "F", "CMYK", "YCbCr", "HSV", "LAB"),
)


@pytest.mark.parametrize("mode", MODES)
def test_tiles_of_random_sizes(mode: str, both: dict[int, Both]) -> None:
    """Every mode that PIL can hold, in sizes from a pixel to beyond the largest canvas."""
    seed = MODES.index(mode)
    counts = list(both)
    for number, size in enumerate(sizes(seed, PICTURES_PER_MODE)):
        image = in_mode(mode, size, seed=number)
        assert image.mode == mode
        both[counts[(seed + number) % len(counts)]].check(image)


@pytest.mark.parametrize("tiles", [1, 2, 3, 4, 6])
def test_sizes_at_the_borders_of_arrangements(tiles: int, both: dict[int, Both]) -> None:
    """Whole multiples of a tile and one pixel around them; every arrangement comes up."""
    side = [28 * n + d for n in range(1, tiles + 1) for d in (-1, 0, 1)]
    met = {both[tiles].check(picture(w, h)) for w in side for h in side}
    assert met == set(Geometry(max_tiles=tiles).arrangements)


def test_the_sizes_of_the_published_model(tmp_path: Path) -> None:
    """Tiles of 560 pixels, with photographs as they come: large, small, wide and tall."""
    both = Both(tmp_path, replace(Geometry(), tile=560))
    for size in ((1600, 1200), (1080, 1920), (640, 480), (500, 333), (2300, 400), (64, 64)):
        both.check(picture(*size))


@pytest.mark.parametrize(
    "change",
    [
        {"resample": 3},
        {"image_mean": [0.5, 0.4, 0.3], "image_std": [0.2, 0.5, 1.0]},
        {"rescale_factor": 0.01},
    ],
    ids=lambda change: next(iter(change)),
)
def test_settings_of_the_checkpoint_count(change: dict[str, object], tmp_path: Path) -> None:
    """The picture settings are read from the folder, none of the 11B's is taken for granted."""
    both = Both(tmp_path, Geometry(), change)
    for size in ((100, 31), (20, 90), (300, 200)):
        both.check(picture(*size))


def test_settings_as_transformers_5_saves_them(
    oracle: Callable[[Geometry], Oracle], tmp_path: Path
) -> None:
    """A processor saved by transformers 5 keeps them inside `processor_config.json`."""
    geometry = GEOMETRIES["two-tiles"]
    hf_config(geometry).save_pretrained(tmp_path)
    processor = oracle(geometry).processor
    processor.save_pretrained(tmp_path)
    assert not (tmp_path / "preprocessor_config.json").exists()
    image = picture(50, 20)
    cut = ImageProcessor.load(tmp_path, load_config(tmp_path).vision)(image)
    expected = processor.image_processor(image, return_tensors="np")["pixel_values"][0, 0]
    assert np.array_equal(cut.pixels, expected.transpose(0, 2, 3, 1))


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_photograph_lying_on_its_side(orientation: int, both: dict[int, Both]) -> None:
    """A JPEG whose EXIF data says how to turn it; the model must see it upright."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = picture(75, 31, seed=orientation)
    data = saved(image, "JPEG", exif=exif)
    upright = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
    assert (upright.size == image.size) == (orientation < 5)
    both[4].check(upright, ours=open_image(data))
    both[4].check(upright, ours=open_image(Image.open(io.BytesIO(data))))


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG"])
def test_the_first_frame_of_an_animation(kind: str, both: dict[int, Both]) -> None:
    """Of several frames the first is the picture, with its transparency."""
    frames = [in_mode("RGBA", (50, 40), seed=n) for n in range(3)]
    data = saved(frames[0], kind, save_all=True, append_images=frames[1:], duration=100)
    image = Image.open(io.BytesIO(data))
    assert image.n_frames == 3
    both[4].check(image, ours=open_image(data))


ALPHAS = bytes(range(256))  # one for each entry of a palette


@pytest.mark.parametrize(
    ("mode", "transparency"),
    [("P", None), ("P", ALPHAS), ("L", None), ("RGB", None), ("1", None)],
    ids=["palette entry", "palette alphas", "grey", "colour", "bit"],
)
def test_transparency_beside_the_pixels(
    mode: str, transparency: bytes | None, both: dict[int, Both], tmp_path: Path
) -> None:
    """Pictures without an alpha channel whose file names a transparent value: laid on white.

    Where no alphas are given the value is that of a rectangle in the picture.
    """
    image = picture(50, 40)
    # Of one bit, the transparent value is white: white on transparent is not laid on white.
    image.paste((255, 255, 255) if mode == "1" else (5, 9, 200), (10, 10, 30, 30))
    image = image.convert(mode)
    file = tmp_path / "picture.png"
    image.save(file, transparency=transparency or image.getpixel((20, 20)))
    with Image.open(file) as opened:
        assert opened.info["transparency"] is not None
        assert np.asarray(opened.convert("RGBA"))[20, 20, 3] < 255
        both[4].check(opened, ours=open_image(file))


def test_a_grey_png_of_16_bits(both: dict[int, Both], tmp_path: Path) -> None:
    """Scanners write them. Transformers cuts their values at 255, so that all is white; we scale
    them, and see the tiles of the picture in 8 bits."""
    values = np.random.default_rng(0).integers(0, 256, (33, 90)).astype(np.uint16)
    file = tmp_path / "scan.png"
    Image.fromarray(values * 257).save(file)
    with Image.open(file) as opened:
        assert opened.mode == "I;16"
    both[4].check(Image.fromarray(values.astype(np.uint8)), ours=open_image(file))


def saved(image: Image.Image, kind: str, **settings: object) -> bytes:
    """The bytes of a file of `image`; `settings` are PIL's for that kind of file."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()
