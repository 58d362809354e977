"""Makes the questions of a set from the rows of its file: prompts, options and right answers."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from llavacot_mlx.checked import shown
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet, Task
from llavacot_mlx.evaluate.data_row import DataFile, DataRow
from llavacot_mlx.evaluate.known_set import KnownSet
from llavacot_mlx.evaluate.mathvista_answer import AnswerType
from llavacot_mlx.evaluate.paper import AI2D, AI2D_NO_MASK
from llavacot_mlx.evaluate.prompts import ai2d_prompt, choice_prompt
from llavacot_mlx.evaluate.question import ROTATION_STEP, BenchmarkQuestion, Index, parse_index
from llavacot_mlx.evaluate.tsv_file import MISSING
from llavacot_mlx.evaluate.yes_no_inference import NO, YES

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_GROUP = "g_index"
_MULTI_CHOICE = "multi_choice"
_HALLUSION_INDEX_FIELDS = 6


def known_set(known: KnownSet, file: DataFile) -> BenchmarkSet:
    """Makes a published set. Raises UserError, which names the file and the row, if it is not."""
    if known.rows is not None and len(file.rows) != known.rows:
        raise UserError(
            f"{file.name}: has {len(file.rows)} rows with a picture, and {known.name} has "
            f"{known.rows}; download it again from {known.url}"
        )
    making = _Making(known.name, known.task, file)
    questions = tuple(making.questions())
    return BenchmarkSet(
        name=known.name,
        task=known.task,
        questions=questions,
        source=_source(file),
        strata=known.strata,
        categories=known.categories,
        labels=known.labels,
        is_papers=known.is_papers,
        notes=(*_file_notes(known, file, questions), *making.notes()),
    )


def other_set(name: str, file: DataFile) -> BenchmarkSet:
    """Makes a set of questions with options, or of yes and no, from any file of this form.

    Raises UserError, which names the file and the row, for a file of neither kind.
    """
    if {"A", "B"} <= set(file.columns):
        task = Task.CHOICE
    elif all(row.cells.get("answer", "").strip().casefold() in ("yes", "no") for row in file.rows):
        task = Task.YES_NO
    else:
        raise UserError(
            f"{file.name}: has neither options (columns A and B) nor answers of yes and no alone"
        )
    making = _Making(name, task, file)
    categories = tuple(
        column for column in ("category", "l2-category", "l2_category") if column in file.columns
    )
    return BenchmarkSet(
        name=name,
        task=task,
        questions=tuple(making.questions()),
        source=_source(file),
        strata=categories[0] if categories else "index",
        categories=categories,
        notes=tuple(making.notes()),
    )


def _source(file: DataFile) -> dict[str, object]:
    return {"file": file.name, "layout": file.layout, "md5": file.md5, "rows": len(file.rows)}


def _file_notes(
    known: KnownSet, file: DataFile, questions: tuple[BenchmarkQuestion, ...]
) -> Iterator[str]:
    if file.layout != "TSV":
        yield f"from the layout {file.layout}, whose prompts may differ from those of {known.tsv}"
    elif file.md5 not in known.md5:
        yield f"the file's MD5 is {file.md5}, not that of the published {known.tsv}"
    for column, expected in known.counts.items():
        found = Counter(
            question.answer if column == "answer" else question.fields.get(column)
            for question in questions
        )
        if set(found) == {None}:
            continue  # a layout without this column
        different = [
            f"{value} {found[value]} instead of {count}"
            for value, count in expected.items()
            if found[value] != count
        ]
        if different:
            yield f"counts by {column} differ from the published ones: {', '.join(different[:3])}"


@dataclass
class _Making:
    name: str
    task: Task
    file: DataFile
    lost_options: int = 0
    _members: Counter[Index] = field(default_factory=Counter)

    def questions(self) -> Iterator[BenchmarkQuestion]:
        for row in self.file.rows:
            match self.task:
                case Task.CHOICE:
                    yield self._choice(row)
                case Task.YES_NO | Task.HALLUSION:
                    yield self._yes_no(row)
                case Task.MATHVISTA:
                    yield self._mathvista(row)
                case _:
                    yield self._free(row)

    def notes(self) -> Iterator[str]:
        if self.lost_options:
            yield (
                f"{self.lost_options} right answers are options whose text pandas reads as "
                "missing, such as None; no answer to these counts as right, as in the paper's "
                "scores"
            )

    def _choice(self, row: DataRow) -> BenchmarkQuestion:
        options = {letter: row.cells[letter] for letter in LETTERS if letter in row.cells}
        answer = row.cells.get("answer")
        if answer is not None:
            answer = answer.strip()
            if answer not in LETTERS or not (answer in options or answer in row.missing_words):
                raise self._no_option(row, answer, options)
            self.lost_options += answer not in options
        elif "answer" in self.file.columns:
            raise UserError(f"{self._where(row)}: has no answer")
        question = self._question_text(row)
        prompt = choice_prompt(question, options, row.cells.get("hint"))
        if self.name in (AI2D, AI2D_NO_MASK):
            prompt = ai2d_prompt(question, options)
        group, rotation = self._group(row)
        return self._make(row, prompt, answer, options, group=group, rotation=rotation)

    def _no_option(self, row: DataRow, answer: str, options: dict[str, str]) -> UserError:
        return UserError(
            f"{self._where(row)}: its answer {shown(answer)} is none of its options "
            f"{', '.join(options)}"
        )

    def _group(self, row: DataRow) -> tuple[Index, int]:
        """The question that a row is a rotation of, and which of them it is."""
        if _GROUP in row.cells:
            own = row.cells[_GROUP].strip()
            group = parse_index(own)
            self._members[group] += 1
            return group, self._members[group] - 1
        if isinstance(row.index, int) and row.index >= 0:
            return row.index % ROTATION_STEP, row.index // ROTATION_STEP
        return row.index, 0

    def _yes_no(self, row: DataRow) -> BenchmarkQuestion:
        answer = self._needed(row, "answer").strip().capitalize()
        if answer not in (YES, NO):
            raise UserError(f"{self._where(row)}: its answer {shown(answer)} is not yes or no")
        fields = {}
        if self.task is Task.HALLUSION:
            parts = str(row.index).split("_")
            if len(parts) != _HALLUSION_INDEX_FIELDS:
                raise UserError(
                    f"{self._where(row)}: its index does not name set, figure and question, as in "
                    "VD_chart_1_0_1_0"
                )
            fields = {"set": parts[3], "figure": f"{parts[3]} {parts[4]}"}
            fields["question"] = f"{parts[3]} {parts[5]}"
            self._needed(row, "l2-category")
        return self._make(row, self._question_text(row), answer, {}, fields)

    def _mathvista(self, row: DataRow) -> BenchmarkQuestion:
        kind = self._needed(row, "question_type")
        fields = {"skills": ",".join(self._listed(row, "skills"))}
        if "answer" in row.cells:  # the text, where ours is the letter
            fields["answer"] = row.cells["answer"]
        if kind == _MULTI_CHOICE:
            choices = self._listed(row, "choices")
            options = dict(zip(LETTERS, choices, strict=False))
            answer = row.cells.get("answer_option", "").strip()
            if not answer and row.cells.get("answer") in choices:
                answer = LETTERS[choices.index(row.cells["answer"])]
            if answer not in options:
                raise self._no_option(row, answer or row.cells.get("answer", ""), options)
        else:
            options, answer = {}, self._needed(row, "answer").strip()
            kind = self._needed(row, "answer_type")
            if kind not in (AnswerType.INTEGER, AnswerType.FLOAT, AnswerType.LIST):
                raise UserError(
                    f"{self._where(row)}: its answer_type {shown(kind)} is not integer, float or "
                    "list"
                )
        return self._make(row, self._question_text(row), answer, options, fields)

    def _free(self, row: DataRow) -> BenchmarkQuestion:
        return self._make(row, self._question_text(row), self._needed(row, "answer"), {})

    def _make(
        self,
        row: DataRow,
        prompt: str,
        answer: str | None,
        options: dict[str, str],
        fields: dict[str, str] | None = None,
        *,
        group: Index = "",
        rotation: int = 0,
    ) -> BenchmarkQuestion:
        kept = {
            name: text
            for name, text in row.cells.items()
            if name not in ("question", "answer", "image_path") and name not in options
        }
        return BenchmarkQuestion(
            set=self.name,
            index=row.index,
            question=row.cells["question"],
            prompt=prompt,
            picture=row.picture,
            rotation=rotation,
            group=group if group != "" else row.index,
            options=options,
            answer=answer,
            fields={**kept, **(fields or {})},
        )

    def _listed(self, row: DataRow, column: str) -> list[str]:
        """The texts of a cell with a list as Python writes it."""
        text = row.cells.get(column, "[]")
        try:
            value = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            value = None
        if not isinstance(value, list):
            raise UserError(f"{self._where(row)}: its {column} {shown(text)} is not a list")
        return [str(each) for each in value]

    def _question_text(self, row: DataRow) -> str:
        return self._needed(row, "question")

    def _needed(self, row: DataRow, column: str) -> str:
        text = row.cells.get(column)
        if text is None or text in MISSING:
            raise UserError(f"{self._where(row)}: has no {column}")
        return text

    def _where(self, row: DataRow) -> str:
        return f"{self.file.name}: row {row.index}"
