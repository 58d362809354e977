"""What is said about an answer's end has the true reason."""

from __future__ import annotations

from dataclasses import replace

import pytest
from traces import events_of, greedy, trace_of

from llavacot_mlx.cli.views.ending import ending_line, no_conclusion
from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.trace.record import Trace

CUT = replace(
    trace_of(events_of(text="<SUMMARY> I count")),
    finish=Finish.LENGTH,
    token_ids=tuple(range(20)),
    max_tokens=20,
)


def test_nothing_is_said_about_a_usual_answer() -> None:
    assert ending_line(greedy()) == ""


@pytest.mark.parametrize(
    ("trace", "line"),
    [
        (CUT, "stopped at --max-tokens 20"),
        (replace(CUT, max_tokens=30), "stopped at the longest text that the model can read"),
        (replace(CUT, finish=Finish.INTERRUPTED), "interrupted"),
        (
            replace(CUT, finish=Finish.REPETITION),
            "stopped after 20 tokens because it only repeated itself; "
            "--no-repetition-stop lets it go on",
        ),
        (
            trace_of(events_of(text="<conclusion> 2 </CONCLUSION>")),
            "conclusion: its tag was written <conclusion>",
        ),
        (
            trace_of(events_of(text="<CONCLUSION> 2 </CONCLUSION> <CONCLUSION> 3 </CONCLUSION>")),
            "conclusion: the last whole one of 2 conclusions",
        ),
    ],
)
def test_what_cut_an_answer_off_and_how_its_conclusion_was_found(trace: Trace, line: str) -> None:
    assert ending_line(trace) == line


@pytest.mark.parametrize(
    ("trace", "reason", "advice"),
    [
        (CUT, "no conclusion: stopped at --max-tokens 20;", "or raise --max-tokens"),
        (replace(CUT, finish=Finish.REPETITION), "only repeated itself", "--temperature 0.6"),
        (
            trace_of(events_of(text="<SUMMARY> Well </SUMMARY>")),
            "no conclusion: it ended its answer without one;",
            "see what it wrote with --show all",
        ),
        (
            trace_of(events_of(text="<CONCLUSION> </CONCLUSION>")),
            "the model's conclusion is empty;",
            "see what it wrote with --show all",
        ),
    ],
)
def test_a_missing_conclusion_has_its_true_reason(trace: Trace, reason: str, advice: str) -> None:
    """Only a token limit is mended with more tokens."""
    said = no_conclusion(trace)
    assert reason in said
    assert said.endswith(advice)
    assert ("raise --max-tokens" in said) == (trace.finish is Finish.LENGTH)
