"""A trace is read as it was written; anything else is refused with the key named."""

from __future__ import annotations

import base64
import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from traces import events_of, greedy, png, retracing, stored_object, trace_of

from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.events import StageStarted
from llavacot_mlx.trace.file import media_type, parse_trace, read_trace, write_trace
from llavacot_mlx.trace.record import Trace


@pytest.mark.parametrize("trace", [retracing(), greedy()], ids=["search", "single path"])
@pytest.mark.parametrize("picture", [None, png(), b"\x00\xff no picture"])
def test_what_is_written_comes_back(trace: Trace, picture: bytes | None, tmp_path: Path) -> None:
    write_trace(tmp_path / "t.json", trace, picture)
    stored = read_trace(tmp_path / "t.json")
    assert stored.trace == trace
    assert stored.image_bytes == picture


def test_a_trace_file_is_what_json_prints_and_the_picture(tmp_path: Path) -> None:
    trace = retracing()
    write_trace(tmp_path / "t.json", trace, png())
    value = json.loads((tmp_path / "t.json").read_text(encoding="utf-8"))
    picture = value.pop("picture")
    assert value == stored_object(trace)
    del value["events"]
    assert value == json.loads(trace.to_json())
    assert picture["media_type"] == "image/png"
    assert base64.b64decode(picture["base64"]) == png()
    assert parse_trace(trace.to_json().encode(), "x").image_bytes is None


def test_any_text_comes_back(tmp_path: Path) -> None:
    """A file name that is not UTF-8 reaches Python as a lone surrogate, which no file can hold."""
    text = '<CONCLUSION> 漢字 👩‍👧 \x1b[31m \u2028 </script> \\ " </CONCLUSION>'
    trace = replace(trace_of(events_of(text=text)), image="b\udce4r.png", question="\x00?\r\n")
    write_trace(tmp_path / "t.json", trace, None)
    assert read_trace(tmp_path / "t.json").trace == trace


def test_an_interrupted_single_path_may_have_an_open_stage() -> None:
    whole = greedy()
    text = whole.text[: whole.text.index("One red circle is")]
    events = whole.events[: whole.events.index(StageStarted(Stage.REASONING)) + 1]
    stages = whole.stages[:2]
    stopped = replace(whole, interrupted=True, text=text, stages=stages, events=events)
    assert Trace.from_dict(stored_object(stopped)) == stopped
    with pytest.raises(UserError, match="stages: not those that the tags in text say"):
        Trace.from_dict(stored_object(replace(stopped, interrupted=False)))


@pytest.mark.parametrize(
    ("begin", "expected"),
    [
        (png(), "image/png"),
        (b"\xff\xd8\xff\xe0 JFIF", "image/jpeg"),
        (b"GIF89a", "image/gif"),
        (b"RIFF1234WEBPVP8 ", "image/webp"),
        (b"\0\0\0\x18ftypheic", "image/heic"),
        (b"RIFF1234WAVE", "application/octet-stream"),
        (b"\x89P", "application/octet-stream"),
        (b"", "application/octet-stream"),
    ],
)
def test_the_media_type_of_a_picture(begin: bytes, expected: str) -> None:
    assert media_type(begin) == expected


Change = Callable[[dict[str, Any]], object]


def put(value: Any, *keys: str | int) -> Change:
    """Returns a change that puts `value` at the path `keys`."""

    def change(trace: dict[str, Any]) -> None:
        target: Any = trace
        for key in keys[:-1]:
            target = target[key]
        target[keys[-1]] = value

    return change


def drop(key: str, index: int) -> Change:
    """Returns a change that removes an element of a list."""
    return lambda trace: trace[key].pop(index)


