"""Finished traces, as the fake engine makes them."""

from __future__ import annotations

import io
import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fakes import GOOD_ANSWER, RETRACING, FakeAnswerStream, Script, ScriptedRound
from PIL import Image

from llavacot_mlx.plan.plan import Settings, make_plan
from llavacot_mlx.request import Request
from llavacot_mlx.trace.answer_events import Answered, Event, Interrupted
from llavacot_mlx.trace.events import CandidatesKept
from llavacot_mlx.trace.record import Trace


def events_of(
    rounds: Sequence[ScriptedRound] = (),
    *,
    text: str = GOOD_ANSWER,
    search: str = "swires",
    question: str = "How many?",
    notices: tuple[str, ...] = (),
) -> list[Event]:
    """All that the fake engine tells of an answer; of a single path without rounds."""
    plan = make_plan(Settings(search=search if rounds else "greedy"))
    script = Script(text=text, rounds=tuple(rounds), notices=notices)
    picture = Image.new("RGB", (8, 8))
    return list(FakeAnswerStream(script, "demo", Request(picture, question, plan)))


def trace_of(events: Sequence[Event]) -> Trace:
    last = events[-1]
    assert isinstance(last, Answered | Interrupted)
    return last.trace


def retracing(question: str = "How many?") -> Trace:
    """A search that went back once: 11 candidates, of which 1, 6, 8 and 10 are the path taken."""
    return trace_of(events_of(RETRACING, question=question, notices=("mind the gap",)))


def stopped() -> Trace:
    """The same search, stopped before it chose from its first two reasonings."""
    whole = retracing()
    third = [n for n, event in enumerate(whole.events) if isinstance(event, CandidatesKept)][2]
    search = replace(
        whole.search, nodes=whole.search.nodes[:5], choices=whole.search.choices[:2], retraces=0
    )
    return replace(
        whole,
        search=search,
        text="<SUMMARY> I count. </SUMMARY><CAPTION> One circle. </CAPTION>",
        stages=whole.stages[:2],
        interrupted=True,
        events=whole.events[:third],
    )


def greedy() -> Trace:
    return trace_of(events_of())


def png(size: tuple[int, int] = (16, 12), colour: str = "red") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", size, colour).save(buffer, "PNG")
    return buffer.getvalue()


def stored_object(trace: Trace) -> dict[str, Any]:
    """What a trace file holds of a trace without a picture, as JSON gives it back."""
    value: dict[str, Any] = json.loads(json.dumps(trace.to_dict_with_log(), ensure_ascii=False))
    return value
