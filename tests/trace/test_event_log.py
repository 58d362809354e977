"""A log has every event of an answer, and a view shows the same from it as it did live."""

from __future__ import annotations

import io
import itertools
import json
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
from fakes import GOOD_ANSWER, RETRACING, ScriptedRound
from PIL import Image
from traces import events_of, stored_object, trace_of

from llavacot_mlx import demo
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.cli.views.answer_view import ShowLevel
from llavacot_mlx.cli.views.plain import PlainView
from llavacot_mlx.cli.views.search_view import unit_of
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.plan.plan import Plan, Retrace, Settings, Step, Unit, make_plan
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.answer_events import Answered, Event, Interrupted, trace_events
from llavacot_mlx.trace.event_log import EventLog, event_from_dict, event_to_dict
from llavacot_mlx.trace.events import (
    CandidateText,
    FreeText,
    LoggedEvent,
    Noticed,
    Prepared,
    StageStarted,
    StageText,
)
from llavacot_mlx.trace.file import read_trace
from llavacot_mlx.trace.record import RULES, Trace

PICTURE = Image.new("RGB", (40, 30), "red")


def snapshots(events: Iterable[Event]) -> list[tuple[Event, dict[object, str]]]:
    """Returns all events but text, each with the texts that had come before it."""
    texts: dict[object, str] = {}
    found: list[tuple[Event, dict[object, str]]] = []
    for event in events:
        match event:
            case CandidateText(source, text) | StageText(source, text):
                texts[source] = texts.get(source, "") + text
            case FreeText(text):
                texts[None] = texts.get(None, "") + text
            case _:
                found.append((event, dict(texts)))
    return found


def viewed(events: Iterable[Event], show: ShowLevel, unit: Unit) -> str:
    out = io.StringIO()
    with PlainView(out, show, unit) as view:
        for event in events:
            view.show(event)
    return out.getvalue()


def check_shown_again(live: Sequence[Event]) -> None:
    """Checks that the log has all events in order, and is short."""
    trace = trace_of(live)
    assert Trace.from_dict(stored_object(trace)) == trace
    again = list(trace_events(trace))
    assert snapshots(again) == snapshots(live)
    for before, event in itertools.pairwise(again):
        if isinstance(before, StageText | FreeText):
            assert not isinstance(event, StageText | FreeText), "two pieces of one text"
    for show in ShowLevel:
        assert viewed(again, show, unit_of(trace)) == viewed(live, show, unit_of(trace))


WHOLE: list[ScriptedRound] = [
    {
        "stage": "summary",
        "texts": [GOOD_ANSWER, GOOD_ANSWER.replace("> 2", "> 3"), "<SUMMARY> Oh"],
        "scores": [0.3, None, 0.7],
        "kept": [0],
    }
]


def test_a_search_that_went_back() -> None:
    """One candidate of the first round is kept in the second."""
    check_shown_again(events_of(RETRACING, notices=("not calibrated",)))


def test_whole_answers() -> None:
    check_shown_again(events_of(WHOLE, search="best-of-n"))


@pytest.mark.parametrize(
    "text",
    [
        GOOD_ANSWER,
        "There are two.",
        f"Well.\n\n{GOOD_ANSWER}\nBye",
        "<SUMMARY> I will",
        "<SUMMARY> I count.\n<CAPTION> One. </CAPTION>",
        "",
    ],
)
def test_a_single_path(text: str) -> None:
    check_shown_again(events_of(text=text))


def stages(temperature: float, retrace: Retrace | None, judge: str = "logprob") -> Plan:
    """A plan whose candidates are short, so that a random model gets through all steps."""
    step = Step(Unit.STAGE, candidates=3, keep=2, max_tokens=5)
    last = Step(Unit.ANSWER, candidates=2, max_tokens=5)
    return Plan("own", (step, step, step, last), Sampling(temperature, 1.0), judge, retrace)


PLANS = {
    "best-of-n": make_plan(Settings("best-of-n", candidates=3, judge="logprob")),
    "majority": make_plan(Settings("majority", candidates=3)),
    "sentence-beam": make_plan(Settings("sentence-beam", judge="logprob", temperature=1.5)),
    "stage-beam": make_plan(Settings("stage-beam", judge="logprob", temperature=1.5)),
    "swires": make_plan(Settings("swires", judge="logprob", threshold=0.0, max_retraces=2)),
    "short": stages(1.2, Retrace(after=2, to=1, max_retraces=2, rank=2, threshold=0.0)),
    "to the beginning": stages(1.2, Retrace(after=1, to=0, max_retraces=1, rank=1, threshold=0.0)),
    "no choice": stages(0.0, None),
    "greedy": make_plan(Settings()),
}


@pytest.mark.parametrize("name", PLANS)
def test_what_the_engine_yields(assistant: Assistant, name: str) -> None:
    answering = assistant.stream(PICTURE, "How many?", search=PLANS[name], max_tokens=24)
    check_shown_again(list(answering))


