"""Pictures of every mode and format, seen as the 8-bit picture that they hold."""

from __future__ import annotations

import io
import struct
import sys
import zlib
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw, PngImagePlugin

from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt import images, shrink
from llavacot_mlx.prompt.images import open_image, open_with_notes

SIZE = (48, 36)
GREY = np.random.default_rng(3).integers(0, 256, SIZE[::-1]).astype(np.uint8)
GREY[0, :2] = 0, 255


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def in_mode(mode: str) -> Image.Image:
    """The picture GREY in a wide mode, over the mode's whole range."""
    wide = GREY.astype(np.uint16) * 257
    if mode.startswith("I;16"):
        return Image.frombytes(mode, SIZE, wide.astype(">u2" if mode[-1] == "B" else "<u2"))
    if mode == "I":
        return Image.fromarray(wide.astype(np.int32))
    return Image.fromarray(GREY / np.float32(255))


def check_grey(source: Any, expected: np.ndarray = GREY) -> None:
    opened = open_image(source)
    assert opened.mode == "RGB"
    seen = np.asarray(opened).astype(int)
    assert np.abs(seen - expected[:, :, None]).max() <= 1


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        ("I;16", "PNG"),
        ("I;16", "TIFF"),
        ("I;16B", "TIFF"),
        ("I", "TIFF"),
        ("F", "TIFF"),
        ("I;16", "JPEG2000"),
        *((mode, None) for mode in ("I;16", "I;16B", "I;16L", "I", "F")),
    ],
)
def test_wide_values_are_scaled(mode: str, kind: str | None) -> None:
    """They were cut at 255, so that all was white, or all black."""
    image = in_mode(mode)
    check_grey(image if kind is None else encoded(image, kind))


@pytest.mark.parametrize(
    "values",
    [
        GREY.astype(np.float32),
        GREY.astype(np.float32) * 257,
        GREY / np.float32(255) * 1.02 - 0.01,  # a resampling's overshoot
        GREY.astype(np.int32),
        GREY.astype(np.uint16),  # 8 bits in a wider type
        (GREY.astype(np.uint16) * 16),  # 12 bits, as cameras and scanners have
        GREY.astype(np.int32) * 2**23,
        GREY.astype(np.int32) - 128,
        GREY.astype(np.float32) * 1e6 - 3e6,
    ],
)
def test_ranges_are_found(values: np.ndarray) -> None:
    opened = np.asarray(open_image(Image.fromarray(values))).astype(int)
    assert np.abs(opened - GREY[:, :, None]).max() <= 3


def test_numbers_that_are_none_are_black() -> None:
    values = GREY / np.float32(255)
    values[5, 5], values[5, 6] = np.nan, np.inf
    opened = np.asarray(open_image(Image.fromarray(values)))
    assert opened[5, 5, 0] == 0
    assert opened[5, 6, 0] == 255
    assert abs(int(opened[9, 9, 0]) - int(GREY[9, 9])) <= 1


def test_16_bits_with_a_transparent_value() -> None:
    wide = GREY.astype(np.uint16) * 257
    wide[10:20, 10:20] = 1000
    data = encoded(Image.fromarray(wide), "PNG", transparency=1000)
    expected = GREY.copy()
    expected[10:20, 10:20] = 255
    check_grey(data, expected)


def test_white_is_zero() -> None:
    wide = Image.fromarray(65535 - GREY.astype(np.uint16) * 257)
    check_grey(encoded(wide, "TIFF", tiffinfo={262: 0}))


def test_16_bits_of_colour() -> None:
    """PIL reads the upper half of each value."""
    colours = np.random.default_rng(1).integers(0, 256, (9, 12, 3))
    rows = b"".join(b"\0" + (row * 257).astype(">u2").tobytes() for row in colours)
    data = png(chunk(b"IDAT", zlib.compress(rows)), header=(12, 9, 16, 2))
    assert np.abs(np.asarray(open_image(data)).astype(int) - colours).max() <= 1


