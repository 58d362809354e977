"""Files of rows in every form that people have them: the same rows, or one sentence."""

from __future__ import annotations

import json
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from llavacot_mlx.errors import UserError
from llavacot_mlx.rows import row_file
from llavacot_mlx.rows.conversation import parse_question, parse_row
from llavacot_mlx.rows.problem import ProblemKind, RowError
from llavacot_mlx.rows.row_file import RowFile
from llavacot_mlx.search.question_file import read_questions
from llavacot_mlx.train.data.dataset import Dataset, open_splits

ROWS: list[dict[str, Any]] = [
    {
        "image": f"{number}.png",
        "conversations": [
            {"from": "human", "value": f'<image>\nHow many "x}}" in [{number}?'},
            {"from": "gpt", "value": "<SUMMARY> {\\ é \n </SUMMARY>"},
        ],
    }
    for number in range(4)
]


def dumped(form: str) -> str:
    lines = [json.dumps(row, ensure_ascii=False) for row in ROWS]
    indented = [json.dumps(row, indent=2) for row in ROWS]
    return {
        "lines": "\n".join(lines),
        "lines with blank ones": "\n\n" + "\n \n".join(lines) + "\n\n",
        "array on one line": json.dumps(ROWS),
        "indented array": json.dumps(ROWS, indent=4),
        "array of a row a line": "[\n" + ",\n".join(lines) + "\n]\n",
        "rows over several lines": "\n".join(indented),
        "rows with commas": ",\n".join(indented) + ",\n",
    }[form]


FORMS = [
    "lines",
    "lines with blank ones",
    "array on one line",
    "indented array",
    "array of a row a line",
    "rows over several lines",
    "rows with commas",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("ends", ["\n", "\r\n"])
def test_every_form_has_the_same_rows(form: str, encoding: str, ends: str, tmp_path: Path) -> None:
    """An array was an error a line, 562 of them."""
    file = tmp_path / "rows.json"
    file.write_bytes(dumped(form).replace("\n", ends).encode(encoding))
    rows = RowFile.open(file)
    assert [json.loads(rows.text(index)) for index in range(len(rows))] == ROWS
    dataset = Dataset.open(file, None)
    assert dataset.has_stages
    assert [dataset.conversation(n).image for n in (3, 0)] == ["3.png", "0.png"]
    for number in range(4):
        Image.new("L", (1, 1)).save(tmp_path / f"{number}.png")
    asked = [row.question for row in read_questions(file, tmp_path)]
    assert asked == [f'How many "x}}" in [{number}?' for number in range(4)]


def test_a_row_of_an_array_is_named_by_its_number(tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(json.dumps([ROWS[0], {"image": "a.png"}], indent=1))
    dataset = Dataset.open(file, None)
    with pytest.raises(UserError, match=r"rows\.json, row 2: expected conversations"):
        dataset.conversation(1)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (dumped("indented array")[:-30], "broken after row 3; was it cut off"),
        (dumped("array on one line")[:-1], "broken after row 4"),
        (dumped("array on one line") + "x", "broken after row 4"),
        ("[1, 2]", "broken after row 0"),
        ('[{"a": 1} {"b": 2}]', "after row 1, expected an object behind a comma"),
        ('[{"a": 1}, null, {"b": 2}]', "after row 1, expected an object, not 'null'"),
        (dumped("rows over several lines")[:-9], "row 4 has no end"),
        ("[]", "no row in it"),
        ("[", "broken after row 0"),
        (" \n", "no row in it"),
        ("", "no row in it"),
        ("PAR1\x15\x04", r"Parquet file; convert it: python3 -c .* \S*rows\.jsonl"),
    ],
)
def test_a_file_that_is_broken_is_one_sentence(text: str, said: str, tmp_path: Path) -> None:
    file = tmp_path / "rows.json"
    file.write_text(text)
    with pytest.raises(UserError, match=said) as raised:
        RowFile.open(file)
    assert str(raised.value).startswith(f"{file}: ")
    assert "\n" not in str(raised.value)


def test_one_broken_line_leaves_the_others(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for first in ("{", '{"a": "', '{"a": 1}}', "x"):
        file.write_text(f"{first}\n{json.dumps(ROWS[1])}\n")
        rows = RowFile.open(file)
        assert (len(rows), rows.number(1), json.loads(rows.text(1))) == (2, 2, ROWS[1])


@pytest.mark.processes
@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_around_the_rows_says_how_to_convert(indent: int | None, tmp_path: Path) -> None:
    """And the command does it."""
    file = tmp_path / "my rows.json"
    file.write_text(json.dumps({"version": 1, "data": ROWS}, indent=indent))
    with pytest.raises(UserError, match="one object whose list data seems to be") as raised:
        RowFile.open(file)
    words = shlex.split(str(raised.value).partition("convert it: ")[2])
    subprocess.run([sys.executable, *words[1:]], check=True)
    rows = RowFile.open(tmp_path / "my rows.jsonl")
    assert [json.loads(rows.text(index)) for index in range(len(rows))] == ROWS


def test_a_folder_of_json_files(tmp_path: Path) -> None:
    for name in ("train.json", "valid.json"):
        (tmp_path / name).write_text(json.dumps(ROWS))
    splits = open_splits(tmp_path, None)
    assert (len(splits.train), splits.valid and len(splits.valid), splits.test) == (4, 4, None)


MESSAGES = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]


