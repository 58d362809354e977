"""Reads questions about images from a file of rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.image_source import find_image
from llavacot_mlx.rows.conversation import parse_question
from llavacot_mlx.rows.row_file import RowFile


@dataclass(frozen=True)
class QuestionRow:
    """One row: an image and a question."""

    where: str
    """For errors, such as `data.jsonl, row 3`."""
    image: Path | str
    """The file, or the image itself as a `data:` URI."""
    question: str


def read_questions(
    file: Path, images: Path, *, images_anywhere: bool = False
) -> Iterator[QuestionRow]:
    """Yields the questions of a file, one per row; image names are relative to the folder `images`.

    A row is `{"image": …, "question": …}`, or one to learn from, whose first question is taken.
    Without `images_anywhere`, images have to be in that folder. Raises UserError that names the
    row.
    """
    rows = RowFile.open(file)
    for index in range(len(rows)):
        where = rows.where(index)
        asked = parse_question(rows.text(index), where)
        try:
            image = find_image(asked.image, images.expanduser(), anywhere=images_anywhere)
        except UserError as problem:
            raise UserError(f"{where}: {problem}") from None
        yield QuestionRow(where, image, asked.text)
