"""The embedded world of colored shapes as a benchmark, which needs no data."""

from __future__ import annotations

import io
import random
from dataclasses import dataclass

from llavacot_mlx.demo.world import QUESTION_KINDS, TEST, Question, Split, draw, questions, scene
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet, Task
from llavacot_mlx.evaluate.question import BenchmarkQuestion

NAME = "shapes"
DEFAULT_COUNT = 1000
"""Questions without a limit: as many as the published figures are measured on."""

MAX_COUNT = 10_000
"""They are all made before the first is asked."""


@dataclass(frozen=True)
class DrawnPicture:
    """The picture of a scene, drawn when it is needed."""

    seed: int
    is_file: bool = False

    @property
    def digest(self) -> str:
        return f"scene {self.seed}"

    def read(self) -> bytes:
        file = io.BytesIO()
        draw(scene(self.seed)).save(file, "PNG")
        return file.getvalue()


def world_question(split: Split, number: int, kind: str | None = None) -> Question | None:
    """Returns question `number` of a split: one per scene, of any kind or of the one named.

    None where the scene allows no question of that kind.
    """
    seed = split.seed(number)
    asked = questions(scene(seed), random.Random(f"rows {seed}"))
    return next((each for each in asked if kind in (None, each.kind)), None)


def open_shapes(name: str, *, first: int = 0, count: int | None = None) -> BenchmarkSet:
    """Makes the set `shapes`, or `shapes:KIND` with questions of one kind.

    They begin at question number `first` of the held-out split. Raises UserError for an unknown
    kind, and for more questions than there are.
    """
    _, colon, kind = name.partition(":")
    if colon and kind not in QUESTION_KINDS:
        raise UserError(
            f"--set {name}: there is no such kind of question; there are "
            f"{', '.join(QUESTION_KINDS)}"
        )
    wanted = DEFAULT_COUNT if count is None else count
    if not 0 <= first < TEST.count:
        raise UserError(f"--first {first}: questions have numbers from 0 to {TEST.count - 1}")
    if wanted > min(MAX_COUNT, TEST.count - first):
        most = min(MAX_COUNT, TEST.count - first)
        raise UserError(f"--limit {wanted}: {name} has {most} questions from number {first} on")
    found: list[BenchmarkQuestion] = []
    number = first
    while len(found) < wanted and number < TEST.count:
        asked = world_question(TEST, number, kind or None)
        if asked is not None:
            found.append(_as_row(name, number, asked))
        number += 1
    source = {"split": TEST.name, "first": first}
    return BenchmarkSet(
        name,
        Task.SHAPES,
        tuple(found),
        source,
        size=TEST.count,
        categories=("kind", "form", "pictures"),
    )


def _as_row(name: str, number: int, asked: Question) -> BenchmarkQuestion:
    seed = TEST.seed(number)
    return BenchmarkQuestion(
        set=name,
        index=number,
        question=asked.text,
        prompt=asked.text,
        picture=DrawnPicture(seed),
        options=dict(zip("ABCD", asked.choices, strict=False)),
        answer=asked.answer,
        fields={
            "kind": asked.kind,
            "form": "multiple choice" if asked.choices else "open",
            "pictures": scene(seed).layout.name,
        },
    )
