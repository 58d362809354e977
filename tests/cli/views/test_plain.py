"""An answer as plain text."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Sequence

import pytest
from fakes import GOOD_ANSWER, RETRACING, FakeAssistant, Script, ScriptedRound
from PIL import Image

from llavacot_mlx.cli.printable import printable, printable_line
from llavacot_mlx.cli.views.answer_view import ShowLevel
from llavacot_mlx.cli.views.plain import PlainView
from llavacot_mlx.plan.plan import Settings, Unit, make_plan
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.request import Request
from llavacot_mlx.trace.events import CandidateStarted, CandidateText

PICTURE = Image.new("RGB", (8, 8))


def plain(monkeypatch: pytest.MonkeyPatch, text: str, show: ShowLevel = ShowLevel.STAGES) -> str:
    monkeypatch.setattr(FakeAssistant, "script", Script(text))
    out = io.StringIO()
    with PlainView(out, show) as view:
        for event in FakeAssistant.load("demo").stream(
            Request(PICTURE, "?", make_plan(Settings()))
        ):
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
    shown = plain(monkeypatch, text, ShowLevel.ALL)
    assert shown.startswith("Well.\n\nCONCLUSION\n2\n\nBye.\n\n4.1 s in all: load 4.1 s · ")
    assert shown.endswith(" · peak 7.3 GB\n")
    assert plain(monkeypatch, text, ShowLevel.STAGES) == "CONCLUSION\n2\n"


def test_the_answer_alone_has_no_heading(monkeypatch: pytest.MonkeyPatch) -> None:
    assert plain(monkeypatch, GOOD_ANSWER, ShowLevel.ANSWER) == "2\n"


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
    assert plain(monkeypatch, "Two circles.", ShowLevel.ALL).startswith(
        "Two circles.\n\n4.1 s in all: load "
    )


def test_text_is_written_as_soon_as_it_is_known() -> None:
    out = io.StringIO()
    view = PlainView(out, ShowLevel.ALL)
    events = FakeAssistant.load("demo").stream(Request(PICTURE, "?", make_plan(Settings())))
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


# -- searches -------------------------------------------------------------------------------------


def searched(
    monkeypatch: pytest.MonkeyPatch,
    rounds: Sequence[ScriptedRound],
    show: ShowLevel = ShowLevel.ALL,
    unit: Unit = Unit.STAGE,
) -> str:
    monkeypatch.setattr(FakeAssistant, "script", Script(rounds=tuple(rounds)))
    out = io.StringIO()
    with PlainView(out, show, unit) as view:
        for event in FakeAssistant.load("demo").stream(
            Request(PICTURE, "?", make_plan(Settings()))
        ):
            view.show(event)
    return out.getvalue()


def test_a_search_is_told_candidate_by_candidate_and_then_the_answer(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert searched(monkeypatch, RETRACING).split("\n\n") == [
        "Summary · 1 candidate\n1 kept: I count.",
        "Caption · 2 candidates\n2 0.61 kept: One circle.\n3 0.20 dropped: A square.",
        "Reasoning · 2 candidates\n4 0.41 kept: There is one.\n5 – unclosed dropped: None, so",
        "↩ not good enough: back to the captions, round 2",
        "Caption · 2 candidates · round 2\n6 0.93 kept: Two circles.\n7 0.10 dropped: A line.",
        "Reasoning · 2 candidates · round 2\n"
        "8 0.97 kept: 1 + 1 = 2.\n9 0.03 dropped: 1 + 2 = 3.\nkept from before: 4",
        "Conclusion · 2 candidates · round 2\n10 from 8 0.98 kept: 2\n11 from 4 0.40 dropped: 1",
        "SUMMARY\nI count.",
        "CAPTION\nTwo circles.",
        "REASONING\n1 + 1 = 2.",
        "CONCLUSION\n2",
        # 7 prefilled + 74 decoded + 9 judged + 70 reused
        "11 candidates · 1 retrace · 74 tokens decoded, 70 reused, 160 without reuse\n"
        "4.1 s in all: load 4.1 s · image 0.3 s · first token 1.5 s\n"
        "34 tokens, 39/s · peak 7.3 GB\n",
    ]


@pytest.mark.parametrize(
    ("show", "shown"),
    [
        (
            ShowLevel.STAGES,
            "SUMMARY\nI count.\n\nCAPTION\nTwo circles.\n\n"
            "REASONING\n1 + 1 = 2.\n\nCONCLUSION\n2\n",
        ),
        (ShowLevel.ANSWER, "2\n"),
    ],
)
def test_of_a_search_the_stages_and_the_answer_are_the_chosen_ones(
    monkeypatch: pytest.MonkeyPatch, show: ShowLevel, shown: str
) -> None:
    assert searched(monkeypatch, RETRACING, show) == shown


def test_whole_answers_are_told_by_what_they_conclude(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = [GOOD_ANSWER, GOOD_ANSWER.replace("<CONCLUSION> 2", "<CONCLUSION> 3"), "<SUMMARY> Oh"]
    rounds: list[ScriptedRound] = [
        {"stage": "summary", "texts": texts, "scores": [0.33, 0.33, None], "kept": [0]}
    ]
    shown = searched(monkeypatch, rounds, unit=Unit.ANSWER)
    assert shown.startswith(
        "Answer · 3 candidates · their conclusions\n"
        "1 0.33 kept: 2\n2 0.33 dropped: 3\n"
        "3 – unclosed dropped: no conclusion; summary: Oh\n\nSUMMARY\n"
    )


def test_equal_answers_are_told_by_what_they_conclude(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[ScriptedRound] = [
        {"stage": "summary", "texts": [GOOD_ANSWER] * 2, "kept": [0]},
    ]
    shown = searched(monkeypatch, rounds, unit=Unit.ANSWER)
    assert shown.splitlines()[1] == "both wrote the same: 2"


@pytest.mark.parametrize(
    ("judge", "legend"),
    [
        ("self", "scores by self: the model's own probability that the text is right, 0 to 1"),
        ("logprob", "scores by logprob: mean log-probability of its tokens, at most 0"),
        ("pairwise", "scores by pairwise: share of the comparisons that it won, 0 to 1"),
        (
            "majority",
            "scores by majority: share of the candidates with the same conclusion, 0 to 1",
        ),
        ("/models/some-judge", "scores by some-judge: higher is better"),
    ],
)
def test_what_scores_mean_is_told_once(
    judge: str, legend: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    rounds: list[ScriptedRound] = [
        {"stage": stage, "texts": ["x"], "scores": [0.5], "judge": judge, "kept": [at]}
        for at, stage in enumerate(["caption", "reasoning"])
    ]
    first, _, second = searched(monkeypatch, rounds).partition("Reasoning")
    assert first.splitlines()[-2:] == [f"({legend})", ""]
    assert "scores by" not in second


def test_each_judge_has_its_legend(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[ScriptedRound] = [
        {"stage": "caption", "texts": ["x"], "scores": [0.5], "judge": "self", "kept": [0]},
        {"stage": "reasoning", "texts": ["x"], "scores": [-0.5], "judge": "logprob", "kept": [1]},
    ]
    shown = searched(monkeypatch, rounds)
    assert shown.index("(scores by self") < shown.index("Reasoning")
    assert shown.index("Reasoning") < shown.index("(scores by logprob")


def test_candidates_that_wrote_the_same_are_told_once(monkeypatch: pytest.MonkeyPatch) -> None:
    rounds: list[ScriptedRound] = [
        {"stage": "caption", "texts": ["<CAPTION> A dot. </CAPTION>"] * 3, "kept": [0, 2]}
    ]
    assert searched(monkeypatch, rounds).startswith(
        "Caption · 3 candidates\nall 3 wrote the same: A dot.\n1 kept\n2 dropped\n3 kept\n\n"
    )


def test_long_candidates_are_told_from_where_they_differ(monkeypatch: pytest.MonkeyPatch) -> None:
    begin = "a square, " * 12
    texts = [f"<CAPTION> {begin}a {what} {'and more ' * 20}</CAPTION>" for what in ("dot", "dog")]
    shown = searched(monkeypatch, [{"stage": "caption", "texts": texts, "kept": [0]}])
    first, second = shown.splitlines()[1:3]
    assert first.startswith("1 kept: …dot and more")
    assert second.startswith("2 dropped: …dog and more")
    assert [len(first), first[-1], len(second)] == [80, "…", 80]


def test_candidates_cannot_write_to_the_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    text = "<CAPTION> \x1b[31mred\x1b]0;title\x07\r\n [bold]x[/bold]</CAPTION>"
    shown = searched(monkeypatch, [{"stage": "caption", "texts": [text], "kept": [0]}])
    assert "1 kept: ␛[31mred␛]0;title␇ [bold]x[/bold]\n" in shown
    assert not set(shown) & {"\x1b", "\x07", "\r"}


def test_a_stage_that_its_parent_left_open_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """When a tag was forgotten, a stage is over where the next begins, inside a candidate."""
    rounds: list[ScriptedRound] = [
        {"stage": "summary", "texts": ["<SUMMARY> I count.\n<CAPTION> A"], "kept": [0]},
        {"stage": "caption", "texts": [" dot. </CAPTION>"], "kept": [1]},
    ]
    assert "2 kept: dot.\n" in searched(monkeypatch, rounds)


def test_an_interrupted_round_is_told_as_far_as_it_got() -> None:
    out = io.StringIO()
    with contextlib.suppress(KeyboardInterrupt), PlainView(out, ShowLevel.ALL) as view:
        view.show(CandidateStarted(0, None, Stage.SUMMARY, 0))
        view.show(CandidateText(0, "<SUMMARY> I co"))
        raise KeyboardInterrupt
    assert out.getvalue() == "Summary · 1 candidate\n1 unfinished: I co\n"
