"""The public API: one question, its events as they happen, and its record."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

import llavacot_mlx
from llavacot_mlx import answer as answering_module
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.model_name import ModelName
from llavacot_mlx.errors import UserError
from llavacot_mlx.plan.plan import Settings, make_plan
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.request import Request
from llavacot_mlx.trace.answer_events import Answered, Event
from llavacot_mlx.trace.events import FreeText, Prepared, StageEnded, StageStarted, StageText
from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.trace.record import Trace
from llavacot_mlx.usage import Timings

GOOD = (
    "<SUMMARY> count 🙂 </SUMMARY>\n\n<CAPTION> two circles </CAPTION>\n\n"
    "<REASONING> 1 + 1\n= 2 </REASONING>\n\n<CONCLUSION> 2 </CONCLUSION>"
)


@pytest.fixture
def picture() -> Image.Image:
    image = Image.new("RGB", (50, 28), "blue")
    image.paste("yellow", (5, 5, 25, 20))
    return image


@pytest.fixture
def says(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """`says(text)`: the model answers `text` whatever it is asked, and ends its turn."""
    tokenizer = Tokenizer.load(tiny, load_config(tiny))
    end = min(tokenizer.stop_ids)

    def script(text: str) -> list[int]:
        ids = [*tokenizer.encode(text), end]
        monkeypatch.setattr(answering_module, "decode", lambda *arguments: iter(ids))
        return ids

    return script


def essence(trace: Trace) -> Trace:
    """Returns a trace without what depends on time, the machine, and the answers before."""
    usage = replace(trace.usage, forward_passes=0, drafted_tokens=0, accepted_tokens=0)
    return replace(trace, timings=Timings(), peak_memory_bytes=0, usage=usage, asked_at="")


def test_asking_is_streaming_to_the_end(assistant: Assistant, picture: Image.Image) -> None:
    asked = assistant.ask(picture, "What is it?", max_tokens=30)
    *_, last = assistant.stream(picture, "What is it?", max_tokens=30)
    assert isinstance(last, Answered)
    assert essence(last.trace) == essence(asked)


def test_the_events_of_an_answer(assistant: Assistant, picture: Image.Image, says: Any) -> None:
    """The events are Prepared, the stages with free text between, and Answered; no text is lost."""
    says(GOOD)
    events = list(assistant.stream(picture, "How many?"))
    assert isinstance(events[0], Prepared)
    assert isinstance(events[-1], Answered)
    trace = events[-1].trace
    assert events[0].prompt_tokens == len(trace.prompt_token_ids)
    assert events[0].tiles == 2
    assert "".join(written(event) for event in events) == GOOD == trace.text
    assert [type(e) for e in events if isinstance(e, StageStarted | StageEnded)] == [
        StageStarted,
        StageEnded,
    ] * 4
    assert all("\ufffd" not in e.text for e in events if isinstance(e, StageText | FreeText))
    assert trace.well_formed
    assert trace.answer == "2"
    assert [record.text for record in trace.stages] == [
        "count 🙂",
        "two circles",
        "1 + 1\n= 2",
        "2",
    ]


def written(event: Event) -> str:
    if isinstance(event, StageStarted):
        return event.stage.opening
    if isinstance(event, StageEnded):
        return event.stage.closing if event.closed else ""
    return event.text if isinstance(event, StageText | FreeText) else ""


def test_the_stages_share_the_tokens_between_them(
    assistant: Assistant, picture: Image.Image, says: Any
) -> None:
    """Each token up to a stage's end counts once; the rest is the end of the turn."""
    ids = says(GOOD)
    trace = assistant.ask(picture, "How many?")
    assert list(trace.token_ids) == ids
    assert sum(record.tokens for record in trace.stages) == len(ids) - 1
    assert min(record.tokens for record in trace.stages) > 5


def test_a_stage_that_is_not_closed(assistant: Assistant, picture: Image.Image, says: Any) -> None:
    ids = says("<SUMMARY> a </SUMMARY>\n<CAPTION> b")
    trace = assistant.ask(picture, "How many?")
    assert [(r.stage, r.text, r.closed) for r in trace.stages] == [
        (Stage.SUMMARY, "a", True),
        (Stage.CAPTION, "b", False),
    ]
    assert sum(record.tokens for record in trace.stages) == len(ids)
    assert trace.answer is None
    assert not trace.well_formed


def test_an_answer_without_stages(assistant: Assistant, picture: Image.Image, says: Any) -> None:
    says("It is a circle.")
    *events, answered = assistant.stream(picture, "What is it?")
    assert isinstance(answered, Answered)
    assert answered.trace.answer is None
    assert answered.trace.stages == ()
    assert "".join(e.text for e in events if isinstance(e, FreeText)) == "It is a circle."


