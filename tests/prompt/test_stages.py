"""Stages are found in text that arrives in pieces, and no text is lost."""

from __future__ import annotations

import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from stage_texts import TEXTS, joined

from llavacot_mlx.prompt.stages import Closed, Opened, Stage, StageEvent, StageParser, Text

SUMMARY, CAPTION, REASONING, CONCLUSION = Stage


def parse(*pieces: str, exact: bool = False) -> list[StageEvent]:
    """The events of a text in `pieces`, adjacent text of one stage joined."""
    parser = StageParser(exact=exact)
    return joined([*(e for piece in pieces for e in parser.feed(piece)), *parser.finish()])


def written(events: list[StageEvent]) -> str:
    """The text that the events came from."""
    return "".join(e.text if isinstance(e, Text) else e.written for e in events)


@st.composite
def texts_in_chunks(draw: st.DrawFn) -> list[str]:
    text = draw(TEXTS)
    cuts = sorted(draw(st.sets(st.integers(0, len(text)), max_size=12)))
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]


@given(texts_in_chunks())
@example(["<SUMMARY>a</SUM", "MARY>b"])
@example(["(Here begins the ", "SUMMARY stage)a(Here ends", " the SUMMARY stage)"])
@example(["<SUMMARY> a\n", " ", "<CAP", "TION> b"])
@example(["<SUMMARY><SUMMARY", "></SUMMARY>"])
def test_any_chunking_gives_the_same_stages(pieces: list[str]) -> None:
    assert parse(*pieces) == parse("".join(pieces))
    assert parse(*pieces, exact=True) == parse("".join(pieces), exact=True)


@given(TEXTS)
def test_a_character_at_a_time_gives_the_same_stages(text: str) -> None:
    assert parse(*text) == parse(text)


@given(TEXTS)
def test_nothing_is_lost(text: str) -> None:
    """Tags and text, put together again in the order of the events, are what was fed."""
    assert written(parse(text)) == text
    assert written(parse(text, exact=True)) == text


@given(TEXTS)
def test_the_events_of_stages_are_paired(text: str) -> None:
    """Each stage is opened and then closed, and text names the stage that is open."""
    current: Stage | None = None
    for event in parse(text):
        if isinstance(event, Opened):
            assert current is None
            current = event.stage
        elif isinstance(event, Closed):
            assert current is event.stage
            current = None
        else:
            assert event.stage is current
            assert event.text
    assert current is None


GOOD = (
    "<SUMMARY> a </SUMMARY>\n\n<CAPTION> b </CAPTION>\n\n"
    "<REASONING> c\nd </REASONING>\n\n<CONCLUSION> 2 </CONCLUSION>"
)
GOOD_EVENTS = [
    *(Opened(SUMMARY), Text(SUMMARY, " a "), Closed(SUMMARY, by_tag=True), Text(None, "\n\n")),
    *(Opened(CAPTION), Text(CAPTION, " b "), Closed(CAPTION, by_tag=True), Text(None, "\n\n")),
    *(Opened(REASONING), Text(REASONING, " c\nd "), Closed(REASONING, by_tag=True)),
    Text(None, "\n\n"),
    *(Opened(CONCLUSION), Text(CONCLUSION, " 2 "), Closed(CONCLUSION, by_tag=True)),
]


def test_a_good_answer() -> None:
    assert parse(GOOD) == GOOD_EVENTS


def test_the_other_spelling_of_the_tags() -> None:
    """The published weights sometimes write "(Here begins the SUMMARY stage)" for "<SUMMARY>"."""
    spoken = re.sub(r"</(\w+)>", r"(Here ends the \1 stage)", GOOD)
    spoken = re.sub(r"<(\w+)>", r"(Here begins the \1 stage)", spoken)
    assert "<" not in spoken
    assert parse(spoken) == GOOD_EVENTS
    assert parse("(Here begins the SUMMARY stage)a</SUMMARY>") == parse("<SUMMARY>a</SUMMARY>")


