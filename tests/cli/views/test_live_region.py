"""Redrawing the last lines of a terminal."""

from __future__ import annotations

import io

from fakes import FakeTerminal
from hypothesis import given, settings
from hypothesis import strategies as st

from llavacot_mlx.cli.views.live_region import Line, LiveRegion

WIDTH, HEIGHT = 20, 6

texts = st.text(st.sampled_from("abc漢"), max_size=9)
drawings = st.tuples(st.lists(texts, max_size=HEIGHT), st.lists(texts, max_size=3 * HEIGHT))


def lines(texts: list[str]) -> list[Line]:
    return [Line(text, sum(2 if letter == "漢" else 1 for letter in text)) for text in texts]


@settings(deadline=None)  # machines that run tests are busy
@given(st.lists(drawings, max_size=8))
def test_the_terminal_shows_what_was_printed_for_good_and_then_the_region(
    steps: list[tuple[list[str], list[str]]],
) -> None:
    out = io.StringIO()
    region = LiveRegion(out)
    printed: list[str] = []
    drawn: list[str] = []
    for drawn, above in steps:
        region.draw(lines(drawn), width=WIDTH, height=HEIGHT, above=lines(above))
        printed += above
    terminal = FakeTerminal(WIDTH, HEIGHT)
    terminal.feed(out.getvalue())
    shown = terminal.lines
    assert shown[: len(printed) + len(drawn)] == [*printed, *drawn]
    assert not any(shown[len(printed) + len(drawn) :])


def test_only_the_line_that_changed_is_written() -> None:
    out = io.StringIO()
    region = LiveRegion(out)
    region.draw(lines(["title", "text", "1 s"]), width=WIDTH, height=HEIGHT)
    out.seek(0)
    out.truncate()
    region.draw(lines(["title", "text", "2 s"]), width=WIDTH, height=HEIGHT)
    assert "2 s" in out.getvalue()
    assert "title" not in out.getvalue()
    assert "text" not in out.getvalue()


def test_nothing_is_written_when_nothing_changed() -> None:
    out = io.StringIO()
    region = LiveRegion(out)
    region.draw(lines(["same"]), width=WIDTH, height=HEIGHT)
    before = out.getvalue()
    region.draw(lines(["same"]), width=WIDTH, height=HEIGHT)
    assert out.getvalue() == before


def test_a_narrower_window_folds_the_region_and_it_is_still_replaced_whole() -> None:
    out = io.StringIO()
    region = LiveRegion(out)
    terminal = FakeTerminal(WIDTH, HEIGHT)
    region.draw(lines(["a" * 16, "b" * 16]), width=WIDTH, height=HEIGHT, above=lines(["kept"]))
    terminal.feed(out.getvalue())
    terminal.narrow(10, HEIGHT)
    assert terminal.lines == ["kept", "a" * 10, "a" * 6, "b" * 10, "b" * 6]
    seen = len(out.getvalue())
    region.draw(lines(["c" * 9, "d" * 9]), width=10, height=HEIGHT)
    terminal.feed(out.getvalue()[seen:])
    assert terminal.lines == ["kept", "c" * 9, "d" * 9]


def test_a_lower_window_pushes_the_region_out_and_it_is_drawn_anew() -> None:
    out = io.StringIO()
    region = LiveRegion(out)
    terminal = FakeTerminal(WIDTH, HEIGHT)
    region.draw(lines(["1", "2", "3", "4", "5"]), width=WIDTH, height=HEIGHT)
    terminal.feed(out.getvalue())
    terminal.narrow(WIDTH, 3)
    assert terminal.screen == ["3", "4", "5"]
    seen = len(out.getvalue())
    region.draw(lines(["1", "4", "6"]), width=WIDTH, height=3)
    terminal.feed(out.getvalue()[seen:])
    assert terminal.screen == ["1", "4", "6"]
