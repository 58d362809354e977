"""Images of every format and mode become upright RGB images of 8 bits, with notes about them."""

from __future__ import annotations

import contextlib
import io
import itertools
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import ExifTags, Image, UnidentifiedImageError

from llavacot_mlx.checked import brief
from llavacot_mlx.errors import UserError
from llavacot_mlx.file_kinds import foreign_kind
from llavacot_mlx.prompt.image_source import RefusedImage, image_name, read_named_image
from llavacot_mlx.prompt.shrink import MAX_PIXELS, decode_smaller, shrunk


@dataclass(frozen=True)
class OpenedImage:
    """An image as a model sees it, and what a person should know about it."""

    image: Image.Image
    """Upright, mode RGB."""
    notes: tuple[str, ...] = ()
    """One line each."""
    check: Callable[[Image.Image], str | None] | None = None
    """Gives one more note, or None. It runs when the answer is there, so nobody waits for it."""

    def all_notes(self) -> tuple[str, ...]:
        """The notes, and that of the check."""
        late = None if self.check is None else self.check(self.image)
        return self.notes if late is None else (*self.notes, late)


ImageSource = str | Path | bytes | Image.Image | OpenedImage | RefusedImage
"""A path, a `data:` or `file:` URI, the bytes of a file, a PIL image, an image opened before, or
one that is not to be opened."""

_MAX_TRIED_FRAMES = 50  # of an animation, until one is not blank
_MAX_TRIED_PIXELS = 200_000_000  # of all of these together
_MAX_COUNTED_FRAMES = 1000
_MAX_READS = 2_000_000  # of pieces of a file; a decoder in Python asks for each chunk and frame
_MAX_CHUNKS = 200_000  # of a PNG, whose own are mostly of 8 kB
# Their decoders hold the whole image several times.
_MAX_PIXELS_OF = {"WEBP": 90_000_000, "AVIF": 90_000_000, "HEIF": 90_000_000}
_ANIMATED = {"GIF", "WEBP", "PNG", "AVIF", "HEIF", "FLI"}
_PAGED = {"TIFF", "DCX"}
_WHITE, _BLACK, _GREY = 255, 0, 128
_STANDS_OUT = 32  # levels of the channel that differs most
_VANISHED = 0.2  # of the outline, from which on another ground is taken
_BLUR = 3  # pixels: beyond what smoothing blurs of an edge
_MEASURED_SIDE = 1024  # pixels; larger images are measured on a sample
_DARKEST_16_BITS = 4095  # as the largest value: 15 of 255, black to the eye
_ROUNDING = 0.05  # how far values may overshoot their range, as resampling makes them


def open_image(source: ImageSource, name: str = "the picture") -> Image.Image:
    """Reads an image completely, as RGB, with its EXIF orientation applied.

    `name` is used in errors about an image that is not a path. Raises UserError when there is no
    such file, or it is not a complete image of a reasonable size.
    """
    return open_with_notes(source, name).image


def open_with_notes(source: ImageSource, name: str = "the picture") -> OpenedImage:
    """As `open_image`, with notes about what is odd in the image.

    Transparent images are laid on white, or on black or grey where white would hide them. Of an
    animation, the first frame is taken that is not one colour. Values of more than 8 bits are
    scaled.
    """
    if isinstance(source, OpenedImage):
        return source
    if isinstance(source, RefusedImage):
        raise UserError(source.reason)
    if isinstance(source, Image.Image):
        with _decoding(name):
            return _seen(source, name, given=True)
    if not isinstance(source, bytes):
        name, source = image_name(source), read_named_image(source)
    if not source:
        raise UserError(f"{name} is empty (0 bytes)")
    data = _with_known_brand(_without_texts(source), name)
    try:
        with _decoding(name):
            image = Image.open(_BoundedReads(data))
            if image.format == "EPS":  # a program: PIL would have Ghostscript run it
                raise UnidentifiedImageError
            most = _MAX_PIXELS_OF.get(image.format or "")
            if most is not None and image.width * image.height > most:
                raise UserError(_too_large(name, most))
            decode_smaller(image)
            image.load()
            return _seen(image, name, given=False)
    except UnidentifiedImageError:
        raise UserError(f"{name} {_what_it_is(data)}") from None


