"""Rows of training data: both forms, and every mistake by its row and kind."""

from __future__ import annotations

import json
from typing import Any

import pytest

from llavacot_mlx.prompt.tokenizer import Turn
from llavacot_mlx.rows.conversation import Conversation, parse_row
from llavacot_mlx.rows.problem import ProblemKind, RowError

WHERE = "train.jsonl, row 3"


def parsed(row: Any) -> Conversation:
    return parse_row(json.dumps(row), WHERE)


def turns(*texts: str) -> list[dict[str, str]]:
    return [
        {"from": ("human", "gpt")[number % 2], "value": text} for number, text in enumerate(texts)
    ]


def messages(*contents: Any) -> list[dict[str, Any]]:
    return [
        {"role": ("user", "assistant")[number % 2], "content": content}
        for number, content in enumerate(contents)
    ]


def test_a_row_of_llava_cot_100k() -> None:
    row = {
        "id": "chart-7",
        "image": "chartqa/7.png",
        "conversations": turns("<image>\nHow many? ", " Two.\n", "And <image>now?", "Three."),
    }
    assert parsed(row) == Conversation(
        WHERE,
        "chart-7",
        "chartqa/7.png",
        (
            Turn("user", "How many?", images=1),
            Turn("assistant", "Two."),
            Turn("user", "And now?"),
            Turn("assistant", "Three."),
        ),
    )


@pytest.mark.parametrize(
    "content",
    [
        "How many?",
        "<image>How many?",
        [{"type": "image"}, {"type": "text", "text": "How many?"}],
        [{"type": "text", "text": "How "}, {"type": "text", "text": "many?"}],
    ],
)
def test_a_chat_of_mlx_lm(content: Any) -> None:
    row = {"messages": messages(content, "Two."), "images": ["a.png"]}
    asked = (Turn("user", "How many?", images=1), Turn("assistant", "Two."))
    assert parsed(row) == Conversation(WHERE, "", "a.png", asked)


@pytest.mark.parametrize("named", [{}, {"image": None}, {"images": []}, {"image": ""}])
def test_a_row_without_a_picture(named: dict[str, Any]) -> None:
    found = parsed({**named, "messages": messages("Hello?", "Yes.")})
    assert found.image is None
    assert [turn.images for turn in found.turns] == [0, 0]


@pytest.mark.parametrize(
    "named",
    [{"image": "a.png"}, {"image": ["a.png"]}, {"images": "a.png"}, {"images": ["a.png"]}],
)
def test_ways_to_name_the_picture(named: dict[str, Any]) -> None:
    assert parsed({**named, "conversations": turns("?", "!")}).image == "a.png"


def test_a_system_turn_comes_first() -> None:
    row = {"messages": [{"role": "system", "content": "Be brief."}, *messages("?", "!")]}
    row["image"] = "a.png"
    system, question, _ = parsed(row).turns
    assert system == Turn("system", "Be brief.")
    assert question.images == 1


def test_other_columns_and_numbers_as_names() -> None:
    assert parsed({"id": 12, "task": "vqa", "conversations": turns("?", "!")}).id == "12"


def test_a_tag_in_an_answer_is_no_mark() -> None:
    """Only a question's `<image>` stands for the picture."""
    assert parsed({"conversations": turns("?", "It says <image>.")}).answers == (
        "It says <image>.",
    )


NOT_JSON = ["{", "", '{"a": NaN', "[" * 100_000]
TWO = ProblemKind.SEVERAL_PICTURES
NO_CHAT = ProblemKind.NOT_A_CONVERSATION
MISTAKES: list[tuple[Any, ProblemKind, str]] = [
    ([], NO_CHAT, "expected an object"),
    ({"text": "a"}, NO_CHAT, "expected conversations"),
    ({"conversations": []}, NO_CHAT, "a list of turns"),
    ({"conversations": "?"}, NO_CHAT, "a list of turns"),
    ({"conversations": ["?"]}, NO_CHAT, "turn 1: expected an object"),
    ({"conversations": [{"from": "me", "value": "?"}]}, NO_CHAT, "from must be one of"),
    ({"conversations": [{"from": ["human"], "value": "?"}]}, NO_CHAT, "from must be one of"),
    ({"conversations": [{"from": "human"}]}, NO_CHAT, "turn 1: value must be a text"),
    ({"messages": messages("?", 3)}, NO_CHAT, "turn 2: content must be a text"),
    ({"messages": messages([{"type": "audio"}], "!")}, NO_CHAT, "a part is a text"),
    ({"messages": messages([{"type": "text"}], "!")}, NO_CHAT, "a part is a text"),
    ({"messages": messages([7], "!")}, NO_CHAT, "a part is a text"),
    ({"messages": messages("?", [{"type": "image"}])}, NO_CHAT, "belongs to a question"),
    ({"image": {"bytes": [1], "path": None}, "question": "?"}, NO_CHAT, "its bytes are in the row"),
    ({"question": "?", "answer": 0.5}, NO_CHAT, "answer must be a text"),
    ({"question": "?"}, NO_CHAT, "ends without an answer"),
    (
        {"image": "b.png", "messages": messages([{"type": "image", "image": "a.png"}], "!")},
        NO_CHAT,
        "different pictures",
    ),
    ({"conversations": turns("?")}, NO_CHAT, "ends without an answer"),
    ({"conversations": turns("?", "!", "??")}, NO_CHAT, "ends without an answer"),
    ({"conversations": turns("?", "!")[1:]}, NO_CHAT, "question 1: comes from the assistant"),
    ({"conversations": turns("?", "!")[:1] * 2}, NO_CHAT, "answer 1: comes from the user"),
    ({"messages": [{"role": "system", "content": "."}]}, NO_CHAT, "ends without an answer"),
    ({"conversations": turns(" \n", "!")}, NO_CHAT, "question 1: is empty"),
    ({"conversations": turns("?", "!", "?", "")}, NO_CHAT, "answer 2: is empty"),
    ({"image": "a.png", "conversations": turns("<image>", "!")}, NO_CHAT, "question 1: is empty"),
    ({"conversations": turns("<image>?", "!")}, NO_CHAT, "the row names none"),
    ({"image": 3, "conversations": turns("?", "!")}, NO_CHAT, "path of a picture"),
    ({"image": "a\0b", "conversations": turns("?", "!")}, NO_CHAT, "no file can have"),
    ({"image": "a\ud83d", "conversations": turns("?", "!")}, NO_CHAT, "no file can have"),
    ({"image": "a", "images": ["a"], "conversations": turns("?", "!")}, NO_CHAT, "only one"),
    ({"conversations": turns("?", "\ud83d")}, NO_CHAT, "half of a character"),
    ({"tools": [{}], "messages": messages("?", "!")}, NO_CHAT, "tools"),
    ({"images": ["a.png", "b.png"], "messages": messages("?", "!")}, TWO, "2 pictures"),
    ({"image": ["a.png", "b.png"], "conversations": turns("?", "!")}, TWO, "2 pictures"),
]


@pytest.mark.parametrize(
    ("line", "kind", "said"),
    [(line, ProblemKind.NOT_JSON, "not JSON") for line in NOT_JSON]
    + [(json.dumps(row), kind, said) for row, kind, said in MISTAKES],
)
def test_a_mistake_has_its_row_and_its_kind(line: str, kind: ProblemKind, said: str) -> None:
    with pytest.raises(RowError, match=said) as raised:
        parse_row(line, WHERE)
    assert raised.value.kind is kind
    assert str(raised.value) == f"{WHERE}: {raised.value.detail}"