@pytest.mark.parametrize(
    "text",
    [
        "<REASONING>the sign says </CONCLUSION> and more</REASONING>",
        "<REASONING>the sign says\n</CONCLUSION>\n<SUMMARY> and more</REASONING>",
        "<REASONING>a <REASONING> b</REASONING>",
        "<REASONING>it goes on: <CONCLUSION> 3 </REASONING>",
        "<REASONING>\n<CAPTION> b</REASONING>",
    ],
)
def test_a_foreign_tag_inside_a_stage_is_text(text: str) -> None:
    """A caption may quote a sign with a tag on it, which neither ends nor opens a stage."""
    quoted = text.removeprefix("<REASONING>").removesuffix("</REASONING>")
    stage = REASONING
    assert parse(text) == [Opened(stage), Text(stage, quoted), Closed(stage, by_tag=True)]


def test_a_closing_tag_outside_a_stage_is_text() -> None:
    assert parse("a</SUMMARY>b") == [Text(None, "a</SUMMARY>b")]


@pytest.mark.parametrize("space", ["\n", "\n\n", "\n  ", "\n\t"])
def test_a_forgotten_closing_tag(space: str) -> None:
    """The next stage's opening tag at the beginning of a line ends the stage before it."""
    assert parse(f"<CAPTION> b{space}<REASONING> c </REASONING>") == [
        Opened(CAPTION),
        Text(CAPTION, f" b{space}"),
        Closed(CAPTION, by_tag=False),
        Opened(REASONING),
        Text(REASONING, " c "),
        Closed(REASONING, by_tag=True),
    ]


@pytest.mark.parametrize(
    ("text", "piece"),
    [("<CAPTION> b", ""), ("<CAPTION> b</CAPT", "</CAPT"), ("<CAPTION> b <REASON", "<REASON")],
)
def test_a_stage_that_is_open_at_the_end(text: str, piece: str) -> None:
    """The token limit may come anywhere, amid a tag too; a piece of a tag is no text."""
    events = parse(text)
    assert events == [
        Opened(CAPTION),
        Text(CAPTION, text.removeprefix("<CAPTION>").removesuffix(piece)),
        Closed(CAPTION, by_tag=False, note="a tag was cut off" if piece else ""),
    ]
    assert written(events) == text
    assert parse(text, exact=True)[1] == Text(CAPTION, text.removeprefix("<CAPTION>"))


@given(TEXTS, st.sampled_from([SUMMARY, CAPTION, REASONING]))
@example(' A sign: "<conclusion> EXIT </conclusion>", `<caption>`, `</caption>` ', CAPTION)
@example(" The sign:\n**CONCLUSION:**\n<CONCLUSION> EXIT </CONCLUSION>\n ", CAPTION)
def test_what_a_closed_stage_quotes_stays_its_text(text: str, stage: Stage) -> None:
    """What is read as trained is not read otherwise because other spellings are understood."""
    whole = f"{stage.opening}{text}{stage.closing}\n\n<CONCLUSION> 6 </CONCLUSION>"
    as_trained = parse(whole, exact=True)
    quoted = [Opened(stage), *([Text(stage, text)] if text else []), Closed(stage, by_tag=True)]
    if as_trained[: len(quoted)] == quoted:
        assert parse(whole) == as_trained


def test_text_without_stages() -> None:
    assert parse("Just", " an answer < 3 (Here.") == [Text(None, "Just an answer < 3 (Here.")]
    assert parse() == parse("") == []


def test_text_is_not_held_back() -> None:
    """Text that cannot become a tag is returned at once, and text that may is held back."""
    parser = StageParser()
    assert parser.feed("<SUMMARY> 1 < 2") == [Opened(SUMMARY), Text(SUMMARY, " 1 < 2")]
    assert parser.feed(" and (He") == [Text(SUMMARY, " and ")]
    assert parser.feed("y) </SUMMAR") == [Text(SUMMARY, "(Hey) ")]
    assert parser.feed("Y") == []
    assert parser.feed("> ") == [Closed(SUMMARY, by_tag=True), Text(None, " ")]


def test_which_stage_follows_which() -> None:
    assert [stage.following for stage in Stage] == [CAPTION, REASONING, CONCLUSION, None]