@contextlib.contextmanager
def _decoding(name: str) -> Iterator[None]:
    """Turns all that PIL raises but UnidentifiedImageError into a UserError, and hushes its
    warnings of large images and of odd metadata."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    except (UserError, UnidentifiedImageError):
        raise
    except Image.DecompressionBombError:
        raise UserError(_too_large(name, 2 * (Image.MAX_IMAGE_PIXELS or 0))) from None
    except MemoryError:
        raise UserError(f"{name} takes more memory than there is; scale it down first") from None
    except Exception as problem:  # decoders raise whatever they stumble over
        reason = brief(" ".join(str(problem).split()) or type(problem).__name__)
        raise UserError(f"{name} is a damaged picture: {reason}") from None


def _too_large(name: str, pixels: int) -> str:
    return f"{name} is too large: more than {pixels // 10**6} million pixels; scale it down first"


class _BoundedReads(io.BytesIO):
    """The bytes of a file, for decoders that would read a file of a million frames frame by frame.

    Raises OSError when they read on and on.
    """

    _left = _MAX_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise OSError("it has too many parts")
        return super().read(size)


def _seen(image: Image.Image, name: str, *, given: bool) -> OpenedImage:
    """The image as a model sees it; of several frames one that shows something."""
    if 0 in image.size:
        raise UserError(f"{name} has no pixels: it is {image.width}×{image.height}")
    frames = _frame_count(image)
    opened = _flattened(image)
    if frames < 2:
        return opened
    number = 1
    if given:  # its frame was chosen by whoever opened it
        number = image.tell() + 1
    else:
        most = min(_MAX_TRIED_FRAMES, _MAX_TRIED_PIXELS // (image.width * image.height) + 1)
        if image.width * image.height > MAX_PIXELS:
            most = 1
        for index in range(1, min(frames, most)):
            if not _is_one_colour(opened.image):
                break
            try:
                image.seek(index)
                image.load()
                other = _flattened(image)
            except Exception:  # the rest of the file is damaged
                break
            if not _is_one_colour(other.image):
                opened, number = other, index + 1
    what, part = ("an animation", "frame") if image.format in _ANIMATED else ("a file", "page")
    count = f"more than {_MAX_COUNTED_FRAMES}" if frames > _MAX_COUNTED_FRAMES else str(frames)
    note = f"the picture is {what} of {count} {part}s; only {part} {number} is looked at"
    if number > 1 and not given:
        note += ", the first that is not blank"
    return OpenedImage(opened.image, (note, *opened.notes))


def _frame_count(image: Image.Image) -> int:
    """The number of frames or pages; 1 for formats whose parts are not images of their own.

    Pages are counted up to one above `_MAX_COUNTED_FRAMES`: PIL's own count compares each page of a
    TIFF with all pages before it.
    """
    try:
        if image.format in _ANIMATED:
            return int(getattr(image, "n_frames", 1))
        return _page_count(image) if image.format in _PAGED else 1
    except Exception:  # the rest of the file is damaged
        return 1


def _page_count(image: Image.Image) -> int:
    current = image.tell()
    count = 0
    try:
        while count <= _MAX_COUNTED_FRAMES:
            image.seek(count)
            count += 1
    except EOFError:
        pass
    image.seek(current)
    return count


def _flattened(image: Image.Image) -> OpenedImage:
    """An upright RGB image: scaled to 8 bits, and laid on a ground where it is transparent."""
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
    upright = _upright(shrunk(image), image)
    notes: list[str] = []
    if upright.mode[0] == "I" or upright.mode == "F":
        upright, note = _scaled(upright, image)
        notes += [note] if note else []
    if upright.mode == "La":
        upright = _unmultiplied(upright)
    if upright.has_transparency_data:
        rgba = upright.convert("RGBA")
        ground = _ground(rgba)
        if ground != _WHITE:
            colour = "black" if ground == _BLACK else "grey"
            notes.append(
                f"the picture is transparent and white would hide parts of it: laid on {colour}"
            )
        back = Image.new("RGBA", rgba.size, (ground, ground, ground, 255))
        rgb = Image.alpha_composite(back, rgba).convert("RGB")
        empty = rgba.getchannel("A").getextrema() == (0, 0)
    else:
        rgb, empty = upright.convert("RGB"), False
        if rgb is image:
            rgb = image.copy()
    if empty:
        notes.append("the picture is transparent everywhere: there is nothing to see in it")
    elif _is_one_colour(rgb):
        red, green, blue = (round(sum(ends) / 2) for ends in _extrema(rgb))
        notes.append(
            f"the picture is one colour (#{red:02x}{green:02x}{blue:02x}): "
            "there is nothing to see in it"
        )
    rgb.info = {} if profile is None else {"icc_profile": profile}
    return OpenedImage(rgb, tuple(notes))


_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What makes an image upright, by its EXIF orientation."""


