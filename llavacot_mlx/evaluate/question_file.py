"""The questions of a run as its folder keeps them, so that it is scored without the data."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from llavacot_mlx.atomic import write_file
from llavacot_mlx.checked import checked, named
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.benchmark_set import Task
from llavacot_mlx.evaluate.question import BenchmarkQuestion

FILE_NAME = "questions.jsonl"


@dataclass(frozen=True)
class StoredQuestion:
    """A question without its picture."""

    set: str
    task: Task
    index: int | str
    rotation: int
    group: int | str
    question: str
    prompt: str
    options: dict[str, str]
    answer: str | None
    fields: dict[str, str]
    picture: str
    """Equal for equal pictures."""

    @classmethod
    def of(cls, task: Task, question: BenchmarkQuestion) -> StoredQuestion:
        return cls(
            set=question.set,
            task=task,
            index=question.index,
            rotation=question.rotation,
            group=question.group,
            question=question.question,
            prompt=question.prompt,
            options=dict(question.options),
            answer=question.answer,
            fields=dict(question.fields),
            picture=question.picture.digest,
        )


def write_questions(folder: Path, questions: Iterable[StoredQuestion]) -> None:
    """Writes the file of a run folder. Raises UserError when that fails."""
    lines = (json.dumps(asdict(question), ensure_ascii=False) + "\n" for question in questions)
    write_file(folder / FILE_NAME, "".join(lines).encode(errors="backslashreplace"))


def read_questions(folder: Path) -> list[StoredQuestion]:
    """Reads the file of a run folder. Raises UserError that names the line."""
    file = folder / FILE_NAME
    found = []
    for number, value in read_lines(file):
        with named(f"{file}: line {number}"):
            found.append(checked(StoredQuestion, value))
    return found


def read_lines(file: Path) -> list[tuple[int, object]]:
    """The JSON values of a file's lines with their numbers; a line that was cut off is left out.

    Returns none for a file that does not exist. Raises UserError that names the line.
    """
    try:
        data = file.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as problem:
        raise UserError(f"{file}: cannot be read: {problem.strerror}") from None
    found = []
    for number, line in enumerate(data[: data.rfind(b"\n") + 1].splitlines(), start=1):
        with named(f"{file}: line {number}"):
            try:
                found.append((number, json.loads(line)))
            except ValueError as problem:
                raise UserError(f"not JSON: {problem}") from None
    return found
