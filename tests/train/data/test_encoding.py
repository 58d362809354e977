"""What is learned: exactly the answers, as the ids that inference sees, each token of its stage."""

from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llama_vocabulary import LLAMA

from llavacot_mlx import demo
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.demo.world import questions, scene
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.prompt.tokenizer import Tokenizer, Turn
from llavacot_mlx.rows.conversation import Conversation
from llavacot_mlx.trace.stage_reader import StageReader
from llavacot_mlx.train.data.encoding import answer_token_kinds, encode
from llavacot_mlx.train.data.sample import Sample, TokenKind


@pytest.fixture(scope="module", params=["demo", *LLAMA])
def tokenizer(
    request: pytest.FixtureRequest, llama: Callable[[str], tuple[Path, Tokenizer]]
) -> Tokenizer:
    if request.param in LLAMA:
        return llama(request.param)[1]
    return Tokenizer.load(demo.model_path(), load_config(demo.model_path()))


def conversation(*texts: str, image: str | None = "a.png") -> Conversation:
    turns = [
        Turn(("user", "assistant")[place % 2], text, images=int(not place and image is not None))
        for place, text in enumerate(texts)
    ]
    return Conversation("rows, row 1", "", image, tuple(turns))


Piece = tuple[str, TokenKind]


def tagged(texts: dict[Stage, str], between: str = "\n\n") -> list[Piece]:
    """An answer in pieces whose token_kinds are known."""
    pieces: list[Piece] = []
    for stage, text in texts.items():
        pieces += [(between, TokenKind.TAGS)] if pieces else []
        pieces += [(stage.opening, TokenKind.TAGS), (text, TokenKind[stage.name])]
        pieces.append((stage.closing, TokenKind.TAGS))
    return pieces


def text_of(pieces: list[Piece]) -> str:
    return "".join(text for text, _ in pieces)


def expected_token_kinds(pieces: list[Piece], tokenizer: Tokenizer) -> list[TokenKind]:
    """By the places of the tokens that the tokenizer's library tells."""
    answer = text_of(pieces)
    characters = [target for text, target in pieces for _ in text]
    offsets: list[tuple[int, int]] = tokenizer._tokenizer.encode(
        answer, add_special_tokens=False
    ).offsets
    token_kinds = []
    for start, stop in offsets:
        visible = [place for place in range(start, stop) if not answer[place].isspace()]
        token_kinds.append(characters[visible[0] if visible else start])
    return token_kinds


# Letters of one to four bytes, what shares tokens with tags, and white space of several kinds.
texts = st.text("ab Z.,:'\"0123\n\t>/=Üß這🙂\u3000", max_size=40)
said = texts.map(str.strip).filter(bool)
answers = st.fixed_dictionaries(dict.fromkeys(Stage, texts)).map(tagged)
plain = said.map(lambda text: [(text, TokenKind.TAGS)])
replies = st.lists(answers | plain, min_size=1, max_size=3)


@settings(max_examples=60, deadline=None)
@given(replies=replies, asked=st.lists(said, min_size=3, max_size=3), has_picture=st.booleans())
def test_every_answer_is_learned_and_nothing_else(
    tokenizer: Tokenizer, replies: list[list[Piece]], asked: list[str], has_picture: bool
) -> None:
    turns: list[str] = []
    for question, reply in zip(asked, replies, strict=False):
        turns += [question, text_of(reply)]
    whole = conversation(*turns, image="a.png" if has_picture else None)
    sample = encode(whole, tokenizer, None)
    done = 0
    for place, reply in zip(range(1, len(turns), 2), replies, strict=True):
        # Up to an answer the ids are what inference is given, earlier answers and all.
        prompt = tokenizer.prompt(whole.turns[:place])
        assert sample.ids[: len(prompt)].tolist() == prompt
        assert set(sample.token_kinds[done : len(prompt)]) == {TokenKind.MASKED}
        ids = tokenizer.encode(text_of(reply))
        done = len(prompt) + len(ids) + 1
        assert sample.ids[len(prompt) : done - 1].tolist() == ids
        assert sample.ids[done - 1] in tokenizer.stop_ids
        expected = [*expected_token_kinds(reply, tokenizer), TokenKind.TAGS]
        assert sample.token_kinds[len(prompt) : done].tolist() == expected
    assert len(sample.ids) == len(sample.token_kinds) == done
    assert sample.ids.dtype == np.int32
    assert sample.token_kinds.dtype == np.uint8