def _upright(image: Image.Image, opened: Image.Image) -> Image.Image:
    """The image turned as the EXIF data of `opened` says; as it is where these cannot be read."""
    try:
        orientation = opened.getexif().get(ExifTags.Base.Orientation)
        turn = _TURNS.get(orientation)  # type: ignore[arg-type]
    except Exception:  # damaged in any of many ways, which viewers do not mind
        turn = None
    if turn is None:
        return image
    turned = image.transpose(turn)
    turned.info = image.info
    return turned


def _extrema(rgb: Image.Image) -> list[tuple[int, int]]:
    return list(rgb.getextrema())  # type: ignore[arg-type]


def _is_one_colour(rgb: Image.Image) -> bool:
    return all(highest - lowest <= 2 for lowest, highest in _extrema(rgb))


def _scaled(image: Image.Image, opened: Image.Image) -> tuple[Image.Image, str | None]:
    """An image of one wide channel, in 8 bits, with its transparent value as alpha.

    `opened` is the image as PIL opened it, which knows the file's format.
    """
    values = np.asarray(image)
    tags: Any = getattr(opened, "tag_v2", {})
    if image.mode == "I" and tags and tags.get(339, (1,)) in (1, (1,)):
        values = values.view(np.uint32)  # TIFF's unsigned integers; PIL has signed ones only
    finite = values[np.isfinite(values)] if image.mode == "F" else values
    lowest, highest = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    low, high, note = 0.0, _full_scale(image.mode, opened.format, lowest, highest), None
    if high is None:
        low, high = lowest, max(highest, lowest + 1e-9)
        note = f"the picture's values go from {low:g} to {high:g}: scaled to black and white"
    elif image.mode != "F" and 255 < high <= _DARKEST_16_BITS:
        note = f"the picture uses {int(high).bit_length()} of its bits: scaled by these"
    with np.errstate(invalid="ignore", over="ignore"):
        levels = np.rint((values.astype(np.float64) - low) * (255 / (high - low)))
    levels = np.nan_to_num(levels, nan=0.0, posinf=255.0, neginf=0.0).clip(0, 255)
    if image.mode != "F" and tags and tags.get(262) == 0:  # TIFF's "white is zero"
        levels = 255 - levels
    grey = Image.fromarray(levels.astype(np.uint8))
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        alpha = np.where(values == transparent, 0, 255).astype(np.uint8)
        grey.putalpha(Image.fromarray(alpha))
    return grey, note