CHANGES: list[tuple[Change, str]] = [
    (lambda trace: trace.pop("seed"), "seed is missing"),
    (lambda trace: trace["usage"].pop("kv_bytes"), "usage.kv_bytes is missing"),
    (lambda trace: trace.pop("search"), "not a trace"),
    (put(1, "version"), "version: unknown key; a newer llavacot"),
    (put(1, "search", "nodes", 3, "mood"), "search.nodes[3].mood: unknown key"),
    (put("0", "seed"), "seed: expected a whole number"),
    (put("red", "search", "nodes", 2, "score"), "search.nodes[2].score: expected a number"),
    (put("essay", "stages", 0, "stage"), "stages[0].stage: expected summary or caption"),
    (put("3", "answer"), "answer: not the conclusion among stages"),
    (put([], "stages"), "answer: not"),
    (put("Hello.", "text"), "stages: not those that the tags in text say"),
    (put(False, "stages", 3, "closed"), "stages: not those"),
    (put(99, "search", "nodes", 4, "parent"), "search.nodes[4].parent: 99 is not an earlier node"),
    (put(4, "search", "nodes", 4, "parent"), "search.nodes[4].parent: 4 is not an earlier node"),
    (put(-1, "search", "nodes", 4, "parent"), "search.nodes[4].parent: -1 is not an earlier node"),
    (put(7, "search", "nodes", 4, "id"), "search.nodes[4].id: 7"),
    (put([77], "search", "choices", 1, "kept"), "search.choices[1].kept: 77 is not a node"),
    (put([5], "search", "choices", 1, "kept"), "search.choices[1].kept: 5 is not a node"),
    (put([2, 1], "search", "choices", 1, "nodes"), "search.choices[1].nodes: not the next ones"),
    (put([9, 10, 11], "search", "choices", 5, "nodes"), "search.choices[5].nodes: 11 does not"),
    (put(4, "search", "choices", 5, "step"), "search.choices[5].step: 4 is not a step"),
    (put("quick", "search", "plan", "mode"), "search.plan: mode: unknown key"),
    (put([], "search", "plan", "steps"), "search.plan: steps: "),
    (put({}, "events"), "events: expected a list"),
    (put("kept", "events", 3), "events[3]: expected an object"),
    (put({"node": 3}, "events", 3), "events[3].event is missing; an older llavacot"),
    (
        put("essay", "events", 3, "event"),
        "events[3].event: 'essay' is not an event; a newer llavacot",
    ),
    (put(["a"], "events", 3, "event"), 'events[3].event: ["a"] is not an event'),
    (put("0", "events", 2, "node"), "events[2].node: expected a whole number"),
    (put(0.5, "events", 2, "mood"), "events[2].mood: unknown key"),
    (put(1, "events", 2, "node"), "events[2]: not the next candidate of search.nodes"),
    (put(0, "events", 2, "parent"), "events[2]: not the next candidate of search.nodes"),
    (put(40, "events", 3, "node"), "events[3]: candidate 40 has not started"),
    (put(-1, "events", 3, "node"), "events[3]: candidate -1 has not started"),
    (put([0, 1], "events", 5, "nodes"), "events[5]: candidate 1 has not started"),
    (put("<SUMMARY> I", "events", 3, "text"), "events: not the text of search.nodes[0]"),
    (drop("events", 19), "events: not the end of search.nodes[4]"),
    (put(5, "events", 19, "tokens"), "events: not the end of search.nodes[4]"),
    (put(0.5, "events", 22, "score"), "events: not the score of search.nodes[3]"),
    (drop("events", 22), "events: not the score of search.nodes[3]"),
    (drop("events", 24), "events: not the choices of search.choices"),
    (put([3, 7], "events", 43, "nodes"), "events: not the choices of search.choices"),
    (drop("events", 25), "events: not the retraces of search.retraces"),
    (drop("events", 0), "events: not the notices of search.notices"),
    (put("picture.png", "picture"), "picture: expected an object"),
    (put({"media_type": "image/png"}, "picture"), "picture.base64 is missing"),
    (put({"media_type": "image/png", "base64": "%"}, "picture"), "picture.base64: "),
    (put({"media_type": "image/png", "base64": "ä"}, "picture"), "picture.base64: "),
]


@pytest.mark.parametrize(("change", "said"), CHANGES, ids=[said for _, said in CHANGES])
def test_a_damaged_trace_is_refused_with_its_key(change: Change, said: str) -> None:
    value = copy.deepcopy(stored_object(retracing()))
    change(value)
    with pytest.raises(UserError) as raised:
        parse_trace(json.dumps(value).encode(), "t.json")
    assert str(raised.value).startswith(f"t.json: {said}")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "empty"),
        (b" \n", "empty"),
        (b"{", "not JSON, so not a trace: "),
        (b"\x89PNG\r\n\x1a\n", "not JSON"),
        (b"[1]", "not a trace: it has no question"),
        (b"null", "not a trace"),
        (b'{"question": "?"}', "not a trace"),
        (b"[" * 100_000, "not a trace: nested too deep"),
        (b'{"seed": NaN}', "not JSON, so not a trace: NaN"),
        (b'{"seed": ' + b"9" * 5000 + b"}", "not JSON"),
    ],
)
def test_what_is_no_trace_is_refused(data: bytes, said: str) -> None:
    with pytest.raises(UserError) as raised:
        parse_trace(data, "t.json")
    assert str(raised.value).startswith(f"t.json: {said}")


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nix\.json: there is no such trace"):
        read_trace(tmp_path / "nix.json")
    with pytest.raises(UserError, match="a folder, not a trace"):
        read_trace(tmp_path)


def test_a_log_that_ends_early_is_refused_unless_the_answer_was_stopped() -> None:
    value = stored_object(retracing())
    started = [n for n, each in enumerate(value["events"]) if each["event"] == "candidate_started"]
    value["events"] = value["events"][: started[-1]]
    with pytest.raises(UserError, match="events: 10 of the 11 candidates"):
        Trace.from_dict(value)
    value["interrupted"] = True
    assert Trace.from_dict(value).interrupted


def test_a_trace_that_lost_its_log_gets_one() -> None:
    for trace in (retracing(), greedy()):
        stored = parse_trace(replace(trace, events=()).to_json().encode(), "t.json")
        assert set(map(type, stored.trace.events)) <= set(map(type, trace.events))
        assert stored.trace.events


def test_a_log_of_other_stages_is_refused() -> None:
    value = stored_object(greedy())
    value["events"] = [each for each in value["events"] if each["event"] != "stage_ended"]
    with pytest.raises(UserError, match="events: not the stages of this trace"):
        Trace.from_dict(value)


def test_a_log_of_another_text_is_refused() -> None:
    value = stored_object(greedy())
    index = next(n for n, each in enumerate(value["events"]) if each["event"] == "stage_text")
    value["events"][index]["text"] += "!"
    with pytest.raises(UserError, match="events: not the text of this trace"):
        Trace.from_dict(value)


def test_the_log_of_an_interrupted_answer_may_end_before_its_record() -> None:
    """The engine changes the record before it reports, and may be stopped in between."""
    whole = stored_object(retracing())
    whole["interrupted"] = True
    for length in range(1, len(whole["events"])):
        Trace.from_dict({**whole, "events": whole["events"][:length]})
    whole["events"][22]["score"] = 0.5
    with pytest.raises(UserError, match="events: not the score of search"):
        Trace.from_dict(whole)
