"""Reading and cutting images, intact or damaged; tests/parity compares the tiles' values."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from PIL import Image
from random_model import CONFIG

from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt import image_source, images
from llavacot_mlx.prompt.image_processor import ImageProcessor, tile_arrangements, to_rgb
from llavacot_mlx.prompt.images import open_image

SETTINGS: dict[str, Any] = {
    "size": {"height": 8, "width": 8},
    "max_image_tiles": 2,
    "image_mean": [0.5, 0.4, 0.3],
    "image_std": [0.2, 0.3, 0.4],
    "rescale_factor": 1 / 255,
    "resample": 2,
}


def picture(width: int, height: int) -> Image.Image:
    values = np.random.default_rng([width, height]).integers(0, 256, (height, width, 3))
    return Image.fromarray(values.astype(np.uint8))


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def image_processor(folder: Path, **change: object) -> ImageProcessor:
    """Loads the processor of a folder with `SETTINGS` and these changes; `...` leaves a key out."""
    values = {key: value for key, value in {**SETTINGS, **change}.items() if value is not ...}
    (folder / "preprocessor_config.json").write_text(json.dumps(values), encoding="utf-8")
    return ImageProcessor.load(folder, CONFIG.vision)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_a_path_its_bytes_and_its_picture_are_the_same(kind: str, tmp_path: Path) -> None:
    data = encoded(picture(20, 13), kind)
    file = tmp_path / "picture"  # the name says nothing
    file.write_bytes(data)
    expected = np.asarray(Image.open(io.BytesIO(data)).convert("RGB"))
    for source in (file, str(file), data, Image.open(io.BytesIO(data))):
        assert np.array_equal(np.asarray(to_rgb(open_image(source))), expected)


def test_a_picture_given_as_such_is_not_changed() -> None:
    image = picture(9, 7)
    exif = image.getexif()
    exif[0x0112] = 6
    image.info["exif"] = exif.tobytes()
    before = image.tobytes()
    open_image(image)
    assert (image.size, image.tobytes()) == ((9, 7), before)


SAMPLES = [
    encoded(picture(30, 20), "PNG"),
    encoded(picture(30, 20).quantize(7), "PNG"),
    encoded(picture(30, 20), "JPEG"),
    encoded(picture(30, 20), "WEBP"),
    encoded(picture(30, 20), "GIF"),
    encoded(picture(30, 20), "BMP"),
    encoded(picture(30, 20), "TIFF"),
    encoded(picture(30, 20), "JPEG2000"),
    encoded(picture(30, 20), "ICO", sizes=[(16, 16)]),
    encoded(picture(30, 20), "TGA"),
    encoded(picture(30, 20), "PCX"),
    encoded(picture(30, 20), "AVIF"),
]
EXIF = Image.Exif()
EXIF[0x0112] = 6
EXIF[0x010F] = "somebody's camera"
SAMPLES += [encoded(picture(30, 20), kind, exif=EXIF) for kind in ("PNG", "JPEG", "WEBP")]


@settings(deadline=None, max_examples=400, suppress_health_check=[HealthCheck.too_slow])
@given(
    sample=st.sampled_from(SAMPLES),
    cut=st.none() | st.floats(0, 1),
    changes=st.lists(st.tuples(st.floats(0, 1), st.binary(min_size=1, max_size=4)), max_size=4),
)
@example(sample=b"GIF89a" + b"\0" * 7, cut=None, changes=[])
@example(sample=b"BM" + b"\0" * 60, cut=None, changes=[])
@example(sample=b"P6 0 0 255\n", cut=None, changes=[])
@example(sample=b"P6 4 4 255\n", cut=None, changes=[])
@example(sample=b"II*\0\x08\0\0\0\0\0", cut=None, changes=[])
def test_a_damaged_picture_is_a_user_error(
    sample: bytes, cut: float | None, changes: list[tuple[float, bytes]]
) -> None:
    """Any bytes give an image with pixels, or one line about what is wrong with them.

    PIL's decoders raise all kinds of errors (EOFError, IndexError, struct.error …).
    """
    data = bytearray(sample)
    for fraction, new in changes:
        at = int(fraction * (len(data) - 1))
        data[at : at + len(new)] = new
    if cut is not None:
        del data[int(cut * len(data)) :]
    said = ""
    try:
        to_rgb(open_image(bytes(data)))
    except UserError as error:
        said = str(error)
    assert said == "" or said.startswith("the picture ")
    assert "\n" not in said


def test_a_picture_without_pixels() -> None:
    """PIL can make an image without pixels, and it is refused."""
    with pytest.raises(UserError, match="no pixels"):
        open_image(Image.new("RGB", (0, 5)))


def test_postscript_is_not_run() -> None:
    """PIL would start Ghostscript, which would run the PostScript program in the file."""
    eps = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\nshowpage\n"
    assert Image.open(io.BytesIO(eps)).format == "EPS"
    with pytest.raises(UserError, match="is not a picture"):
        open_image(eps)


def test_arrangements_are_numbered_as_in_transformers() -> None:
    assert tile_arrangements(1) == [(1, 1)]
    assert tile_arrangements(4) == [
        *((1, 1), (1, 2), (1, 3), (1, 4)),
        *((2, 1), (2, 2), (3, 1), (4, 1)),
    ]


def test_cutting(tmp_path: Path) -> None:
    """A wide image becomes two tiles side by side, with a normalized black border below it."""
    cut = image_processor(tmp_path)(picture(16, 6))
    assert (cut.rows, cut.columns, cut.aspect_ratio_id) == (1, 2, 2)
    assert cut.pixels.shape == (2, 8, 8, 3)
    assert cut.pixels.dtype == np.float32
    values = np.asarray(picture(16, 6)) / 255
    expected = (values - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    assert np.abs(np.concatenate(list(cut.pixels), axis=1)[:6] - expected).max() < 1e-5
    black = (0 - np.array([0.5, 0.4, 0.3])) / np.array([0.2, 0.3, 0.4])
    assert np.abs(cut.pixels[:, 6:] - black).max() < 1e-5


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(width=st.integers(1, 60), height=st.integers(1, 60))
def test_any_size_can_be_cut(width: int, height: int, tmp_path: Path) -> None:
    cut = image_processor(tmp_path)(Image.new("L", (width, height)))
    assert len(cut.pixels) == cut.rows * cut.columns <= 2
    assert tile_arrangements(2)[cut.aspect_ratio_id - 1] == (cut.rows, cut.columns)


@pytest.mark.parametrize(
    "key", ["size", "max_image_tiles", "image_mean", "image_std", "rescale_factor", "resample"]
)
def test_a_missing_setting_is_named(key: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=rf"preprocessor_config\.json: {key} is missing"):
        image_processor(tmp_path, **{key: ...})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("size", {"height": 8, "width": 9}),
        ("size", {"longest_edge": 8}),
        ("max_image_tiles", 3),
        ("do_pad", False),
        ("do_resize", False),
        ("do_rescale", False),
        ("do_normalize", False),
        ("do_convert_rgb", None),
        ("image_mean", [0.5]),
        ("image_std", [0.5, 0.5, 0.5, 0.5]),
    ],
)
def test_a_setting_that_cannot_be_run_is_named(key: str, value: object, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=key):
        image_processor(tmp_path, **{key: value})


def test_nonsense_in_the_settings_is_a_user_error(tmp_path: Path) -> None:
    """Settings with any JSON value in any place are either read or refused."""
    for key in SETTINGS:
        for nonsense in ("text", -1, 0, 3.5, [], {}, [None] * 3, ["a", "b", "c"], True, 10**30):
            said = key
            try:
                cut = image_processor(tmp_path, **{key: nonsense})(picture(20, 10))
                assert np.isfinite(cut.pixels).all()
            except UserError as error:
                said = str(error)
            except Exception as error:
                raise AssertionError(f"{key} = {nonsense!r}") from error
            assert key in said


def test_settings_inside_those_of_a_processor(tmp_path: Path) -> None:
    """transformers 5 saves them in processor_config.json; the older file takes precedence."""
    file = tmp_path / "processor_config.json"
    file.write_text(json.dumps({"image_processor": {**SETTINGS, "resample": 3}}))
    assert ImageProcessor.load(tmp_path, CONFIG.vision).resample == 3
    assert image_processor(tmp_path).resample == 2


@pytest.mark.parametrize("content", ["[]", "3", '{"image_processor": 3}', "{}", "{"])
def test_a_processor_without_picture_settings(content: str, tmp_path: Path) -> None:
    (tmp_path / "processor_config.json").write_text(content)
    with pytest.raises(UserError, match=r"processor_config\.json"):
        ImageProcessor.load(tmp_path, CONFIG.vision)


def test_heic_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what to install."""
    monkeypatch.setitem(__import__("sys").modules, "pillow_heif", None)
    with pytest.raises(UserError, match=r"pip install 'llavacot-mlx\[heic\]'"):
        open_image(b"\0\0\0\x18ftypheic" + b"\0" * 40)


def test_a_warning_of_a_large_picture_is_no_line_on_stderr(
    monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    """Up to twice PIL's limit a picture is large, and read; beyond it is refused."""
    monkeypatch.setattr(images.Image, "MAX_IMAGE_PIXELS", 30 * 20 - 1)
    assert open_image(SAMPLES[0]).size == (30, 20)
    assert not recwarn.list
    monkeypatch.setattr(images.Image, "MAX_IMAGE_PIXELS", 30 * 20 // 2 - 1)
    with pytest.raises(UserError, match="million pixels; scale it down"):
        open_image(SAMPLES[0])


def test_a_file_without_an_end_is_no_picture() -> None:
    """`/dev/zero` was once read until the memory was full."""
    with pytest.raises(UserError, match="/dev/zero is no picture: it is not a regular file"):
        image_source.read_image_file(Path("/dev/zero"), max_bytes=10**6)
