"""Grades and scores a run's folder, without its model."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from llavacot_mlx.atomic import write_file
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.answer_file import read_answers
from llavacot_mlx.evaluate.conclusion import AnswerFrom, prediction
from llavacot_mlx.evaluate.grade import Grade, GradedBy, grade_by_rule
from llavacot_mlx.evaluate.grade_file import GradeRow, read_grades, write_grades
from llavacot_mlx.evaluate.option_inference import Scorer
from llavacot_mlx.evaluate.question_file import StoredQuestion, read_questions
from llavacot_mlx.evaluate.run_folder import RunRecord, read_run
from llavacot_mlx.evaluate.score import Average, GradedAnswer, SetScore, average, score_set

FILE_NAME = "score.json"


class Resolver(Protocol):
    """Decides about answers that the rules leave open, by asking a model."""

    def resolve(self, question: StoredQuestion, row: GradeRow, text: str) -> GradeRow:
        """Returns the verdict on a prediction; `row` as it is where the model has none."""


@dataclass(frozen=True)
class RunScore:
    """The scores of a run's sets."""

    record: RunRecord
    sets: list[SetScore]
    answers: list[GradedAnswer]
    """In the order of the questions."""
    average: Average | None
    rotations: dict[str, dict[int | str, int]]
    """Number of rotations of each question, by set."""

    def to_dict(self) -> dict[str, Any]:
        """What `score.json` says; nothing in it depends on how long the run took, or where."""
        return {
            "sets": {each.name: dataclasses.asdict(each) for each in self.sets},
            "average": self.average and dataclasses.asdict(self.average),
        }


def score_run(
    folder: Path,
    *,
    answer_from: AnswerFrom | None = None,
    scorer: Scorer | None = None,
    resolver: Resolver | None = None,
) -> RunScore:
    """Grades every answer of a run, and writes `grades.jsonl` and `score.json`.

    By default, the part of the answer and the rules are those of the run's profile. Raises
    UserError for a folder that is no run, and for one without answers.
    """
    record = read_run(folder)
    changes: dict[str, Any] = {"answer_from": answer_from, "scorer": scorer}
    profile = dataclasses.replace(
        record.profile, **{key: value for key, value in changes.items() if value is not None}
    )
    record = dataclasses.replace(record, profile=profile)
    questions, rows = read_questions(folder), read_answers(folder)
    graded = []
    for question in questions:
        for repeat in range(record.repeats):
            row = rows.get((question.set, question.index, question.rotation, repeat))
            if row is None:
                continue
            text = prediction(row.text, profile.answer_from)
            grade = (
                Grade(GradedBy.FAILED)
                if row.is_failed
                else grade_by_rule(question, text, profile.scorer)
            )
            graded.append((question, row, GradeRow.of(row, grade, str(profile.scorer)), text))
    if not graded:
        raise UserError(f"{folder}: has no answers yet")
    answers = []
    for question, row, grade_row, text in graded:
        if resolver is not None and grade_row.by is not GradedBy.FAILED:
            grade_row = resolver.resolve(question, grade_row, text)
        answers.append(GradedAnswer(question, row, grade_row))
    write_grades(folder, [each.grade for each in answers])
    score = _scored(record, questions, answers)
    text = json.dumps(score.to_dict(), ensure_ascii=False, indent=1)
    write_file(folder / FILE_NAME, f"{text}\n".encode())
    return score


def read_score(folder: Path) -> RunScore:
    """The scores of a run from the verdicts in its folder, which are made if there are none."""
    record, grades = read_run(folder), read_grades(folder)
    questions, rows = read_questions(folder), read_answers(folder)
    if not grades or grades.keys() != rows.keys():
        return score_run(folder)
    answers = [
        GradedAnswer(question, rows[key], grades[key])
        for question in questions
        for repeat in range(record.repeats)
        if (key := (question.set, question.index, question.rotation, repeat)) in grades
    ]
    return _scored(record, questions, answers)


def _scored(
    record: RunRecord, questions: list[StoredQuestion], answers: list[GradedAnswer]
) -> RunScore:
    rotations: dict[str, dict[int | str, int]] = {name: defaultdict(int) for name in record.sets}
    for question in questions:
        rotations[question.set][question.group] += 1
    by_set: dict[str, list[GradedAnswer]] = {name: [] for name in record.sets}
    for each in answers:
        by_set[each.question.set].append(each)
    sets = [
        score_set(name, record, members, rotations[name])
        for name, members in by_set.items()
        if members
    ]
    return RunScore(record, sets, answers, average(sets), rotations)