@pytest.fixture(scope="module")
def demo_assistant() -> Assistant:
    """A model that opens and closes stages, as the random one does not."""
    if not demo.model_path().is_dir():
        pytest.skip("the demo model is not in this tree")
    return Assistant.load(demo.model_path())


SWIRES = make_plan(
    Settings("swires", judge="logprob", threshold=0.0, max_retraces=1, temperature=1.5)
)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [SWIRES, PLANS["sentence-beam"]], ids=["swires", "sentence-beam"])
def test_a_search_through_four_stages(demo_assistant: Assistant, plan: Plan) -> None:
    check_shown_again(list(demo_assistant.stream(PICTURE, "How many?", search=plan)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("plan", "after"),
    [
        *((SWIRES, after) for after in (1, 25, 120, 300, 400)),
        *((PLANS["greedy"], after) for after in (1, 8, 40)),
        (PLANS["best-of-n"], 100),
    ],
)
def test_an_answer_that_was_interrupted(demo_assistant: Assistant, plan: Plan, after: int) -> None:
    """Wherever an answer is stopped, its log shows what the screen showed then."""
    answering = demo_assistant.stream(PICTURE, "How many?", search=plan)
    live: list[Event] = []
    for event in answering:
        live.append(event)
        if len(live) > after and isinstance(event, CandidateText | StageText | FreeText):
            break
    assert not isinstance(live[-1], Answered), "stopped too late"
    trace = answering.so_far()
    assert Trace.from_dict(stored_object(trace)) == trace
    live.append(Interrupted(trace))
    again = list(trace_events(trace))
    unit = unit_of(trace)
    assert viewed(again, ShowLevel.ALL, unit) == viewed(live, ShowLevel.ALL, unit)


# -- the log itself -------------------------------------------------------------------------------


def test_pieces_of_a_text_are_joined_until_something_else_happens() -> None:
    log = EventLog()
    for event in (
        CandidateText(0, "a"),
        CandidateText(1, "x"),
        CandidateText(0, "b"),
        Noticed("mind the gap"),
        CandidateText(1, "y"),
    ):
        log.add(event)
    noticed = Noticed("mind the gap")
    expected = (CandidateText(0, "ab"), CandidateText(1, "x"), noticed, CandidateText(1, "y"))
    assert log.events == expected
    assert log.events == expected, "reading the log changed it"


def test_a_notice_stands_where_it_happened() -> None:
    trace = trace_of(events_of(RETRACING, notices=("not calibrated",)))
    assert trace.events[:2] == (Noticed("not calibrated"), Prepared(prompt_tokens=7, tiles=1))


def test_every_event_becomes_an_object_and_comes_back() -> None:
    trace = trace_of(events_of(RETRACING, notices=("not calibrated",)))
    events = [*trace.events, *trace_of(events_of(text=f"Well. {GOOD_ANSWER}")).events]
    assert {type(event) for event in events} == set(get_args(LoggedEvent))
    for event in events:
        stored = json.loads(json.dumps(event_to_dict(event)))
        assert event_from_dict(stored, RULES, "x") == event


def test_an_event_is_stored_under_a_name_that_stays() -> None:
    """Files contain these names, so they must stay when a class is renamed."""
    events = [Prepared(3, 1), StageStarted(Stage.CAPTION), CandidateText(2, "a")]
    assert [event_to_dict(event) for event in events] == [
        {"event": "prepared", "prompt_tokens": 3, "tiles": 1},
        {"event": "stage_started", "stage": "caption"},
        {"event": "candidate_text", "node": 2, "text": "a"},
    ]


# -- traces that were written before there was a log ----------------------------------------------

OLD = Path(__file__).parent / "old_traces"


@pytest.mark.parametrize("name", ["plain", "swires", "interrupted", "first_round", "no_verdict"])
def test_a_trace_without_a_log_is_shown_as_it_was(name: str) -> None:
    """The text beside each file is what the version that wrote the file showed of it.

    `first_round` was stopped before anything was chosen, which once ended in a traceback; in
    `no_verdict` a judge came to no verdict on a whole round, which once looked unjudged.
    """
    file = OLD / f"{name}.json"
    assert "events" not in json.loads(file.read_text(encoding="utf-8"))
    trace = read_trace(file).trace
    shown = viewed(trace_events(trace), ShowLevel.ALL, unit_of(trace))
    expected = (OLD / f"{name}.txt").read_text(encoding="utf-8")
    assert shown == expected.partition("\n\n")[2]


def test_the_log_that_an_old_trace_gets_is_a_valid_one() -> None:
    trace = read_trace(OLD / "swires.json").trace
    assert trace.events
    assert Trace.from_dict(stored_object(trace)) == trace
    unnoticed = trace_of(events_of(RETRACING))
    old = stored_object(unnoticed)
    del old["events"]
    assert Trace.from_dict(old) == replace(unnoticed, events=())
