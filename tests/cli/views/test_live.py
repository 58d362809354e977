"""The live view, on a real pseudo-terminal."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from fakes import GOOD_ANSWER, RETRACING, ScriptedRound, command
from terminal_session import TerminalSession

pytestmark = pytest.mark.processes


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
    assert re.fullmatch(r".* s in all: start .* · load .* · image .* · first token .* s", shown[-2])
    assert re.fullmatch(r"\d+ tokens, .*/s · peak .*", shown[-1])


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
        waited = r"[\d.]+ s in all: start [\d.]+ s"  # the only thing that differs
        same, disturbed = (re.sub(waited, "", each.text) for each in (undisturbed, session))
        assert disturbed == same


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
        assert re.match(r"There are two\.\n[\d.]+ s in all: start ", session.text)


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


# -- searches -------------------------------------------------------------------------------------


def search(
    desk: Path,
    rounds: list[ScriptedRound],
    *flags: str,
    pause: float = 0.0,
    width: int = 80,
    height: int = 24,
) -> TerminalSession:
    words = ["--search", "swires", *flags]
    script = {"rounds": rounds, "pause": pause}
    return ask(desk, *words, script=script, width=width, height=height)


def captions(*texts: str, kept: int = 0) -> list[ScriptedRound]:
    return [
        {
            "stage": "caption",
            "texts": [f"<CAPTION> {text} </CAPTION>" for text in texts],
            "kept": [kept],
        }
    ]


def rows(session: TerminalSession) -> list[str]:
    """What stands on the terminal, without frames and runs of spaces."""
    return [" ".join(re.sub("[│╭╮╰╯─]", " ", line).split()) for line in session.text.splitlines()]


def test_a_search_leaves_its_candidates_then_the_chosen_answer(desk: Path) -> None:
    with search(desk, RETRACING) as session:
        assert session.finish() == 0
        shown = [row for row in rows(session) if row]
    assert shown[:23] == [
        "Summary · 1 candidate",
        "✓ 1 I count.",
        "kept 1 · 6 tokens",
        "Caption · 2 candidates",
        "✓ 2 0.61 One circle.",
        "3 0.20 A square.",
        "kept 2 · 14 tokens",
        "Reasoning · 2 candidates",
        "✓ 4 0.41 There is one.",
        "5 – not closed · None, so",
        "kept 4 · 11 tokens",
        "↩ not good enough: back to the captions, round 2",
        "Caption · 2 candidates · round 2",
        "✓ 6 0.93 Two circles.",
        "7 0.10 A line.",
        "kept 6 · 13 tokens",
        "Reasoning · 2 candidates · round 2",
        "✓ 8 0.97 1 + 1 = 2.",
        "9 0.03 1 + 2 = 3.",
        "kept 8, 4 · 18 tokens",
        "Conclusion · 2 candidates · round 2",
        "✓ 10 ←8 0.98 2",
        "11 ←4 0.40 1",
    ]
    assert "chosen:\n╭─ Summary ──" in session.text
    assert shown[-3] == (
        "11 candidates · 1 retrace · 74 tokens decoded, 70 reused, 160 without reuse"
    )
    assert " s in all: start " in shown[-2]
    assert session.text.index("chosen:") < session.text.index("┏━ Conclusion ━")
    assert "┃ 2  " in session.text


def test_candidates_grow_together_and_their_first_word_scrolls_out(desk: Path) -> None:
    texts = [" ".join(f"{name}{n}" for n in range(60)) for name in ("a", "b", "c")]
    with search(desk, captions(*texts), pause=0.01) as session:
        session.wait_for("a3 ")
        session.wait_for("c3 ")
        assert "writing 3 captions" in session.text
        session.wait_for("│   1       …")
        session.wait_for("b40")
        (title,) = [row for row in rows(session) if row.startswith("Caption")]
        assert title == "Caption · 3 candidates"
        assert session.finish() == 0
        assert "writing" not in session.text


def test_more_candidates_than_fit_are_counted(desk: Path) -> None:
    texts = [f"number {n} is one that is written" for n in range(1, 31)]
    with search(desk, captions(*texts), "--candidates", "30", pause=0.001, height=12) as session:
        # 12 rows less the status line and the frame; one of the 9 is for this
        session.wait_for("⋮ 22 more")
        assert "│    8" in session.text
        assert "│    9" not in session.text
        assert session.finish() == 0
        assert "⋮" not in session.text
        assert [row.split()[-6] for row in rows(session) if "is one that" in row] == [
            *map(str, range(1, 31)),
            "1",  # the one that was chosen
        ]


def test_candidates_that_wrote_the_same_are_shown_once(desk: Path) -> None:
    with search(desk, captions("A dot.", "A dot.", "A dot.", kept=1)) as session:
        assert session.finish() == 0
        assert session.text.partition("chosen:")[0].count("A dot.") == 1
        assert rows(session)[1:3] == ["all 3 wrote the same: A dot.", "1 ✓ 2 3"]


def test_two_unclosed_candidates_that_wrote_the_same_say_so(desk: Path) -> None:
    rounds: list[ScriptedRound] = [
        {"stage": "caption", "texts": ["<CAPTION> A dot"] * 2, "scores": [0.5, None], "kept": [0]}
    ]
    with search(desk, rounds) as session:
        assert session.finish() == 0
        assert rows(session)[1:3] == [
            "both wrote the same: A dot",
            "✓ 1 0.50 not closed 2 – not closed",
        ]


def test_whole_answers_tell_the_stage_that_they_write_and_then_their_conclusion(
    desk: Path,
) -> None:
    texts = [GOOD_ANSWER, GOOD_ANSWER.replace("<CONCLUSION> 2", "<CONCLUSION> 3")]
    rounds: list[ScriptedRound] = [
        {"stage": "summary", "texts": texts, "scores": [0.5, 0.5], "kept": [0]}
    ]
    script: dict[str, object] = {"rounds": rounds, "pause": 0.01}
    with ask(desk, "--search", "majority", script=script) as session:
        session.wait_for("caption · Top left")
        assert "writing 2 answers" in session.text
        assert session.finish() == 0
        assert rows(session)[:3] == [
            "Answer · 2 candidates · their conclusions",
            "✓ 1 0.50 2",
            "2 0.50 3",
        ]


def test_long_candidates_are_shown_from_where_they_differ(desk: Path) -> None:
    begin = "a square, " * 30
    with search(desk, captions(f"{begin}a dot", f"{begin}a dog")) as session:
        assert session.finish() == 0
        assert rows(session)[1:3] == ["✓ 1 …dot", "2 …dog"]


def test_an_interrupt_in_a_search_keeps_the_screen(desk: Path) -> None:
    with search(desk, RETRACING, pause=0.12) as session:
        session.wait_for("There is")
        session.press(b"\x03")
        assert session.finish() == 130
        assert "✓ 2  0.61 One circle." in session.text
        assert "4       There is" in session.text
        assert "interrupted ─╯" in session.text
        assert "chosen" not in session.text
        assert "stopped; the best path so far:" in session.text
        assert session.terminal.cursor_visible


def test_markup_and_escapes_in_a_candidate_are_shown_as_they_are(desk: Path) -> None:
    text = "[bold]2[/bold] :smile: \x1b[31mred\x1b]0;title\x07 漢字"
    with search(desk, captions(text, "a dot"), pause=0.01) as session:
        assert session.finish() == 0
        assert "✓ 1       [bold]2[/bold] :smile: ␛[31mred␛]0;title␇ 漢字" in session.text


@pytest.mark.parametrize("width", [2, 5, 12, 25])
def test_a_search_fits_a_very_narrow_window(desk: Path, width: int) -> None:
    wide = "漢字" * 30
    with search(desk, captions(wide, f"{wide}!"), pause=0.03, width=width, height=6) as session:
        assert session.finish() == 0
        before = "".join(session.text.split()).partition("chosen:")[0]
        assert before.count("Caption"[: width - 1]) == 1, session.text


def test_a_window_that_becomes_narrower_in_a_search(desk: Path) -> None:
    with search(desk, RETRACING, pause=0.03, width=90) as session:
        session.wait_for("One circle")
        session.resize(50, 24)
        assert session.finish() == 0
        assert session.text.count("Caption · 2 candidates ─") == 1


def test_the_stages_of_a_search_are_the_chosen_ones(desk: Path) -> None:
    with search(desk, RETRACING, "--show", "stages", pause=0.01) as session:
        session.wait_for("writing 2 captions")
        assert session.finish() == 0
        assert session.text.startswith("╭─ Summary ──")
        assert "A square." not in session.text
        assert "↩" not in session.text


@pytest.mark.parametrize("flags", [("--show", "answer"), ("--answer-only",)])
def test_the_answer_of_a_search_stands_alone(desk: Path, flags: tuple[str, ...]) -> None:
    with search(desk, RETRACING, *flags, pause=0.01) as session:
        session.wait_for("writing 2 reasonings")
        assert session.finish() == 0
        assert re.sub(r"[━┏┓┗┛┃\s]", "", session.text) in ("Conclusion28tokens", "2")


@pytest.mark.parametrize("columns", ["160", "80", "0", "x"])
@pytest.mark.parametrize("flags", [(), ("--search", "swires")])
def test_the_terminal_has_its_own_size_whatever_columns_says(
    desk: Path, columns: str, flags: tuple[str, ...]
) -> None:
    """`export COLUMNS` once stacked panels of another width, and 0 ended in a division by it."""
    script = {"rounds": RETRACING} if flags else {}
    size = {"width": 60, "height": 20}
    with ask(desk, *flags, script=script, **size) as session:
        assert session.finish() == 0
        usual = session.text
    told = {"COLUMNS": columns, "LINES": "7"}
    with ask(desk, *flags, script=script, environment=told, **size) as session:
        assert session.finish() == 0
        assert steady(session.text) == steady(usual)


def steady(text: str) -> str:
    """What is on a terminal without the seconds, which differ from run to run."""
    return re.sub(r"[0-9.]+( s|/s| [GM]B)", "", text)
