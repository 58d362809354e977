"""Reads questions about images from a JSONL file."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavacot_mlx.checked import decode_text
from llavacot_mlx.errors import UserError

_IMAGE_MARK = "<image>"


@dataclass(frozen=True)
class QuestionRow:
    """One row: an image and a question."""

    where: str
    """For errors, such as `data.jsonl, row 3`."""
    image: Path
    question: str


def read_questions(file: Path, images: Path) -> Iterator[QuestionRow]:
    """Yields the questions of a file, one per row; image names are relative to the folder `images`.

    A row is `{"image": …, "question": …}`, or one of LLaVA-CoT-100k, whose first human turn is the
    question. Raises UserError that names the row.
    """
    try:
        with file.open("rb") as lines:
            for number, line in enumerate(lines, 1):
                text = decode_text(line) if number == 1 else line.decode()
                if text.strip():
                    yield _row(text, f"{file}, row {number}", images)
    except OSError as problem:
        raise UserError(f"{file}: {problem.strerror}") from None
    except UnicodeDecodeError:
        raise UserError(f"{file}: not UTF-8 text") from None
    except ValueError as problem:
        raise UserError(f"{file}: {problem}") from None


def _row(line: str, where: str, images: Path) -> QuestionRow:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise UserError(f"{where}: not JSON: {problem}") from None
    if not isinstance(row, dict):
        raise UserError(f"{where}: expected an object with an image and a question")
    image = row.get("image")
    if not isinstance(image, str) or not image:
        raise UserError(f"{where}: image is missing")
    question = row["question"] if "question" in row else _first_human_turn(row, where)
    if not isinstance(question, str) or not question.strip():
        raise UserError(f"{where}: the question is missing or empty")
    path = images / image
    if not path.is_file():
        raise UserError(f"{where}: there is no picture {path}")
    return QuestionRow(where, path, question)


def _first_human_turn(row: dict[str, Any], where: str) -> str:
    turns = row.get("conversations")
    if not isinstance(turns, list):
        raise UserError(f"{where}: expected a question, or conversations as in LLaVA-CoT-100k")
    for turn in turns:
        if isinstance(turn, dict) and turn.get("from") == "human":
            return str(turn.get("value", "")).replace(_IMAGE_MARK, "").strip()
    raise UserError(f"{where}: its conversations have no turn from human")
