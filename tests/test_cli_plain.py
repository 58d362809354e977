"""An answer as plain text."""

from __future__ import annotations

import io

import pytest
from fakes import GOOD_ANSWER, FakeAssistant, Script
from PIL import Image

from llavacot_mlx.cli.plain import PlainView
from llavacot_mlx.cli.printable import printable, printable_line
from llavacot_mlx.cli.view import Show

PICTURE = Image.new("RGB", (8, 8))


def plain(monkeypatch: pytest.MonkeyPatch, text: str, show: Show = Show.STAGES) -> str:
    monkeypatch.setattr(FakeAssistant, "script", Script(text))
    out = io.StringIO()
    with PlainView(out, show) as view:
        for event in FakeAssistant.load("demo").stream(PICTURE, "?"):
            view.show(event)
    return out.getvalue()


def test_each_stage_has_a_heading_and_a_blank_line_before_the_next(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert plain(monkeypatch, GOOD_ANSWER) == (
        "SUMMARY\nI need to count the red circles.\n\n"
        "CAPTION\nTop left: a large red circle. Bottom right: a small red circle.\n\n"
        "REASONING\nOne red circle is at the top left and one at the bottom right. 1 + 1 = 2.\n\n"
        "CONCLUSION\n2\n"
    )


def test_all_adds_the_figures_and_the_text_outside_of_stages(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "Well.\n\n<CONCLUSION> 2 </CONCLUSION>\n\nBye.\n"
    shown = plain(monkeypatch, text, Show.ALL)
    assert shown.startswith("Well.\n\nCONCLUSION\n2\n\nBye.\n\nload 4.1 s · image 0.3 s · ")
    assert shown.endswith(" · peak 7.3 GB\n")
    assert plain(monkeypatch, text, Show.STAGES) == "CONCLUSION\n2\n"


def test_the_answer_alone_has_no_heading(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(monkeypatch, GOOD_ANSWER, Show.ANSWER) == "2\n"


def test_line_breaks_inside_a_stage_stay_and_those_around_it_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    text = "<CONCLUSION>\n\n first\n\nsecond  \n</CONCLUSION>"
    assert plain(monkeypatch, text) == "CONCLUSION\nfirst\n\nsecond\n"


def test_a_stage_that_was_not_closed_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(monkeypatch, "<SUMMARY> I will").splitlines() == [
        "SUMMARY",
        "I will",
        "(</SUMMARY> never came)",
    ]


def test_an_answer_without_stages_is_shown_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(monkeypatch, "Two circles.", Show.ALL).startswith("Two circles.\n\nload ")


def test_text_is_written_as_soon_as_it_is_known() -> None:
    out = io.StringIO()
    view = PlainView(out, Show.ALL)
    events = FakeAssistant.load("demo").stream(PICTURE, "?")
    while "I need" not in out.getvalue():
        view.show(next(events))
    assert out.getvalue() in ("SUMMARY\nI need", "SUMMARY\nI need to")


def test_control_characters_are_shown_and_not_obeyed(monkeypatch: pytest.MonkeyPatch) -> None:
    shown = plain(monkeypatch, "<CONCLUSION> \x1b[31mred\x1b[0m \x9b1m \x07 </CONCLUSION>")
    assert shown == "CONCLUSION\n␛[31mred␛[0m \\x9b1m ␇\n"


def test_printable_keeps_what_is_text() -> None:
    assert printable("a\tb\r\nc 漢字 👩‍👩‍👧 é [bold]") == "a\tb\nc 漢字 👩‍👩‍👧 é [bold]"
    assert printable("\rover\x00") == "␍over␀"
    assert printable_line(" two\n lines\x1b ") == "two lines␛"
