"""Embeds an image in a page."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

from PIL import Image

from llavacot_mlx.prompt.image_processor import to_rgb
from llavacot_mlx.prompt.images import open_image

_LONGEST_SIDE = 1120  # pixels: two tiles of the published model, and plenty for a page


@dataclass(frozen=True)
class PagePicture:
    """An upright image of a bounded size, in a format that every browser shows."""

    url: str
    """A `data:` URL."""
    width: int
    height: int


def page_picture(data: bytes, longest_side: int = _LONGEST_SIDE) -> PagePicture:
    """The image in the bytes of a file, without metadata except the color profile.

    It is shrunk to at most `longest_side` pixels.

    Raises UserError if the bytes are not a complete image.
    """
    image = open_image(data)
    image.thumbnail((longest_side, longest_side), Image.Resampling.LANCZOS)
    rgb = to_rgb(image)
    profile = image.info.get("icc_profile") if image.mode in ("RGB", "RGBA") else None
    media_type, encoded = _smallest(rgb, profile)
    text = base64.b64encode(encoded).decode("ascii")
    return PagePicture(f"data:{media_type};base64,{text}", rgb.width, rgb.height)


def _smallest(image: Image.Image, profile: bytes | None) -> tuple[str, bytes]:
    """As PNG, which keeps drawings sharp, or as JPEG, which makes photographs small."""
    png, jpeg = io.BytesIO(), io.BytesIO()
    image.save(png, "PNG", optimize=True, icc_profile=profile)
    image.save(jpeg, "JPEG", quality=88, progressive=True, icc_profile=profile)
    if len(png.getvalue()) <= len(jpeg.getvalue()):
        return "image/png", png.getvalue()
    return "image/jpeg", jpeg.getvalue()
