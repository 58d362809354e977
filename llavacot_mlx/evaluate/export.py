"""Writes a run's predictions as files that VLMEvalKit and the server of MMBench score."""

from __future__ import annotations

import csv
import enum
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from llavacot_mlx.atomic import write_file
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.answer_file import AnswerKey, AnswerRow, read_answers
from llavacot_mlx.evaluate.benchmark_set import Task
from llavacot_mlx.evaluate.conclusion import prediction
from llavacot_mlx.evaluate.known_set import BY_NAME, MMBENCH_TEST
from llavacot_mlx.evaluate.paper import MMBENCH
from llavacot_mlx.evaluate.question_file import StoredQuestion, read_questions
from llavacot_mlx.evaluate.run_folder import RunRecord, read_run
from llavacot_mlx.evaluate.score import labels_of

_PREDICTION = "prediction"
_SERVER_COLUMNS = (
    *("index", "question", "hint", "A", "B", "C", "D"),
    *("category", "l2-category", "split", _PREDICTION),
)
_FIRST = ("index", "question", "hint")
_OURS = {Task.HALLUSION: ("set", "figure", "question")}
"""Fields that are not of the data file."""


class ExportFormat(enum.StrEnum):
    """Who reads the files."""

    VLMEVALKIT = "vlmevalkit"
    MMBENCH_SERVER = "mmbench-server"


def export_run(folder: Path, form: ExportFormat, out: Path) -> list[Path]:
    """Writes a file for each set and repeat of a run into `out`, and returns their paths.

    A rotation that was not asked, since another one was wrong, has an empty prediction. Raises
    UserError for a run without answers, and for one whose sets the reader does not know.
    """
    record = read_run(folder)
    questions, answers = read_questions(folder), read_answers(folder)
    if not answers:
        raise UserError(f"{folder}: has no answers yet")
    names = list(record.sets)
    if form is ExportFormat.MMBENCH_SERVER:
        names = [name for name in names if name in (MMBENCH, MMBENCH_TEST)]
        if not names:
            raise UserError(
                f"{folder}: the server scores mmbench and mmbench-test, and this run is of "
                f"{', '.join(record.sets)}"
            )
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as problem:
        raise UserError(f"{out}: cannot be made: {problem.strerror}") from None
    written = []
    for name in names:
        members = [question for question in questions if question.set == name]
        for repeat in range(record.repeats):
            rows = _rows(record, members, answers, repeat)
            path = out / _file_name(record, name, repeat)
            write_file(path, _table(rows, form).encode(errors="replace"))
            written.append(path)
    return written


def _file_name(record: RunRecord, name: str, repeat: int) -> str:
    """As the kit names it: the model, then the data set."""
    data = BY_NAME[name].tsv if name in BY_NAME else name.replace(":", "-")
    model = Path(record.model.name).name
    suffix = f"_{repeat + 1}" if record.repeats > 1 else ""
    return f"{model}{suffix}_{data}.tsv"


def _rows(
    record: RunRecord,
    questions: Sequence[StoredQuestion],
    answers: Mapping[AnswerKey, AnswerRow],
    repeat: int,
) -> Iterator[dict[str, Any]]:
    for question in questions:
        answer = answers.get((question.set, question.index, question.rotation, repeat))
        text = "" if answer is None else answer.text
        ours = _OURS.get(question.task, ())
        row: dict[str, Any] = {"index": question.index, "question": question.question}
        row |= {key: value for key, value in question.fields.items() if key not in ours}
        if question.task is Task.MATHVISTA:
            row["skills"] = str(labels_of(question.fields.get("skills", "")))
        else:
            row |= question.options
        if question.answer is not None:
            row["answer"] = question.fields.get("answer", question.answer)
        row[_PREDICTION] = prediction(text, record.profile.answer_from)
        yield row


def _table(rows: Iterator[dict[str, Any]], form: ExportFormat) -> str:
    listed = list(rows)
    columns: Sequence[str] = _SERVER_COLUMNS
    if form is ExportFormat.VLMEVALKIT:
        columns = _kit_columns(list(dict.fromkeys(name for row in listed for name in row)))
    file = io.StringIO()
    writer = csv.DictWriter(
        file, columns, delimiter="\t", lineterminator="\n", extrasaction="ignore"
    )
    writer.writeheader()
    writer.writerows(listed)
    return file.getvalue()


def _kit_columns(names: Sequence[str]) -> list[str]:
    """The order of the kit's files: the question, its options and answer, then the rest."""
    letters = sorted(name for name in names if len(name) == 1 and name.isupper())
    first = [*_FIRST, *letters, "answer"]
    rest = [name for name in names if name not in (*first, _PREDICTION)]
    return [*(name for name in first if name in names), *rest, _PREDICTION]
