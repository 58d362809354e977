"""Draws a scene of the little world with Pillow."""

from __future__ import annotations

import math
import random

from PIL import Image, ImageDraw

from llavacot_mlx.demo.scenes import Background, Scene, Shape

_OVERSAMPLING = 4  # a shape's mask is drawn this many times larger and shrunk, for smooth edges


def draw(scene: Scene) -> Image.Image:
    """Draws the scene as an RGB picture of `scene.picture_size` pixels."""
    width, height = scene.picture_size
    image = _draw_background(scene.background, width, height, scene.scale)
    for shape in scene.shapes:
        mask = _mask(shape, scene.scale)
        left = round(shape.x * scene.scale - mask.width / 2)
        top = round(shape.y * scene.scale - mask.height / 2)
        image.paste(shape.fill, (left, top), mask)
    return image


def _mask(shape: Shape, scale: float) -> Image.Image:
    """The coverage of each pixel by the shape, as an image of mode L just large enough for it."""
    side = math.ceil(shape.diameter * scale) + 2
    middle = side * _OVERSAMPLING / 2
    radius = shape.diameter * scale * _OVERSAMPLING / 2
    mask = Image.new("L", (side * _OVERSAMPLING, side * _OVERSAMPLING))
    pen = ImageDraw.Draw(mask)
    if shape.kind == "circle":
        reach = 0.94 * radius  # gives a circle about the area of the other kinds
        pen.ellipse((middle - reach, middle - reach, middle + reach, middle + reach), fill=255)
    else:
        pen.polygon(
            [
                (
                    middle + radius * reach * math.sin(math.radians(turn + shape.angle)),
                    middle - radius * reach * math.cos(math.radians(turn + shape.angle)),
                )
                for turn, reach in _OUTLINES[shape.kind]
            ],
            fill=255,
        )
    return mask.resize((side, side), Image.Resampling.BOX)


# Corners as (degrees clockwise from the top, distance from the center in radii).
_OUTLINES = {
    "square": [(45.0 + 90.0 * corner, 1.12) for corner in range(4)],
    "triangle": [(120.0 * corner, 1.08) for corner in range(3)],
    "star": [(36.0 * corner, 1.05 if corner % 2 == 0 else 0.42) for corner in range(10)],
}


def _draw_background(ground: Background, width: int, height: int, scale: float) -> Image.Image:
    base = Image.new("RGB", (width, height), ground.base)
    if ground.pattern == "plain":
        return base
    other = Image.new("RGB", (width, height), ground.other)
    return Image.composite(other, base, _pattern(ground, width, height, scale))


def _pattern(ground: Background, width: int, height: int, scale: float) -> Image.Image:
    """The mask of the background's second color, mode L."""
    period = ground.period * scale
    if ground.pattern == "noise":
        columns = max(2, math.ceil(3 * width / period))
        rows = max(2, math.ceil(3 * height / period))
        grains = random.Random(ground.seed).randbytes(columns * rows)
        return Image.frombytes("L", (columns, rows), grains).resize((width, height))
    if ground.pattern == "gradient":
        return Image.linear_gradient("L").rotate(ground.angle).resize((width, height))
    mask = Image.new("L", (width, height))
    pen = ImageDraw.Draw(mask)
    if ground.pattern == "checks":
        for row in range(math.ceil(height / period)):
            for column in range(row % 2, math.ceil(width / period), 2):
                left, top = column * period, row * period
                pen.rectangle((left, top, left + period, top + period), fill=255)
        return mask
    if ground.pattern == "stripes":
        across = math.hypot(width, height) / 2
        cos, sin = math.cos(math.radians(ground.angle)), math.sin(math.radians(ground.angle))
        offset = -across
        while offset < across:
            x, y = width / 2 + offset * cos, height / 2 + offset * sin
            ends = (x - across * sin, y + across * cos, x + across * sin, y - across * cos)
            pen.line(ends, fill=255, width=max(1, round(period / 2)))
            offset += period
        return mask
    raise ValueError(f"unknown background pattern {ground.pattern!r}")
