"""Questions in JSONL: both formats are read, and errors name the row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from llavacot_mlx.errors import UserError
from llavacot_mlx.search.question_file import QuestionRow, read_questions


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures" / "a.png").write_bytes(b"")
    return tmp_path / "questions.jsonl"


def rows(file: Path) -> list[QuestionRow]:
    return list(read_questions(file, file.parent / "pictures"))


def test_both_forms(file: Path) -> None:
    turns = [
        {"from": "human", "value": "<image>\nHow many?"},
        {"from": "gpt", "value": "<SUMMARY> … </SUMMARY>"},
        {"from": "human", "value": "And now?"},
    ]
    written: list[Any] = [
        {"image": "a.png", "question": "How many?"},
        {"id": "1", "image": "a.png", "conversations": turns},
    ]
    file.write_text("\n\n".join(map(json.dumps, written)) + "\n", encoding="utf-8")
    picture = file.parent / "pictures" / "a.png"
    assert rows(file) == [
        QuestionRow(f"{file}, row {number}", picture, "How many?") for number in (1, 3)
    ]


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("{", "not JSON"),
        ("[]", "expected an object"),
        ('{"question": "?"}', "image is missing"),
        ('{"image": 3, "question": "?"}', "expected the path of a picture"),
        ('{"image": "a.png"}', "expected conversations as in .*, or a question"),
        ('{"image": "a.png", "question": " "}', "the question is missing or empty"),
        ('{"image": "a.png", "question": 3}', "the question is missing or empty"),
        (
            '{"image": "a.png", "conversations": [{"from": "gpt", "value": "!"}]}',
            "no turn from human",
        ),
        ('{"image": "b.png", "question": "?"}', "there is no such picture"),
    ],
)
def test_a_mistake_is_named_by_its_row(file: Path, row: str, said: str) -> None:
    file.write_text(f'{{"image": "a.png", "question": "?"}}\n{row}\n', encoding="utf-8")
    with pytest.raises(UserError, match=said) as raised:
        rows(file)
    assert str(raised.value).startswith(f"{file}, row 2: ")


def test_a_file_that_is_none(file: Path) -> None:
    with pytest.raises(UserError, match=r"questions.jsonl: No such file"):
        rows(file)
    file.write_bytes(b"\xff{}")
    with pytest.raises(UserError, match="not UTF-8"):
        rows(file)