def _full_scale(mode: str, file: str | None, lowest: float, highest: float) -> float | None:
    """The value that is white; None where only the values themselves can say."""
    if mode == "F":
        scales = (1.0, 255.0, 65535.0)
        fits = (s for s in scales if lowest >= -_ROUNDING * s and highest <= (1 + _ROUNDING) * s)
        return next(fits, None)
    if lowest < 0:
        return None
    if file == "PPM":  # PIL scales its values to 16 bits
        return 65535.0
    bits = int(highest).bit_length()
    if highest > _DARKEST_16_BITS and bits <= 16:
        return 65535.0
    if bits > 28:
        return 2.0**31 - 1 if bits <= 31 else 2.0**32 - 1
    return float(2 ** max(bits, 8) - 1)  # 8 bits, 10 or 12 in a wider type


def _unmultiplied(image: Image.Image) -> Image.Image:
    """Mode La, which PIL cannot convert, as LA."""
    grey, alpha = (np.asarray(image.getchannel(band), dtype=np.float64) for band in ("L", "a"))
    with np.errstate(divide="ignore", invalid="ignore"):
        straight = np.nan_to_num(grey * 255 / alpha, posinf=0.0).clip(0, 255).round()
    levels = Image.fromarray(straight.astype(np.uint8))
    levels.putalpha(image.getchannel("a"))
    return levels