@pytest.mark.parametrize("mode", ["LA", "PA", "La", "RGBA", "RGBa", "CMYK", "1", "P", "L", "LAB"])
def test_the_other_modes(mode: str) -> None:
    base = Image.new("RGB", (30, 20), (20, 60, 200))
    base.paste((240, 240, 10), (5, 5, 15, 15))
    if mode == "LAB":
        image = Image.frombytes("LAB", base.size, base.tobytes())
    elif mode == "La":
        image = base.convert("LA").convert("La")
    elif mode == "PA":
        image = base.convert("P").convert("PA")
    elif mode == "RGBa":
        image = base.convert("RGBA").convert("RGBa")
    else:
        image = base.convert(mode)
    expected = base.convert("L") if mode in ("LA", "La", "L") else base
    if mode in ("1", "LAB", "P", "PA"):
        expected = image.convert("RGB")
    opened = np.asarray(open_image(image)).astype(int)
    assert np.abs(opened - np.asarray(expected.convert("RGB")).astype(int)).max() <= 1
    assert not open_with_notes(image).notes


def test_a_palette_with_alphas() -> None:
    image = Image.new("P", (20, 20), 0)
    image.putpalette([0, 0, 0, 200, 30, 30])
    image.paste(1, (5, 5, 15, 15))
    opened = open_image(encoded(image, "PNG", transparency=b"\0\xff"))
    assert opened.getpixel((0, 0)) == (255, 255, 255)
    assert opened.getpixel((9, 9)) == (200, 30, 30)


def chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(*chunks: bytes, header: tuple[int, int, int, int] = (2, 2, 8, 0)) -> bytes:
    head = struct.pack(">IIBBBBB", *header, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + b"".join(chunks) + chunk(b"IEND", b"")


LONG = zlib.compress(b"a workflow, " * 300_000)
PIXELS = chunk(b"IDAT", zlib.compress(b"\0\x00\xff\0\xff\x00"))


@pytest.mark.parametrize(
    "text",
    [
        chunk(b"zTXt", b"workflow\0\0" + LONG),
        chunk(b"iTXt", b"workflow\0\1\0en\0\0" + LONG),
        chunk(b"iTXt", b"XML:com.adobe.xmp\0\1\0\0\0" + LONG),
        chunk(b"zTXt", b"Raw profile type exif\0\0" + LONG),
        chunk(b"iCCP", b"profile\0\0" + LONG),
        chunk(b"tEXt", b"workflow\0" + b"x" * 2 * 10**6),
        chunk(b"zTXt", b"a\0\0" + zlib.compress(b"x" * 900_000)) * 90,
    ],
    ids=["zTXt", "iTXt", "XMP", "EXIF", "profile", "tEXt", "many"],
)
@pytest.mark.parametrize("after", [False, True])
def test_a_png_with_long_texts(text: bytes, after: bool) -> None:
    """PIL refused those above a megabyte, and the picture was called damaged."""
    data = png(PIXELS, text) if after else png(text, PIXELS)
    assert np.asarray(open_image(data))[:, :, 0].tolist() == [[0, 255], [255, 0]]


def test_a_text_that_says_the_orientation_counts() -> None:
    image = Image.new("RGB", (30, 20), "red")
    texts = PngImagePlugin.PngInfo()
    xmp = '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'
    texts.add_itxt("XML:com.adobe.xmp", xmp)
    assert open_image(encoded(image, "PNG", pnginfo=texts)).size == (20, 30)


def with_brands(data: bytes, major: bytes, *compatible: bytes) -> bytes:
    """An ISO file under other brands, in a box of the same size."""
    size = struct.unpack(">I", data[:4])[0]
    names = b"".join((*compatible, *[compatible[-1]] * 9))[: size - 16]
    return data[:8] + major + data[12:16] + names + data[size:]


FRACTAL = Image.effect_mandelbrot((40, 30), (-3, -2.5, 2, 2.5), 50)
AVIF = encoded(FRACTAL, "AVIF")


AVIFS = encoded(FRACTAL, "AVIF", save_all=True, append_images=[FRACTAL.rotate(9)])


@pytest.mark.parametrize("major", [b"avif", b"avis", b"mif1", b"msf1", b"miaf", b"MA1A", b"MA1B"])
@pytest.mark.parametrize("compatible", [(b"avif", b"mif1"), (b"mif1", b"miaf")])
def test_avif_of_every_brand(major: bytes, compatible: tuple[bytes, ...]) -> None:
    """Those whose major brand is a general one were called HEIC, or no picture."""
    sequence = major in (b"avis", b"msf1")
    data = with_brands(AVIFS if sequence else AVIF, major, *compatible)
    assert open_image(data).size == (40, 30)


@pytest.mark.parametrize(
    "major", [b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"]
)
def test_heic_of_every_brand(major: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    hint = r"HEIC picture: pip install 'llavacot-mlx\[heic\]'"
    with pytest.raises(UserError, match=hint):
        open_image(with_brands(AVIF, major, b"mif1"))
    for general in (b"mif1", b"msf1"):
        with pytest.raises(UserError, match=hint):
            open_image(with_brands(AVIF, general, major))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"%PDF-1.7\n", "a PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="">', "an SVG drawing"),
        (b"\0\0\0\x18ftypisom\0\0\0\0isomavc1", "a video"),
    ],
)
def test_what_is_no_picture_is_named(data: bytes, said: str) -> None:
    with pytest.raises(UserError, match=f"the picture is not a picture .*{said}"):
        open_image(data)


def drawn(colour: tuple[int, ...], ground: tuple[int, ...] = (0, 0, 0, 0)) -> Image.Image:
    image = Image.new("RGBA", (120, 90), ground)
    pen = ImageDraw.Draw(image)
    pen.ellipse((10, 10, 50, 50), fill=colour)
    pen.text((60, 40), "text", fill=colour)
    return image


@pytest.mark.parametrize("grey", [255, 235])
@pytest.mark.parametrize("kind", ["PNG", "WEBP", "GIF", "LA"])
def test_light_on_transparent_stays_visible(grey: int, kind: str) -> None:
    """White on white was answered with confidence."""
    image = drawn((grey, grey, grey, 255))
    source: Any = image.convert("LA") if kind == "LA" else encoded(image, kind)
    opened = open_with_notes(source)
    assert opened.image.getpixel((0, 0)) == (0, 0, 0)
    assert opened.image.getpixel((30, 30))[0] > 220
    assert opened.notes == (
        "the picture is transparent and white would hide parts of it: laid on black",
    )


def test_light_and_dark_on_transparent() -> None:
    image = drawn((255, 255, 255, 255))
    ImageDraw.Draw(image).rectangle((60, 5, 100, 35), fill=(0, 0, 0, 255))
    opened = open_with_notes(image)
    assert opened.image.getpixel((0, 0)) == (128, 128, 128)
    assert opened.notes[0].endswith("laid on grey")


@pytest.mark.parametrize("colour", [(0, 0, 0, 255), (214, 36, 36, 255), (242, 216, 38, 255)])
def test_what_shows_on_white_is_laid_on_white(colour: tuple[int, ...]) -> None:
    opened = open_with_notes(drawn(colour))
    assert opened.image.getpixel((0, 0)) == (255, 255, 255)
    assert opened.notes == ()


def test_a_white_window_with_its_shadow_is_laid_on_white() -> None:
    """A Mac's screenshot of a window: the outline shows, by the shadow."""
    image = Image.new("RGBA", (200, 150), (0, 0, 0, 0))
    pen = ImageDraw.Draw(image)
    for reach in range(20, 0, -1):
        alpha = 110 - 5 * reach
        pen.rectangle((20 - reach, 20 - reach, 180 + reach, 130 + reach), fill=(0, 0, 0, alpha))
    pen.rectangle((20, 20, 180, 130), fill=(255, 255, 255, 255))
    pen.text((40, 40), "a window", fill=(0, 0, 0, 255))
    opened = open_with_notes(image)
    assert opened.image.getpixel((0, 0))[0] > 240
    assert opened.notes == ()


@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (200, 10, 20)])
def test_a_transparent_picture(colour: tuple[int, int, int]) -> None:
    (note,) = open_with_notes(Image.new("RGBA", (9, 9), (*colour, 0))).notes
    assert "transparent everywhere" in note


