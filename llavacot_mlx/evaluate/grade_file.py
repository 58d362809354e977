"""The verdicts on a run's answers, in the order of the answers."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavacot_mlx.atomic import write_file
from llavacot_mlx.checked import checked, named
from llavacot_mlx.evaluate.answer_file import AnswerKey, AnswerRow
from llavacot_mlx.evaluate.grade import Grade, GradedBy
from llavacot_mlx.evaluate.question_file import read_lines

FILE_NAME = "grades.jsonl"


@dataclass(frozen=True)
class GradeRow:
    """The verdict on one answer."""

    set: str
    index: int | str
    rotation: int
    repeat: int
    by: GradedBy
    value: str | None = None
    right: bool | None = None
    score: float | None = None
    """In place of `right`, for a set whose answers are graded from 0 to 1."""
    scorer: str = ""
    model: str | None = None
    """The model that was asked where the rules left it open."""
    reply: str | None = None
    tries: int = 0

    @classmethod
    def of(cls, row: AnswerRow, grade: Grade, scorer: str) -> GradeRow:
        return cls(
            *row.key,
            by=grade.by,
            value=grade.value,
            right=grade.right,
            score=grade.score,
            scorer=scorer,
        )

    @property
    def key(self) -> AnswerKey:
        return (self.set, self.index, self.rotation, self.repeat)

    def to_dict(self) -> dict[str, Any]:
        value = dict(vars(self))
        del value["right" if self.score is not None else "score"]
        if self.model is None:
            for key in ("model", "reply", "tries"):
                del value[key]
        return value


def write_grades(folder: Path, rows: Iterable[GradeRow]) -> None:
    """Replaces the verdicts of a run folder. Raises UserError."""
    lines = (json.dumps(row.to_dict(), ensure_ascii=False) + "\n" for row in rows)
    write_file(folder / FILE_NAME, "".join(lines).encode(errors="backslashreplace"))


def read_grades(folder: Path) -> dict[AnswerKey, GradeRow]:
    """The verdicts of a run folder. Raises UserError that names the line."""
    file = folder / FILE_NAME
    found = {}
    for number, value in read_lines(file):
        with named(f"{file}: line {number}"):
            row = checked(GradeRow, value)
        found[row.key] = row
    return found
