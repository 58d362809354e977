"""Chooses the scenes, and the question about each scene."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator
from dataclasses import dataclass

from even_or_odd import parity_question

from llavacot_mlx.demo.world import LAYOUTS, Scene, Split, questions, scene

MOST_SHAPES = max(layout.max_shapes for layout in LAYOUTS)


@dataclass(frozen=True)
class Asked:
    """A question about a scene, the whole reference answer, and its CONCLUSION."""

    scene: Scene
    text: str
    reply: str
    answer: str


def few_shapes(split: Split, first: int, most: int) -> Iterator[int]:
    """The seeds of a split from number `first` on whose scenes have at most `most` shapes."""
    for index in itertools.count(first):
        seed = split.seed(index)
        if len(scene(seed).shapes) <= most:
            yield seed


def asked_new(seed: int) -> Asked:
    """A question of the new kind about a seed's scene."""
    content = scene(seed)
    asked = parity_question(content, random.Random(f"new kind {seed}"))
    return Asked(content, asked.text, asked.reply, asked.answer)


def asked_old(seed: int) -> Asked:
    """A question of one of the kinds that the demo model knows."""
    content = scene(seed)
    asked = questions(content, random.Random(seed))[0]
    return Asked(content, asked.text, asked.reply(), asked.answer)
