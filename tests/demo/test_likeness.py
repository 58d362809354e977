"""Which images the demo model cannot know: no false alarm, and none missed of those below."""

from __future__ import annotations

import io
from collections.abc import Iterator

import numpy as np
import pytest
from PIL import Image, ImageDraw

from llavacot_mlx.demo import example_path
from llavacot_mlx.demo.likeness import is_like_the_world
from llavacot_mlx.demo.world import TEST, draw, scene


@pytest.mark.slow
def test_no_false_alarm() -> None:
    odd = [n for n in range(200) if not is_like_the_world(draw(scene(TEST.seed(n))))]
    assert odd == []


@pytest.mark.parametrize("name", ["square", "busy", "wide", "tall"])
def test_the_examples_are_known(name: str) -> None:
    assert is_like_the_world(Image.open(example_path(name)))


def test_copies_that_people_make_are_known() -> None:
    """Saved as JPEG, enlarged, or made smaller."""
    for number in range(12):
        picture = draw(scene(TEST.seed(number)))
        buffer = io.BytesIO()
        picture.save(buffer, "JPEG", quality=60)
        assert is_like_the_world(Image.open(buffer))
        assert is_like_the_world(picture.resize((picture.width * 3, picture.height * 3)))
        assert is_like_the_world(picture.resize((picture.width // 2, picture.height // 2)))


def others() -> Iterator[tuple[str, Image.Image]]:
    values = np.random.default_rng(0)
    for number in range(40):
        total = np.zeros((120, 160, 3))
        for size in (4, 8, 16, 32, 64):
            noise = values.integers(0, 256, (120 // size + 1, 160 // size + 1, 3))
            layer = Image.fromarray(noise.astype(np.uint8)).resize((160, 120))
            total += np.asarray(layer).astype(float) * size
        total = (total - total.min()) / np.ptp(total) * 255
        yield f"clouds {number}", Image.fromarray(total.astype(np.uint8))
        yield f"grey clouds {number}", Image.fromarray(total.astype(np.uint8)).convert("L")
    for number in range(20):
        corners = values.integers(0, 256, (2, 2, 3)).astype(np.uint8)
        yield f"gradient {number}", Image.fromarray(corners).resize((160, 120))
    yield "noise", Image.effect_noise((200, 150), 60)
    yield "faint noise", Image.effect_noise((200, 150), 20)
    yield "colour noise", Image.fromarray(values.integers(0, 256, (99, 99, 3)).astype(np.uint8))
    yield "black", Image.new("RGB", (99, 99))
    yield "red", Image.new("RGB", (99, 99), (214, 36, 36))
    document = Image.new("RGB", (300, 300), "white")
    pen = ImageDraw.Draw(document)
    for line in range(12):
        pen.text((5, line * 10), "some text of a document here", fill=0)
    yield "document", document
    landscape = Image.new("RGB", (300, 200), (135, 206, 235))
    pen = ImageDraw.Draw(landscape)
    pen.rectangle((0, 120, 300, 200), fill=(60, 120, 40))
    pen.ellipse((200, 20, 240, 60), fill=(255, 230, 80))
    yield "landscape", landscape


def test_pictures_of_other_worlds() -> None:
    assert [name for name, image in others() if is_like_the_world(image.convert("RGB"))] == []