def _ground(rgba: Image.Image) -> int:
    """The grey level to lay a transparent image on: white, unless its outline vanishes there.

    The outline is where a visible pixel has a transparent one a few pixels away. It has vanished
    where both look nearly the same.
    """
    step = max(1, -(-max(rgba.size) // _MEASURED_SIDE))
    pixels = np.asarray(rgba)[::step, ::step].astype(np.int16)
    alpha = pixels[:, :, 3:]
    if not alpha.max() > 0:
        return _WHITE
    visible = alpha[:, :, 0] * 2 >= alpha.max()
    lost = {}
    for ground in (_WHITE, _BLACK, _GREY):
        laid = ground + (pixels[:, :, :3].astype(np.int32) - ground) * alpha // 255
        lost[ground] = _lost_outline(laid, visible)
    if lost[_WHITE] <= _VANISHED:
        return _WHITE
    return min(lost, key=lambda ground: (lost[ground], ground == _GREY))


def _lost_outline(laid: np.ndarray, visible: np.ndarray) -> float:
    """The share of the outline that does not stand out, from 0 to 1; 0 without an outline."""
    outline = vanished = 0
    for axis in (0, 1):
        near, far = _pairs(visible, axis)
        edges = near != far
        one, other = _pairs(laid, axis)
        differences = np.abs(one[edges] - other[edges]).max(axis=-1, initial=0)
        outline += differences.size
        vanished += int((differences < _STANDS_OUT).sum())
    return vanished / outline if outline else 0.0


def _pairs(values: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    """The values of all pixels that lie `_BLUR` apart along an axis."""
    if axis == 0:
        return values[:-_BLUR], values[_BLUR:]
    return values[:, :-_BLUR], values[:, _BLUR:]


# What the bytes of a file are, where they are no image that can be opened.

_PNG = b"\x89PNG\r\n\x1a\n"
_TEXTS = (b"tEXt", b"zTXt", b"iTXt")
_KEPT_TEXTS = (b"XML:com.adobe.xmp", b"Raw profile type exif")  # they may say the orientation
_MAX_INFLATED = 10**6  # bytes; PIL refuses a PNG with a text of more


def _without_texts(data: bytes) -> bytes:
    """A PNG without its texts, and without a profile beyond what PIL reads: neither is needed."""
    if not data.startswith(_PNG):
        return data
    kept = [_PNG]
    for kind, start, end in _png_chunks(data):
        if not (kind in (*_TEXTS, b"iCCP") and _is_needless(kind, data[start + 8 : end - 4])):
            kept.append(data[start:end])
    return data if sum(map(len, kept)) == len(data) else b"".join(kept)


def _png_chunks(data: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Type, start and end of each chunk; the last one may be cut off, or be all that follow."""
    start = len(_PNG)
    for number in itertools.count():
        if start >= len(data):
            return
        head = data[start : start + 8]
        end = len(data)
        if len(head) == 8 and number < _MAX_CHUNKS:
            end = min(end, start + 12 + struct.unpack(">I", head[:4])[0])
        yield head[4:], start, end
        start = end


def _is_needless(kind: bytes, body: bytes) -> bool:
    keyword, _, rest = body.partition(b"\0")
    if kind != b"iCCP" and keyword not in _KEPT_TEXTS:
        return True
    compressed = kind != b"iTXt" or rest[:1] == b"\1"
    if kind == b"iTXt":
        rest = b"\0".join(rest[2:].split(b"\0", 2)[2:])
    elif kind == b"tEXt":
        compressed = False
    else:
        rest = rest[1:]  # the method
    if not compressed:
        return len(rest) > _MAX_INFLATED
    try:
        inflater = zlib.decompressobj()
        return len(inflater.decompress(rest, _MAX_INFLATED + 1)) > _MAX_INFLATED
    except zlib.error:
        return False


# Brands of HEIF, the container of AVIF and HEIC.
_AV1_BRANDS = {b"avif", b"avis", b"avio", b"MA1A", b"MA1B", b"av01"}
_HEVC_BRANDS = {b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs"}
_HEIF_BRANDS = {b"mif1", b"mif2", b"mif3", b"msf1", b"miaf", b"MiHE", b"MiHB", b"MiPr"}
_HEIF_BRANDS |= {b"1pic", b"jpeg", b"jpgs", b"avci", b"avcs", b"unif"}
_VIDEO = (b"isom", b"iso2", b"iso4", b"iso5", b"iso6", b"mp41", b"mp42", b"M4V ", b"qt  ", b"3gp4")


def _with_known_brand(data: bytes, name: str) -> bytes:
    """The data as PIL recognises it: AVIF of any brand under a brand of PIL's.

    Makes PIL read HEIC. Raises UserError where that needs a library that is not there.
    """
    if data[4:8] != b"ftyp":
        return data
    end = max(16, min(struct.unpack(">I", data[:4])[0], 4096))
    major = data[8:12]
    compatible = {data[at : at + 4] for at in range(16, end, 4)}
    if not ({major} | compatible) & (_AV1_BRANDS | _HEVC_BRANDS | _HEIF_BRANDS):
        return data
    if major in _AV1_BRANDS:
        is_avif = True
    elif major in _HEVC_BRANDS:
        is_avif = False
    elif compatible & (_AV1_BRANDS | _HEVC_BRANDS):
        is_avif = not compatible & _HEVC_BRANDS
    else:  # the general brands alone: the kind of the items decides
        is_avif = b"av01" in data[end : end + 2**16]
    if is_avif:
        from PIL import features

        if not features.check("avif"):
            raise UserError(f"{name} is an AVIF picture, and this Pillow was built without AVIF")
        brands = {major} | compatible
        if major in (b"avif", b"avis", b"mif1", b"msf1") and brands & {b"avif", b"avis"}:
            return data
        return data[:8] + (b"avis" if b"msf1" in brands else b"avif") + data[12:]
    _register_heif(name)
    return data


def _register_heif(name: str) -> None:
    try:
        import pillow_heif
    except ImportError:
        raise UserError(
            f"{name} is a HEIC picture: pip install 'llavacot-mlx[heic]' to read those"
        ) from None
    pillow_heif.register_heif_opener()


def _what_it_is(data: bytes) -> str:
    """What the file is instead of a picture, and what to do."""
    if kind := foreign_kind(data[:1024]):
        return f"is {kind}"
    start = data[:1024].lower()
    if start.startswith(b"%pdf"):
        return "is not a picture but a PDF: save the page as a PNG first"
    if b"<svg" in start:
        return "is not a picture of pixels but an SVG drawing: save it as a PNG first"
    if data[4:8] == b"ftyp" and data[8:12] in _VIDEO:
        return "is not a picture but a video: save a frame of it first"
    return "is not a picture that can be read (PNG, JPEG, WebP, GIF and the like)"
