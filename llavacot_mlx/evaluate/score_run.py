"""Grades and scores a run's folder, without its model."""

from __future__ import annotations

import dataclasses
import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavacot_mlx.atomic import write_file
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.answer_file import AnswerRow, read_answers
from llavacot_mlx.evaluate.conclusion import AnswerFrom, prediction
from llavacot_mlx.evaluate.grade import Grade, GradedBy, grade_by_rule
from llavacot_mlx.evaluate.grade_file import GradeRow, read_grades, write_grades
from llavacot_mlx.evaluate.llm_grader import OpenAnswer
from llavacot_mlx.evaluate.option_inference import Scorer
from llavacot_mlx.evaluate.question_file import StoredQuestion, read_questions
from llavacot_mlx.evaluate.run_folder import RunRecord, read_run
from llavacot_mlx.evaluate.score import Average, GradedAnswer, SetScore, average, score_set

FILE_NAME = "score.json"


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


@dataclass(frozen=True)
class Grading:
    """The verdicts of the rules on a run's answers, before a model is asked about any."""

    record: RunRecord
    questions: list[StoredQuestion]
    rows: list[AnswerRow]
    open: list[OpenAnswer]
    """One for each of `rows`."""


def grade_run(
    folder: Path, *, answer_from: AnswerFrom | None = None, scorer: Scorer | None = None
) -> Grading:
    """Grades every answer of a run by rules.

    By default, the part of the answer and the rules are those of the run's profile. Raises
    UserError for a folder that is no run, and for one without answers.
    """
    record = read_run(folder)
    changes: dict[str, Any] = {"answer_from": answer_from, "scorer": scorer}
    profile = dataclasses.replace(
        record.profile, **{key: value for key, value in changes.items() if value is not None}
    )
    grading = Grading(dataclasses.replace(record, profile=profile), read_questions(folder), [], [])
    answers = read_answers(folder)
    for question in grading.questions:
        for repeat in range(record.repeats):
            row = answers.get((question.set, question.index, question.rotation, repeat))
            if row is None:
                continue
            text = prediction(row.text, profile.answer_from)
            grade = Grade(GradedBy.FAILED)
            if not row.is_failed:
                grade = grade_by_rule(question, text, profile.scorer)
            grading.rows.append(row)
            graded = GradeRow.of(row, grade, str(profile.scorer))
            grading.open.append(OpenAnswer(question, graded, text))
    if not grading.rows:
        raise UserError(f"{folder}: has no answers yet")
    return grading


def score_run(folder: Path, grading: Grading, grades: Sequence[GradeRow]) -> RunScore:
    """Scores a run by these verdicts, and writes `grades.jsonl` and `score.json`.

    Raises UserError when they cannot be written.
    """
    answers = [
        GradedAnswer(each.question, row, grade)
        for each, row, grade in zip(grading.open, grading.rows, grades, strict=True)
    ]
    score = _scored(grading.record, grading.questions, answers)
    write_grades(folder, grades)
    text = json.dumps(score.to_dict(), ensure_ascii=False, indent=1)
    write_file(folder / FILE_NAME, f"{text}\n".encode())
    return score


def score_by_rule(folder: Path) -> RunScore:
    """Grades and scores a run by rules alone. Raises UserError as `grade_run` does."""
    grading = grade_run(folder)
    return score_run(folder, grading, [each.grade for each in grading.open])


def read_score(folder: Path) -> RunScore:
    """The scores of a run from the verdicts in its folder, which are made if there are none."""
    record, grades = read_run(folder), read_grades(folder)
    questions, rows = read_questions(folder), read_answers(folder)
    if not grades or grades.keys() != rows.keys():
        return score_by_rule(folder)
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