def with_parts(*parts: dict[str, Any]) -> dict[str, Any]:
    user = {"role": "user", "content": [*parts, {"type": "text", "text": "?"}]}
    return {"messages": [user, MESSAGES[1]]}


@pytest.mark.parametrize(
    "row",
    [
        with_parts({"type": "image", "image": "a.png"}),
        with_parts({"type": "image", "path": "a.png"}),
        with_parts({"type": "image", "url": "a.png"}),
        with_parts({"type": "image_url", "image_url": {"url": "a.png"}}),
        with_parts({"type": "image_url", "image_url": "a.png"}),
        with_parts({"image": "a.png"}),
        with_parts({"type": "image", "image": {"path": "a.png", "bytes": None}}),
        with_parts({"type": "image", "text": None, "image": "a.png", "index": 0}),
        {**with_parts({"type": "image"}), "images": ["a.png"]},
        {**with_parts({"type": "image", "index": 0, "text": None}), "images": ["a.png"]},
        {**with_parts({"type": "image", "image": "a.png"}), "images": ["a.png"]},
        {"images": [{"path": "a.png", "bytes": None}], "messages": MESSAGES},
        {"image": {"path": "a.png", "bytes": None}, "messages": MESSAGES},
        {"image": ["a.png"], "messages": MESSAGES},
        {"image": "a.png", "question": "?", "answer": "!"},
        {"image": ["a.png"], "question": "<image>?", "answer": " ! "},
        {"image": "a.png", "prompt": "?", "completion": "!"},
        {"image": "a.png", "query": "?", "response": "!"},
        {"image": "a.png", "prompt": MESSAGES[:1], "completion": MESSAGES[1:]},
        {
            "image": "a.png",
            "conversations": [
                {"from": "user", "value": "<image>?"},
                {"from": "assistant", "value": "!"},
            ],
        },
        {"image": "a.png", "conversations": MESSAGES},
        {
            "image": "a.png",
            "messages": [{"from": "Human", "value": "?"}, {"role": "model", "content": "!"}],
        },
    ],
)
def test_ways_to_write_a_row(row: dict[str, Any]) -> None:
    """The same for training and for `calibrate`, which had readers of their own."""
    line = json.dumps(row)
    conversation = parse_row(line, "here")
    assert conversation.image == "a.png"
    assert [turn.text for turn in conversation.turns] == ["?", "!"]
    asked = parse_question(line, "here")
    assert (asked.image, asked.text) == ("a.png", "?")


@pytest.mark.parametrize(
    "written", ["{}/a b.png", r"sub\a b.png", "file://{}/sub/a%20b.png", "sub/a\u202fb.png"]
)
def test_images_of_rows_are_found_as_those_of_the_command_line(
    written: str, tmp_path: Path
) -> None:
    picture = tmp_path / "sub" / "a b.png"
    picture.parent.mkdir()
    Image.new("L", (3, 3)).save(picture)
    name = written.format(tmp_path if "file" in written else picture.parent)
    file = tmp_path / "rows.jsonl"
    file.write_text(json.dumps({"image": name, "question": "?", "answer": "!"}))
    assert Dataset.open(file, tmp_path).image_path(0) == picture
    assert [row.image for row in read_questions(file, tmp_path)] == [picture]


@pytest.mark.parametrize("form", ["lines", "array"])
def test_a_row_that_is_too_large(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A row of 100 MB took over 4 GB; the rows around it are read."""
    monkeypatch.setattr(row_file, "_MAX_ROW_BYTES", 300)
    rows = [{"question": text, "image": "a.png"} for text in ("a", "b" * 1000, "c")]
    lines = [json.dumps(row) for row in rows]
    text = "\n".join(lines) if form == "lines" else f"[{','.join(lines)}]"
    file = tmp_path / "rows.json"
    file.write_text(text)
    found = RowFile.open(file)
    assert len(found) == 3
    assert [found.number(index) for index in range(3)] == [1, 2, 3]
    assert json.loads(found.text(0)) == rows[0]
    assert json.loads(found.text(2)) == rows[2]
    with pytest.raises(RowError, match=r"row 2: more than 0 MB") as problem:
        found.text(1)
    assert problem.value.kind is ProblemKind.TOO_LONG