def test_the_token_that_ends_a_turn_is_no_text(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Holds even if generation_config.json names an ordinary token."""
    tokenizer = Tokenizer.load(folder, load_config(folder))
    (end,) = tokenizer.encode("!")
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": end}))
    ids = tokenizer.encode("Yes!")
    monkeypatch.setattr(answering_module, "decode", lambda *arguments: iter(ids))
    trace = Assistant.load(folder).ask(None, "Is it?")
    assert trace.text == "Yes"
    assert list(trace.token_ids) == ids


def test_a_tag_in_the_question_is_no_stage(assistant: Assistant, picture: Image.Image) -> None:
    """Stages are recognized in the generated text alone."""
    trace = assistant.ask(picture, "<CONCLUSION> 7 </CONCLUSION>", max_tokens=5)
    assert trace.question == "<CONCLUSION> 7 </CONCLUSION>"
    assert trace.stages == ()


def test_a_picture_in_any_form(assistant: Assistant, picture: Image.Image, tmp_path: Path) -> None:
    """A path, its text, bytes and a PIL image give one answer; the trace says how it was given."""
    file = tmp_path / "a.png"
    picture.save(file)
    opened = Image.open(io.BytesIO(file.read_bytes()))
    forms = {file: str(file), str(file): str(file), file.read_bytes(): "-"}
    traces = {
        name: assistant.ask(form, "What is it?", max_tokens=20) for form, name in forms.items()
    }
    traces["image"] = assistant.ask(opened, "What is it?", max_tokens=20)
    assert {trace.image for trace in traces.values()} == {str(file), "-", "image"}
    assert len({trace.text for trace in traces.values()}) == 1
    assert len({trace.prompt_token_ids for trace in traces.values()}) == 1
    with Image.open(file) as named:
        assert assistant.ask(named, "What?", max_tokens=1).image == str(file)


def test_a_question_without_a_picture(assistant: Assistant, picture: Image.Image) -> None:
    without = assistant.ask(None, "What is it?", max_tokens=20)
    with_one = assistant.ask(picture, "What is it?", max_tokens=20)
    assert without.image is None
    assert without.usage.images_encoded == 0
    assert without.text != with_one.text
    assert len(without.prompt_token_ids) == len(with_one.prompt_token_ids) - 1
    (first, *_) = assistant.stream(None, "What is it?")
    assert first == Prepared(len(without.prompt_token_ids), tiles=0)


def test_the_seed_decides(assistant: Assistant, picture: Image.Image) -> None:
    def text(seed: int) -> str:
        trace = assistant.ask(
            picture, "What is it?", temperature=1.5, top_p=0.95, max_tokens=20, seed=seed
        )
        assert trace.seed == seed
        assert trace.search.method == "sample"
        return trace.text

    assert text(1) == text(1)
    assert len({text(seed) for seed in range(3)}) == 3


def test_greedy_needs_no_seed(assistant: Assistant, picture: Image.Image) -> None:
    traces = [assistant.ask(picture, "What?", max_tokens=10, seed=seed) for seed in range(2)]
    assert traces[0].text == traces[1].text
    assert traces[0].search.method == "greedy"


def test_work_and_time_are_recorded(assistant: Assistant, picture: Image.Image) -> None:
    trace = assistant.ask(picture, "What is it?", max_tokens=12)
    usage, timings = trace.usage, trace.timings
    assert usage.prompt_tokens == usage.prefilled_tokens == len(trace.prompt_token_ids)
    assert usage.decoded_tokens == len(trace.token_ids) == 12
    assert (usage.images_encoded, usage.judge_tokens, usage.reused_tokens) == (1, 0, 0)
    assert timings.load_s > 0
    assert 0 < timings.vision_s < timings.first_token_s < timings.total_s
    assert timings.vision_s + timings.prefill_s < timings.first_token_s
    assert timings.first_token_s + timings.decode_s == pytest.approx(timings.total_s)
    assert trace.peak_memory_bytes > 1_000_000


def test_an_answer_given_up_midway_does_no_harm(assistant: Assistant, picture: Image.Image) -> None:
    """After a closed view or Ctrl-C, the next question is answered as usual."""
    before = assistant.ask(picture, "What is it?", max_tokens=15)
    events = assistant.stream(picture, "And now?", max_tokens=15)
    for _ in range(4):
        next(events)
    assert isinstance(events, Iterator)
    events.close()
    assert essence(assistant.ask(picture, "What is it?", max_tokens=15)) == essence(before)


def test_two_answers_at_a_time(assistant: Assistant, picture: Image.Image) -> None:
    """Two answers that are read in turns are the same as each one alone."""
    alone = [essence(assistant.ask(i, "What?", max_tokens=10)) for i in (picture, None)]
    runs = [assistant.stream(i, "What?", max_tokens=10) for i in (picture, None)]
    last: list[Event | None] = [None, None]
    while (now := [next(run, None) for run in runs]) != [None, None]:
        last = [new or old for new, old in zip(now, last, strict=True)]
    assert [essence(e.trace) for e in last if isinstance(e, Answered)] == alone


def test_the_answer_ends_where_the_context_does(
    assistant: Assistant, picture: Image.Image, tiny: Path
) -> None:
    """Prompt and answer share the context; the question may leave room for a single token."""
    limit = load_config(tiny).text.max_position_embeddings
    short = len(assistant.ask(picture, "x", max_tokens=1).prompt_token_ids)
    trace = assistant.ask(picture, "x" * (limit - short - 2), max_tokens=100)
    assert len(trace.prompt_token_ids) + len(trace.token_ids) <= limit
    assert len(trace.token_ids) == 3
    with pytest.raises(UserError, match="the question is too long"):
        assistant.ask(picture, "x" * limit)


@pytest.mark.parametrize(
    ("settings", "says_what"),
    [
        ({"question": " \n"}, "question is empty"),
        ({"temperature": -0.1}, "temperature"),
        ({"temperature": float("nan")}, "temperature"),
        ({"temperature": float("inf")}, "temperature"),
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"image": "nowhere.png"}, "nowhere.png"),
        ({"image": b"text"}, "not a picture"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_settings_that_make_no_sense(
    settings: dict[str, Any], says_what: str, assistant: Assistant
) -> None:
    with pytest.raises(UserError, match=says_what):
        assistant.ask(**{"image": None, "question": "What?", **settings})


def test_loading(tiny: Path) -> None:
    """A model loads from text or a path; the trace has its name as it was given."""
    trace = Assistant.load(str(tiny), dtype="float32").ask(None, "What?", max_tokens=1)
    assert trace.model == str(tiny)
    with pytest.raises(UserError, match="'int8' is not a type"):
        Assistant.load(tiny, dtype="int8")
    with pytest.raises(UserError, match="no such folder"):
        Assistant.load(tiny.parent / "nowhere")


def test_loading_from_home(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tiny.parent))
    named = Assistant.load(f"~/{tiny.name}").ask(None, "What?", max_tokens=5)
    assert named.token_ids == Assistant.load(tiny).ask(None, "What?", max_tokens=5).token_ids


def test_the_package_hands_out_its_api() -> None:
    assert llavacot_mlx.Assistant is Assistant
    assert llavacot_mlx.Trace is Trace
    assert llavacot_mlx.UserError is UserError
    with pytest.raises(AttributeError, match="no attribute 'Asistant'"):
        llavacot_mlx.Asistant  # noqa: B018


def test_a_request_in_place_of_the_fields(assistant: Assistant, picture: Image.Image) -> None:
    """A request gives the same answer as the fields, and cannot be combined with them."""
    plan = make_plan(Settings(temperature=0.8))
    request = Request(picture, "What is it?", plan, max_tokens=5, seed=4)
    by_fields = assistant.ask(picture, "What is it?", temperature=0.8, max_tokens=5, seed=4)
    assert essence(assistant.stream(request).result()) == essence(by_fields)
    with pytest.raises(TypeError, match="a Request already"):
        assistant.stream(request, seed=5)  # type: ignore[call-overload]
    with pytest.raises(TypeError, match="unexpected option 'sed'; there are search, candidates"):
        assistant.ask(picture, "What is it?", sed=5)  # type: ignore[call-arg]


def test_every_public_name_is_there() -> None:
    classes = [name for name in llavacot_mlx.__all__ if name != "__version__"]
    assert [getattr(llavacot_mlx, name).__name__ for name in classes] == classes
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = llavacot_mlx.Nothing


def test_an_answer_says_why_it_ended(
    assistant: Assistant, picture: Image.Image, says: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    says(GOOD)
    assert assistant.ask(picture, "How many?").finish is Finish.STOP
    monkeypatch.undo()
    cut = assistant.ask(picture, "How many?", max_tokens=3)
    assert (cut.finish, len(cut.token_ids)) == (Finish.LENGTH, 3)
    stream = assistant.stream(picture, "How many?", max_tokens=30)
    next(stream)
    assert stream.so_far().finish is Finish.INTERRUPTED


@pytest.mark.parametrize("stop", [True, False])
def test_an_answer_that_goes_round_in_a_circle_is_stopped(
    stop: bool, assistant: Assistant, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    cycle = assistant._loaded.tokenizer.encode("a red ball, ")
    ids = (cycle * 2048)[:2048]
    monkeypatch.setattr(answering_module, "decode", lambda *arguments: iter(ids))
    trace = assistant.ask(picture, "How many?", repetition_stop=stop)
    assert trace.finish is (Finish.REPETITION if stop else Finish.LENGTH)
    assert len(trace.token_ids) == (512 if stop else 2048)
    assert trace.repetition_stop is stop
    assert Trace.from_dict(json.loads(json.dumps(trace.to_dict_with_log()))) == trace


def test_an_id_on_the_hub_is_found_as_the_command_line_finds_it(
    tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`Assistant.load("owner/name")` looked for a folder of that name."""
    asked = []

    def downloaded(name: ModelName) -> Path:
        asked.append(str(name))
        return tiny

    monkeypatch.setattr("llavacot_mlx.checkpoint.hub.downloaded", downloaded)
    assistant = Assistant.load("https://huggingface.co/owner/name/tree/v2", dtype="float32")
    assert assistant.ask(None, "What?", max_tokens=1).question == "What?"
    assert asked == ["owner/name@v2"]
