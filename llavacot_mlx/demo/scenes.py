"""Makes the little world's scenes from seeds: colored shapes in the cells of a grid.

Lengths are in canvas pixels, the size at which the demo model sees the picture after its
processor has fitted it to tiles of 64 pixels; `Scene.scale` is the factor from canvas pixels to
picture pixels. So a "large" shape looks large to the model whatever the picture's size.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass

KINDS = ("circle", "square", "triangle", "star")
COLOURS = {
    "red": (214, 36, 36),
    "green": (38, 158, 58),
    "blue": (40, 84, 222),
    "yellow": (242, 216, 38),
    "purple": (150, 52, 176),
    "orange": (250, 138, 22),
}
SIZES = ("small", "large")
DIAMETERS = {"small": (15.0, 18.0), "large": (26.0, 30.0)}  # canvas pixels, lowest and highest
VERTICAL = {2: ("top", "bottom"), 3: ("top", "middle", "bottom")}  # by number of rows
HORIZONTAL = {2: ("left", "right"), 3: ("left", "center", "right")}  # by number of columns
PATTERNS = ("plain", "gradient", "stripes", "checks", "noise")

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


@dataclass(frozen=True)
class Split:
    """A range of scene seeds set apart for one use: `first <= seed < first + count`."""

    name: str
    first: int
    count: int

    def seed(self, index: int) -> int:
        """The seed of scene number `index` of this split."""
        if not 0 <= index < self.count:
            raise IndexError(f"split {self.name} has {self.count} scenes, no number {index}")
        return self.first + index


TRAIN = Split("train", 0, 100_000_000)
VALIDATION = Split("validation", 100_000_000, 1_000_000)  # for decisions during training
TEST = Split("test", 200_000_000, 1_000_000)  # the published figures
CALIBRATION = Split("calibration", 300_000_000, 1_000_000)  # the judges' mean and deviation
EXAMPLES = Split("examples", 400_000_000, 1_000_000)  # the pictures in the package
SPLITS = (TRAIN, VALIDATION, TEST, CALIBRATION, EXAMPLES)


@dataclass(frozen=True)
class Layout:
    """A family of pictures: its grid, and the range of its width and height on the canvas."""

    name: str
    rows: int
    columns: int
    widths: tuple[int, int]
    heights: tuple[int, int]
    max_shapes: int
    share: int  # its frequency relative to the other layouts

    def places(self) -> tuple[str, ...]:
        """The names of all cells in reading order, `top left` first."""
        return tuple(
            f"{vertical} {horizontal}"
            for vertical in VERTICAL[self.rows]
            for horizontal in HORIZONTAL[self.columns]
        )


# Chosen so that the processor's tile arrangement (rows x columns of tiles) is, in this order:
# 2x2, 2x2, 2x2, 1x2, 1x3, 1x4, 2x1, 3x1, 4x1, 1x1. The processor takes one row of two
# tiles only for exactly 2:1; a cell is never narrower than 32 pixels.
LAYOUTS = (
    Layout("square", 3, 3, (116, 128), (116, 128), 6, 34),
    Layout("landscape", 2, 3, (128, 128), (84, 104), 6, 13),
    Layout("portrait", 3, 2, (84, 104), (128, 128), 6, 13),
    Layout("wide 2:1", 2, 3, (128, 128), (64, 64), 6, 6),
    Layout("wide 3:1", 2, 3, (150, 192), (64, 64), 6, 6),
    Layout("wide 4:1", 2, 3, (208, 256), (64, 64), 6, 6),
    Layout("tall 1:2", 3, 2, (64, 64), (128, 128), 6, 6),
    Layout("tall 1:3", 3, 2, (64, 64), (150, 192), 6, 5),
    Layout("tall 1:4", 3, 2, (64, 64), (208, 256), 6, 5),
    Layout("small", 2, 2, (64, 64), (64, 64), 4, 6),
)


@dataclass(frozen=True)
class Shape:
    """One shape: its description (the first four fields), and how it is drawn."""

    size: str
    colour: str
    kind: str
    place: str  # "top left": row and column of its cell
    x: float = 0.0  # center, canvas pixels from the left
    y: float = 0.0  # center, canvas pixels from the top
    diameter: float = 0.0  # canvas pixels
    angle: float = 0.0  # degrees, counter-clockwise
    fill: Colour = (0, 0, 0)

    @property
    def description(self) -> str:
        """`large red circle`."""
        return f"{self.size} {self.colour} {self.kind}"


@dataclass(frozen=True)
class Background:
    """The background: the color `base`, with a pattern in the color `other`."""

    pattern: str
    base: Colour
    other: Colour
    period: float  # canvas pixels between stripes, squares of the check or grains of the noise
    angle: float  # degrees
    seed: int  # seed of the noise


@dataclass(frozen=True)
class Scene:
    """A picture's content; `shapes` are in reading order of their cells, at most one per cell."""

    layout: Layout
    width: int  # canvas pixels
    height: int  # canvas pixels
    scale: float  # picture pixels per canvas pixel
    shapes: tuple[Shape, ...]
    background: Background

    @property
    def picture_size(self) -> tuple[int, int]:
        """Width and height of the drawn picture, pixels."""
        height = round(self.height * self.scale)
        if self.width == 2 * self.height:  # rounding must not break the exact 2:1
            return 2 * height, height
        width = round(self.width * self.scale)
        if self.height == 2 * self.width:
            return width, 2 * width
        return width, height