def test_a_picture_of_one_colour() -> None:
    (note,) = open_with_notes(Image.new("RGB", (9, 9), (255, 255, 255))).notes
    assert note.startswith("the picture is one colour (#ffffff)")


def frames(*kinds: str) -> list[Image.Image]:
    blank = {"white": (255, 255, 255, 255), "clear": (0, 0, 0, 0)}
    return [
        Image.new("RGBA", (120, 90), blank[kind])
        if kind in blank
        else drawn((200, 30, 30, 255), (250, 250, 200, 255))
        if kind == "red"
        else drawn((30, 30, 200, 255), (250, 250, 200, 255))
        for kind in kinds
    ]


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "AVIF"])
@pytest.mark.parametrize("blank", ["white", "clear"])
def test_an_animation_that_begins_blank(kind: str, blank: str) -> None:
    """The first frame was taken without a word."""
    first, *rest = frames(blank, "red", "blue")
    data = encoded(first, kind, save_all=True, append_images=rest, duration=100)
    opened = open_with_notes(data)
    red, _, blue = opened.image.getpixel((30, 30))
    assert red > 150 > blue
    assert opened.notes == (
        "the picture is an animation of 3 frames; only frame 2 is looked at, the first that is "
        "not blank",
    )


def test_an_animation_and_its_first_frame() -> None:
    first, *rest = frames("red", "blue")
    opened = open_with_notes(encoded(first, "GIF", save_all=True, append_images=rest))
    assert opened.notes == ("the picture is an animation of 2 frames; only frame 1 is looked at",)


def test_an_animation_of_nothing() -> None:
    first, *rest = frames("white", "clear")
    data = encoded(first, "WEBP", save_all=True, append_images=rest, lossless=True)
    animation, colour = open_with_notes(data).notes
    assert "only frame 1 is looked at" in animation
    assert "one colour" in colour


def test_pages() -> None:
    first, *rest = (image.convert("RGB") for image in frames("red", "blue"))
    (note,) = open_with_notes(encoded(first, "TIFF", save_all=True, append_images=rest)).notes
    assert note == "the picture is a file of 2 pages; only page 1 is looked at"


def test_a_photo_with_a_second_picture_in_it_is_no_animation() -> None:
    """Phones keep previews and depth maps behind a JPEG."""
    first, *rest = (image.convert("RGB") for image in frames("red", "blue"))
    assert open_with_notes(encoded(first, "MPO", save_all=True, append_images=rest)).notes == ()


def test_an_opened_picture_is_opened() -> None:
    opened = open_with_notes(drawn((255, 255, 255, 255)))
    assert open_with_notes(opened) is opened


@pytest.mark.parametrize(
    "exif", [b"garbage", b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"Exif\0\0MM\0*\0"]
)
@pytest.mark.parametrize("given", ["file", "image"])
def test_exif_that_cannot_be_read_turns_nothing(exif: bytes, given: str) -> None:
    """Viewers open such files, and they are common; here it was an internal SyntaxError."""
    image = Image.new("RGB", (20, 10), "red")
    if given == "image":
        image.info["exif"] = exif
        assert open_image(image).size == (20, 10)
        return
    assert open_image(encoded(image, "JPEG", exif=exif)).size == (20, 10)


