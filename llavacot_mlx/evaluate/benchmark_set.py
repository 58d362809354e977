"""A set of questions, how its answers are scored, and which of them a shorter run takes."""

from __future__ import annotations

import enum
import hashlib
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.question import BenchmarkQuestion, Index


class Task(enum.StrEnum):
    """What a set asks for, and so how its answers are scored."""

    SHAPES = "shapes"
    CHOICE = "choice"
    """The letter of an option; of a question with rotations, in all of them."""
    YES_NO = "yes-no"
    HALLUSION = "hallusion"
    """Yes or no, scored by row, by figure and by question."""
    MATHVISTA = "mathvista"
    GRADED = "graded"
    """Free text, which only a grading model scores, from 0 to 1."""


@dataclass(frozen=True)
class BenchmarkSet:
    """A benchmark's questions, in the order of its file."""

    name: str
    task: Task
    questions: tuple[BenchmarkQuestion, ...]
    source: dict[str, Any]
    """Where they are from, for the record of a run."""
    strata: str = ""
    """The field by which a subset is stratified; empty for questions in random order."""
    size: int = 0
    """Number of questions of the whole set, rotations not counted; by default of these."""
    categories: tuple[str, ...] = ()
    """The fields by whose values the score is shown."""
    labels: tuple[str, ...] = ()
    """Those whose cells have several values, as in `ocr,math`."""
    is_papers: bool = False
    """Whether a score of it stands beside the paper's."""
    notes: tuple[str, ...] = ()
    """What a person should know about the file."""

    def __post_init__(self) -> None:
        if not self.size:
            object.__setattr__(self, "size", len({each.group for each in self.questions}))

    def groups(self) -> list[list[BenchmarkQuestion]]:
        """The questions with their rotations, in an order of which every beginning is a sample.

        A beginning has each stratum in its share, and is the same on every machine.
        """
        groups: dict[Index, list[BenchmarkQuestion]] = defaultdict(list)
        for question in self.questions:
            groups[question.group].append(question)
        for group in groups.values():
            group.sort(key=lambda question: question.rotation)
        return (
            _stratified(list(groups.values()), self.strata) if self.strata else [*groups.values()]
        )

    def take(self, limit: int | None) -> list[list[BenchmarkQuestion]]:
        """The first groups. Raises UserError if there are fewer than `limit`."""
        groups = self.groups()
        if limit is not None and limit > len(groups):
            raise UserError(
                f"--limit {limit}: {self.name} has {len(groups)} question"
                f"{'s' if len(groups) != 1 else ''}"
            )
        return groups[:limit]


def _stratified(
    groups: Sequence[list[BenchmarkQuestion]], name: str
) -> list[list[BenchmarkQuestion]]:
    strata: dict[str, list[list[BenchmarkQuestion]]] = defaultdict(list)
    for group in groups:
        strata[group[0].fields.get(name, "")].append(group)
    placed = []
    for stratum, members in strata.items():
        members.sort(key=_shuffle_key)
        for number, group in enumerate(members):
            place = (number + 0.5) / len(members)
            placed.append((place, hashlib.sha256(stratum.encode()).digest(), group))
    placed.sort(key=lambda each: each[:2])
    return [group for _, _, group in placed]


def _shuffle_key(group: list[BenchmarkQuestion]) -> bytes:
    return hashlib.sha256(f"{group[0].set} {group[0].group}".encode()).digest()