def scene(seed: int) -> Scene:
    """The scene of this seed; the same seed gives the same scene on every machine."""
    rng = random.Random(f"scene {seed}")
    layout = rng.choices(LAYOUTS, weights=[layout.share for layout in LAYOUTS])[0]
    width, height = rng.randint(*layout.widths), rng.randint(*layout.heights)
    if layout.name == "square":  # one side fills the canvas, as it does after fitting
        width, height = rng.choice(((width, 128), (128, height)))
    # One-tile pictures must stay within 64 pixels, or the processor takes more tiles.
    scale = rng.uniform(0.85, 1.0) if layout.name == "small" else rng.uniform(1.0, 3.0)
    background = _background(rng)
    return Scene(layout, width, height, scale, _shapes(rng, layout, width, height), background)


def scenes(split: Split) -> Iterator[Scene]:
    """All scenes of a split, in the order of their seeds."""
    return (scene(split.seed(index)) for index in range(split.count))


def _shapes(rng: random.Random, layout: Layout, width: int, height: int) -> tuple[Shape, ...]:
    cells = layout.rows * layout.columns
    chosen = sorted(rng.sample(range(cells), rng.randint(2, layout.max_shapes)))
    # A picture uses only a few colors and kinds, so that counts above one are common.
    colours = rng.sample(tuple(COLOURS), rng.randint(2, 4))
    kinds = rng.sample(KINDS, rng.randint(2, 4))
    places = layout.places()
    return tuple(
        _shape(
            rng,
            rng.choice(SIZES),
            rng.choice(colours),
            rng.choice(kinds),
            places[cell],
            _cell_box(layout, width, height, cell),
        )
        for cell in chosen
    )


def _cell_box(
    layout: Layout, width: int, height: int, cell: int
) -> tuple[float, float, float, float]:
    """Left, top, width and height of a cell, canvas pixels."""
    row, column = divmod(cell, layout.columns)
    cell_width, cell_height = width / layout.columns, height / layout.rows
    return column * cell_width, row * cell_height, cell_width, cell_height


def _shape(
    rng: random.Random,
    size: str,
    colour: str,
    kind: str,
    place: str,
    box: tuple[float, float, float, float],
) -> Shape:
    left, top, width, height = box
    diameter = rng.uniform(*DIAMETERS[size])
    slack_x, slack_y = (width - diameter) / 2 - 0.5, (height - diameter) / 2 - 0.5
    return Shape(
        size=size,
        colour=colour,
        kind=kind,
        place=place,
        # Only the middle 70% of a cell's slack, so that neighbors keep apart in wide cells, too.
        x=left + width / 2 + rng.uniform(-0.7, 0.7) * slack_x,
        y=top + height / 2 + rng.uniform(-0.7, 0.7) * slack_y,
        diameter=diameter,
        angle=rng.uniform(-14.0, 14.0),
        fill=_near(rng, COLOURS[colour], 10),
    )


def _background(rng: random.Random) -> Background:
    pattern = rng.choice(("plain", "plain", "gradient", "stripes", "checks", "noise", "noise"))
    grey = rng.randint(196, 240) if rng.random() < 0.65 else rng.randint(22, 74)
    base = _near(rng, (grey, grey, grey), 14)
    shift = rng.randint(10, 26) * (-1 if grey > 128 else 1)
    return Background(
        pattern=pattern,
        base=base,
        other=_near(rng, (base[0] + shift, base[1] + shift, base[2] + shift), 8),
        period=rng.uniform(5.0, 16.0),
        angle=rng.choice((0.0, 30.0, 45.0, 60.0, 90.0, 135.0)),
        seed=rng.getrandbits(32),
    )


def _near(rng: random.Random, colour: Colour, spread: int) -> Colour:
    red, green, blue = (min(255, max(0, value + rng.randint(-spread, spread))) for value in colour)
    return red, green, blue
