"""The live view, on a real pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from fakes import GOOD_ANSWER, command
from terminal_session import TerminalSession


def ask(
    desk: Path,
    *flags: str,
    script: dict[str, object] | None = None,
    width: int = 80,
    height: int = 24,
    environment: dict[str, str] | None = None,
) -> TerminalSession:
    words = [*command(desk, script), "ask", str(desk / "example.png"), "How many?"]
    return TerminalSession(
        [*words, "--model", str(desk / "demo"), *flags],
        width=width,
        height=height,
        environment=environment,
    )


def test_each_stage_is_a_panel_and_the_figures_come_last(desk: Path) -> None:
    with ask(desk) as session:
        assert session.finish() == 0
        shown = [line for line in session.text.splitlines() if line]
    titles = [line for line in shown if "─ " in line[:3] or "━ " in line[:3]]
    assert [title.split()[1] for title in titles] == [
        "Summary",
        "Caption",
        "Reasoning",
        "Conclusion",
    ]
    assert "┃ 2" in session.text
    assert re.fullmatch(
        r"load .* · image .* · first token .* · \d+ tokens, .*/s · peak .*", shown[-1]
    )


def test_the_panel_fills_while_the_text_comes(desk: Path) -> None:
    with ask(desk, script={"pause": 0.02}) as session:
        session.wait_for("I need to count")
        assert "red circles." not in session.text
        assert "⠋" in session.output.decode() or "⠙" in session.output.decode()
        assert not session.terminal.cursor_visible
        assert session.finish() == 0
        assert session.terminal.cursor_visible
        assert "writing" not in session.text  # what was being done is gone when all is done


def test_loading_is_said_before_anything_else(desk: Path) -> None:
    with ask(desk, script={"loading": 1.2}) as session:
        session.wait_for("loading demo · 1 s")
        assert session.finish() == 0


def test_an_answer_longer_than_the_screen_is_all_there_in_the_end(desk: Path) -> None:
    """While its stage is open, its last lines are shown; then it is printed whole."""
    sentences = [f"Sentence number {n}, which is there to be long." for n in range(60)]
    text = f"<REASONING> {' '.join(sentences)} </REASONING>\n<CONCLUSION> 2 </CONCLUSION>"
    with ask(desk, script={"text": text, "pause": 0.001}, height=10) as session:
        session.wait_for("lines above")
        assert session.finish() == 0
    whole = re.sub(r"[│\s]+", " ", session.text)
    assert " ".join(sentences) in whole
    assert session.text.count("Sentence number 7,") == 1
    assert "lines above" not in session.text


def test_an_interrupt_keeps_the_screen_and_exits_with_130(desk: Path) -> None:
    with ask(desk, script={"pause": 0.02}) as session:
        session.wait_for("Top left")
        session.press(b"\x03")
        assert session.finish() == 130
        assert "I need to count the red circles." in session.text
        assert "Top left" in session.text
        assert "interrupted ─╯" in session.text
        assert session.terminal.cursor_visible
        assert "Traceback" not in session.text


def test_keys_pressed_meanwhile_do_not_disturb_the_drawing(desk: Path) -> None:
    with ask(desk) as undisturbed:
        assert undisturbed.finish() == 0
    with ask(desk, script={"pause": 0.01}) as session:
        session.wait_for("I need")
        session.press(b"\n\nhello\n")
        assert session.finish() == 0
        assert session.text == undisturbed.text


def test_being_terminated_gives_the_cursor_back(desk: Path) -> None:
    with ask(desk, script={"pause": 0.02}) as session:
        session.wait_for("I need")
        os.kill(session.pid, signal.SIGTERM)
        assert session.finish() == 143
        assert session.terminal.cursor_visible


def test_a_narrower_window_gets_narrower_panels(desk: Path) -> None:
    with ask(desk, script={"pause": 0.02}, width=90) as session:
        session.wait_for("Top left")
        session.resize(50, 24)
        assert session.finish() == 0
        assert session.text.count("Caption") == 1
        after = session.text.partition("Caption")[2]
        assert "╭─ Reasoning ───────────────────────────────────╮" in after


def test_a_very_narrow_window_has_no_frames(desk: Path) -> None:
    with ask(desk, width=20, height=6) as session:
        assert session.finish() == 0
        assert "Conclusion\n2\n" in session.text
        assert "╭" not in session.text


def test_markup_and_escapes_in_an_answer_are_shown_as_they_are(desk: Path) -> None:
    text = "<CONCLUSION> [bold]2[/bold] :smile: \x1b[31mred\x1b]0;title\x07 漢字 </CONCLUSION>"
    with ask(desk, script={"text": text}) as session:
        assert session.finish() == 0
        assert "┃ [bold]2[/bold] :smile: ␛[31mred␛]0;title␇ 漢字 " in session.text


def test_text_outside_of_stages_is_shown_without_a_frame(desk: Path) -> None:
    with ask(desk, script={"text": f"Let me see.\n\n{GOOD_ANSWER}"}) as session:
        assert session.finish() == 0
        assert session.text.startswith("Let me see.\n╭─ Summary")


def test_an_answer_without_stages_is_shown_as_it_is(desk: Path) -> None:
    with ask(desk, script={"text": "There are two."}) as session:
        assert session.finish() == 0
        assert session.text.startswith("There are two.\nload ")


def test_a_stage_that_was_not_closed_says_so(desk: Path) -> None:
    with ask(desk, script={"text": "<SUMMARY> I will"}) as session:
        assert session.finish() == 0
        assert "</SUMMARY> never came ─╯" in session.text


def test_show_answer_shows_one_panel(desk: Path) -> None:
    with ask(desk, "--show", "answer", script={"pause": 0.01}) as session:
        session.wait_for("writing the reasoning")
        assert session.finish() == 0
        assert session.text.startswith("┏━ Conclusion")
        assert "load" not in session.text


def test_answer_only_leaves_nothing_but_the_answer(desk: Path) -> None:
    with ask(desk, "--answer-only", script={"pause": 0.01}) as session:
        session.wait_for("writing the reasoning")
        assert session.finish() == 0
        assert session.text.strip() == "2"


def test_an_error_in_the_middle_leaves_what_was_there(desk: Path) -> None:
    script: dict[str, object] = {"text": "<SUMMARY> I will", "os_error": "model.safetensors"}
    with ask(desk, script=script) as session:
        assert session.finish() == 1
        assert "│ I will" in session.text
        assert session.text.rstrip().endswith("error: model.safetensors: Input/output error")
        assert session.terminal.cursor_visible


@pytest.mark.parametrize("environment", [{"TERM": "dumb"}, {"TERM": ""}])
def test_a_terminal_that_cannot_move_its_cursor_gets_plain_text(
    desk: Path, environment: dict[str, str]
) -> None:
    with ask(desk, environment=environment) as session:
        assert session.finish() == 0
        assert session.text.startswith("SUMMARY\nI need to count the red circles.\n\nCAPTION\n")
        assert b"\x1b" not in session.output


def test_plain_means_no_control_codes_on_a_terminal_too(desk: Path) -> None:
    with ask(desk, "--plain") as session:
        assert session.finish() == 0
        assert b"\x1b" not in session.output


def test_no_color_means_no_colours(desk: Path) -> None:
    with ask(desk, environment={"NO_COLOR": "1"}) as session:
        assert session.finish() == 0
        colours = re.findall(rb"\x1b\[[0-9;]*3[0-7][0-9;]*m", session.output)
        assert not colours
    with ask(desk) as session:
        assert session.finish() == 0
        assert re.search(rb"\x1b\[[0-9;]*32[0-9;]*m", session.output)


def test_nothing_is_drawn_more_often_than_a_person_can_see(desk: Path) -> None:
    words = " ".join(["word"] * 400)
    script: dict[str, object] = {"text": f"<SUMMARY> {words} </SUMMARY>", "pause": 0.002}
    with ask(desk, script=script) as session:
        assert session.finish() == 0
    drawings = session.output.count(b"\x1b[?2026h")
    assert drawings < 100, "fewer than the 800 pieces of text that came"