def said_as(sample: Sample, target: TokenKind, tokenizer: Tokenizer) -> str:
    return tokenizer.decode(sample.ids[sample.token_kinds == target].tolist())


def test_a_sample_by_eye(tokenizer: Tokenizer, tmp_path: Path) -> None:
    reply = text_of(
        tagged(
            {
                Stage.SUMMARY: " I count. ",
                Stage.CAPTION: " Two. ",
                Stage.REASONING: " 1, 2. ",
                Stage.CONCLUSION: " 2 ",
            }
        )
    )
    sample = encode(conversation("How many?", reply), tokenizer, tmp_path)
    assert sample.where == "rows, row 1"
    assert sample.image == tmp_path / "a.png"
    assert said_as(sample, TokenKind.MASKED, tokenizer) == "user\n\nHow many?assistant\n\n"
    assert said_as(sample, TokenKind.SUMMARY, tokenizer) == " I count."
    assert said_as(sample, TokenKind.CAPTION, tokenizer) == " Two."
    assert said_as(sample, TokenKind.REASONING, tokenizer) == " 1, 2."
    assert said_as(sample, TokenKind.CONCLUSION, tokenizer) == " 2"
    assert said_as(sample, TokenKind.TAGS, tokenizer) == (
        "<SUMMARY> </SUMMARY>\n\n<CAPTION> </CAPTION>\n\n<REASONING> </REASONING>\n\n"
        "<CONCLUSION> </CONCLUSION>"
    )


def test_the_pictures_token_and_the_line_breaks_before_an_answer_are_masked(
    tokenizer: Tokenizer,
) -> None:
    """The published collator learns the line breaks, which at inference are given."""
    sample = encode(conversation("?", "!", "??", "!!"), tokenizer, None)
    (picture,) = np.flatnonzero(sample.ids == tokenizer._image_id)
    assert sample.token_kinds[picture] == TokenKind.MASKED
    learned = sample.ids[sample.token_kinds != TokenKind.MASKED]
    assert set(tokenizer.encode("\n\n")).isdisjoint(learned.tolist())


@pytest.mark.parametrize(
    ("pieces", "why"),
    [
        ([("<SUMMARY>", 5), (" a\n", 1), ("<CAPTION>", 5), (" b", 2)], "a forgotten closing tag"),
        ([("<CAPTION>", 5), ("a <SUMMARY> b", 2), ("</CAPTION>", 5)], "a tag that is quoted"),
        ([("</SUMMARY> a ", 5), ("<CAPTION>", 5), ("b", 2)], "a closing tag without an opening"),
        (
            [
                ("(Here begins the SUMMARY stage)", 5),
                (" (a) ", 1),
                ("(Here ends the SUMMARY stage)", 5),
            ],
            "the other spelling",
        ),
        ([("<SUMMARY>", 5), ("<", 1)], "what looks like a tag's beginning"),
        ([("<SUMMARY>", 5), ("</SUMMARY>", 5), ("\n", 5)], "nothing inside"),
    ],
)
def test_odd_answers(tokenizer: Tokenizer, pieces: list[Any], why: str) -> None:
    known = [(text, TokenKind(target)) for text, target in pieces]
    answer = text_of(known)
    found = answer_token_kinds(answer, tokenizer.encode(answer), tokenizer)
    assert found.tolist() == expected_token_kinds(known, tokenizer), why


def test_the_stages_are_those_that_are_read_from_the_answer(tokenizer: Tokenizer) -> None:
    """What generation reads from the ids, and what training calls them, is the same."""
    for number in range(10):
        content = scene(number)
        for asked in questions(content, random.Random(number)):
            ids = tokenizer.encode(asked.reply())
            token_kinds = answer_token_kinds(asked.reply(), ids, tokenizer)
            reader = StageReader.after(tokenizer, ids)
            reader.finish()
            for record in reader.records:
                of_stage = [
                    token
                    for token, target in zip(ids, token_kinds, strict=True)
                    if target == TokenKind[record.stage.name]
                ]
                assert tokenizer.decode(of_stage).strip() == record.text


def test_a_conversation_begins_with_a_system_turn(tokenizer: Tokenizer) -> None:
    turns = (Turn("system", "Be brief."), Turn("user", "?"), Turn("assistant", "!"))
    sample = encode(Conversation("", "", None, turns), tokenizer, None)
    prompt = tokenizer.prompt(turns[:2])
    assert sample.ids[: len(prompt)].tolist() == prompt
    assert np.flatnonzero(sample.token_kinds).tolist() == [len(prompt), len(prompt) + 1]
    assert sample.image is None
