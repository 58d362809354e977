"""A search that is told again is told as it was."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Sequence

import pytest
from fakes import GOOD_ANSWER, RETRACING, ScriptedRound
from PIL import Image
from traces import events_of, trace_of

from llavacot_mlx import demo
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.cli.retelling import retelling, unit_of
from llavacot_mlx.cli.views.plain import PlainView
from llavacot_mlx.cli.views.view import Show
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.plan.plan import Plan, Retrace, Settings, Step, Unit, plan_of
from llavacot_mlx.trace.events import (
    Answered,
    CandidateEnded,
    CandidateText,
    Event,
    FreeText,
    Interrupted,
    Noticed,
    Prepared,
    StageText,
)
from llavacot_mlx.trace.record import Trace

PICTURE = Image.new("RGB", (40, 30), "red")


def ordered(events: Iterable[Event]) -> list[Event]:
    """Events in an order that does not depend on how candidates took turns, texts in one piece.

    Without what no record keeps: that the prompt was prepared, and when a notice came.
    """
    texts: dict[int, str] = {}
    kept: list[Event] = []
    ends: list[CandidateEnded] = []
    for event in events:
        match event:
            case Prepared() | Noticed():
                continue
            case CandidateText(node, text):
                texts[node] = texts.get(node, "") + text
                continue
            case CandidateEnded():
                ends.append(event)
                continue
            case StageText() | FreeText() if kept and type(kept[-1]) is type(event):
                last = kept.pop()
                assert isinstance(last, StageText | FreeText)
                kept.append(type(event)(**{**vars(last), "text": last.text + event.text}))
                continue
        kept.append(event)
    written: list[Event] = [CandidateText(node, text) for node, text in sorted(texts.items())]
    return kept + written + sorted(ends, key=lambda end: end.node)


def viewed(events: Iterable[Event], show: Show, unit: Unit) -> str:
    out = io.StringIO()
    with PlainView(out, show, unit) as view:
        for event in events:
            view.show(event)
    return out.getvalue()


def check_told_again(live: Sequence[Event]) -> None:
    trace = trace_of(live)
    assert Trace.from_dict(json.loads(trace.to_json())) == trace
    again = list(retelling(trace))
    assert ordered(again) == ordered(live)
    for show in Show:
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
    """Among those kept in its second round is one of the first."""
    check_told_again(events_of(RETRACING, notices=("not calibrated",)))


def test_whole_answers() -> None:
    check_told_again(events_of(WHOLE, search="best-of-n"))


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
    check_told_again(events_of(text=text))


def stages(temperature: float, retrace: Retrace | None, judge: str = "logprob") -> Plan:
    """A plan whose candidates are too short to fail to end, so that a random model gets far."""
    step = Step(Unit.STAGE, candidates=3, keep=2, max_tokens=5)
    last = Step(Unit.ANSWER, candidates=2, max_tokens=5)
    return Plan("own", (step, step, step, last), Sampling(temperature, 1.0), judge, retrace)


PLANS = {
    "best-of-n": plan_of(Settings("best-of-n", candidates=3, judge="logprob")),
    "majority": plan_of(Settings("majority", candidates=3)),
    "sentence-beam": plan_of(Settings("sentence-beam", judge="logprob", temperature=1.5)),
    "stage-beam": plan_of(Settings("stage-beam", judge="logprob", temperature=1.5)),
    "swires": plan_of(Settings("swires", judge="logprob", threshold=0.0, max_retraces=2)),
    "short": stages(1.2, Retrace(after=2, to=1, most=2, rank=2, threshold=0.0)),
    "to the beginning": stages(1.2, Retrace(after=1, to=0, most=1, rank=1, threshold=0.0)),
    "no choice": stages(0.0, None),
    "greedy": plan_of(Settings()),
}


@pytest.mark.parametrize("name", PLANS)
def test_what_the_engine_tells(assistant: Assistant, name: str) -> None:
    answering = assistant.stream(PICTURE, "How many?", search=PLANS[name], max_tokens=24)
    check_told_again(list(answering))


@pytest.fixture(scope="module")
def demo_assistant() -> Assistant:
    """A model that opens and closes stages, as the random one does not."""
    if not demo.model_path().is_dir():
        pytest.skip("the demo model is not in this tree")
    return Assistant.load(demo.model_path())


SWIRES = plan_of(
    Settings("swires", judge="logprob", threshold=0.0, max_retraces=1, temperature=1.5)
)


@pytest.mark.slow
@pytest.mark.parametrize("plan", [SWIRES, PLANS["sentence-beam"]], ids=["swires", "sentence-beam"])
def test_what_the_engine_tells_of_four_stages(demo_assistant: Assistant, plan: Plan) -> None:
    check_told_again(list(demo_assistant.stream(PICTURE, "How many?", search=plan)))


@pytest.mark.parametrize(
    ("plan", "after"),
    [
        *((SWIRES, after) for after in (1, 25, 120, 300, 400)),
        *((PLANS["greedy"], after) for after in (1, 8, 40)),
        (PLANS["best-of-n"], 100),
    ],
)
def test_an_answer_that_was_interrupted(demo_assistant: Assistant, plan: Plan, after: int) -> None:
    """Wherever it was stopped, what stood on the screen then stands there again."""
    answering = demo_assistant.stream(PICTURE, "How many?", search=plan)
    live: list[Event] = []
    for event in answering:
        live.append(event)
        if len(live) > after and isinstance(event, CandidateText | StageText | FreeText):
            break
    assert not isinstance(live[-1], Answered), "stopped too late"
    trace = answering.so_far()
    assert Trace.from_dict(json.loads(trace.to_json())) == trace
    live.append(Interrupted(trace))
    again = list(retelling(trace))
    unit = unit_of(trace)
    assert viewed(again, Show.ALL, unit) == viewed(live, Show.ALL, unit)