def test_an_image_given_that_cannot_be_decoded() -> None:
    data = encoded(Image.effect_noise((200, 200), 90), "JPEG")
    with pytest.raises(UserError, match="is a damaged picture"):
        open_image(Image.open(io.BytesIO(data[:4000])))


@pytest.mark.parametrize(
    ("mode", "kind"),
    [
        *(("RGB", "PNG"), ("RGBA", "PNG"), ("LA", "PNG"), ("P", "GIF"), ("1", "PNG")),
        *(("L", "JPEG"), ("I;16", "PNG"), ("F", "TIFF"), ("CMYK", "TIFF"), ("RGB", "JPEG")),
    ],
)
def test_a_huge_image_is_made_smaller(
    mode: str, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Composed at its full size, one of 177 million pixels took 4 GB."""
    wide = mode in ("I;16", "F")
    image = in_mode(mode) if wide else Image.fromarray(GREY).convert(mode)
    small = open_image(encoded(image, kind))
    ratio = small.width / small.height
    monkeypatch.setattr(shrink, "MAX_PIXELS", small.width * small.height // 5)
    monkeypatch.setattr(shrink, "_MAX_WIDE_PIXELS", small.width * small.height // 5)
    monkeypatch.setattr(shrink, "_BAND_PIXELS", 1)
    found = open_image(encoded(image, kind))
    assert found.mode == "RGB"
    assert found.width * found.height <= small.width * small.height // 5
    assert abs(found.width / found.height / ratio - 1) < 0.2
    means = [np.asarray(each).mean() for each in (small, found)]
    assert abs(means[0] - means[1]) < 12


def test_a_huge_jpeg_is_turned_as_its_exif_says(monkeypatch: pytest.MonkeyPatch) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    data = encoded(Image.new("RGB", (200, 100)), "JPEG", exif=exif)
    monkeypatch.setattr(shrink, "MAX_PIXELS", 5000)
    assert open_image(data).size == (50, 100)


def test_a_line_of_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    """178,000,000 × 1 pixels were a MemoryError."""
    monkeypatch.setattr(shrink, "_MAX_SIDE", 100)
    assert open_image(encoded(Image.new("L", (1000, 1)), "PNG")).size == (100, 1)


def test_a_file_of_very_many_pages() -> None:
    """PIL compares each page of a TIFF with all before it, and never comes to the end."""
    first = encoded(Image.new("L", (8, 8), 3), "TIFF")
    assert first[:4] == b"II*\0"
    (at,) = struct.unpack("<I", first[4:8])
    count = struct.unpack("<H", first[at : at + 2])[0]
    end = at + 2 + 12 * count  # where the offset of the next page stands
    pages, offset = bytearray(first), len(first)
    struct.pack_into("<I", pages, end, offset)
    for _ in range(100_000):
        offset += 6
        pages += struct.pack("<HI", 0, offset)
    opened = open_with_notes(bytes(pages))
    assert opened.image.size == (8, 8)


def test_an_animation_of_too_many_parts() -> None:
    """A GIF of a few megabytes may have half a million frames, each read on its own."""
    whole = encoded(Image.new("P", (1, 1)), "GIF")
    start = whole.index(b",")
    frame = whole[start:-1]
    opened = open_with_notes(whole[:start] + frame * 400_000 + whole[-1:])
    assert opened.image.size == (1, 1)


def test_too_large_for_its_decoder(monkeypatch: pytest.MonkeyPatch) -> None:
    """WebP's holds an image four times: 176 million pixels took 3.6 GB."""
    monkeypatch.setitem(images._MAX_PIXELS_OF, "WEBP", 199)
    data = encoded(Image.new("RGB", (20, 10)), "WEBP")
    with pytest.raises(UserError, match="million pixels; scale it down"):
        open_image(data)
