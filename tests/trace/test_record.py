"""The record of an answer: its fields are an interface, and JSON keeps them."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from traces import retracing, stored_object

from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.stages import Stage, StageRecord
from llavacot_mlx.trace.record import SearchRecord, Trace
from llavacot_mlx.usage import Timings, Usage

STAGES = tuple(
    StageRecord(stage, text, closed=True, tokens=n)
    for n, (stage, text) in enumerate(zip(Stage, "abc2", strict=True), start=5)
)
TRACE = Trace(
    question="How many? 🙂",
    image="a.png",
    model="somewhere",
    seed=3,
    stages=STAGES,
    text="<SUMMARY>a</SUMMARY>…",
    prompt_token_ids=(1, 2),
    token_ids=(3, 4, 5),
    search=SearchRecord("greedy"),
    usage=Usage(prompt_tokens=2, decoded_tokens=3),
    timings=Timings(load_s=0.5),
    peak_memory_bytes=7,
)


def test_the_json_of_a_trace() -> None:
    """Fields may be added; these stay."""
    assert json.loads(TRACE.to_json()) == {
        "question": "How many? 🙂",
        "image": "a.png",
        "model": "somewhere",
        "adapter": None,
        "seed": 3,
        "answer": "2",
        "answer_note": "",
        "stages": [
            {
                "stage": stage,
                "text": text,
                "closed": True,
                "tokens": tokens,
                "score": None,
                "candidates": 1,
                "note": "",
            }
            for stage, text, tokens in (
                ("summary", "a", 5),
                ("caption", "b", 6),
                ("reasoning", "c", 7),
                ("conclusion", "2", 8),
            )
        ],
        "text": "<SUMMARY>a</SUMMARY>…",
        "prompt_token_ids": [1, 2],
        "token_ids": [3, 4, 5],
        "search": {
            "method": "greedy",
            "retraces": 0,
            "nodes": [],
            "choices": [],
            "plan": {},
            "notices": [],
        },
        "max_tokens": 0,
        "kv_bits": None,
        "repetition_stop": True,
        "finish": None,
        "interrupted": False,
        "asked_at": "",
        "usage": {
            "prompt_tokens": 2,
            "images_encoded": 0,
            "prefilled_tokens": 0,
            "decoded_tokens": 3,
            "forward_passes": 0,
            "drafted_tokens": 0,
            "accepted_tokens": 0,
            "judge_tokens": 0,
            "reused_tokens": 0,
            "kv_bytes": 0,
        },
        "timings": {
            "load_s": 0.5,
            "vision_s": 0.0,
            "prefill_s": 0.0,
            "first_token_s": 0.0,
            "decode_s": 0.0,
            "judge_s": 0.0,
            "total_s": 0.0,
        },
        "peak_memory_bytes": 7,
    }


def test_the_json_is_one_line_and_starts_with_what_was_asked() -> None:
    text = TRACE.to_json()
    assert "\n" not in text
    assert list(json.loads(text))[:5] == ["question", "image", "model", "seed", "answer"]


@pytest.mark.parametrize(
    ("second", "closed", "answer"),
    [(" 3 ", True, "3"), (" 3 ", False, "2"), (" ", True, "2"), ("", False, "2")],
)
def test_the_answer_is_the_last_whole_conclusion(second: str, closed: bool, answer: str) -> None:
    """One that was cut off, or is empty, does not take back a whole one."""
    two = (*STAGES, StageRecord(Stage.CONCLUSION, second, closed, tokens=1))
    trace = replace(TRACE, stages=two)
    assert trace.answer == answer
    assert trace.answer_note == "the last whole one of 2 conclusions"


def test_no_conclusion_is_no_answer() -> None:
    trace = replace(TRACE, stages=STAGES[:3])
    assert trace.answer is None
    assert json.loads(trace.to_json())["answer"] is None


@pytest.mark.parametrize(
    ("stages", "expected"),
    [
        (STAGES, True),
        (STAGES[:3], False),
        (STAGES[::-1], False),
        ((*STAGES, STAGES[3]), False),
        ((*STAGES[:3], replace(STAGES[3], closed=False)), False),
        ((*STAGES[:3], replace(STAGES[3], text=" \n")), False),
        ((), False),
    ],
    ids=["good", "one missing", "backwards", "one twice", "unclosed", "empty", "none"],
)
def test_well_formed(stages: tuple[StageRecord, ...], expected: bool) -> None:
    assert replace(TRACE, stages=stages).well_formed is expected


@pytest.mark.parametrize("key", ["nodes", "choices"])
def test_a_trace_of_more_than_any_search_makes(key: str) -> None:
    value = stored_object(retracing())
    value["search"][key] = [{}] * 30_001
    with pytest.raises(UserError, match=rf"search\.{key}: 30001 of them, and 30000 are the most"):
        Trace.from_dict(value)


def test_a_round_of_more_candidates_than_a_plan_allows() -> None:
    """Each line of a round is compared with all others."""
    value = stored_object(retracing())
    value["search"]["choices"][0]["nodes"] = [0] * 257
    with pytest.raises(UserError, match="a round of 257 candidates, and 256 are the most"):
        Trace.from_dict(value)


def test_a_plan_in_a_trace_that_leaves_numbers_out() -> None:
    """The page of such a trace was an internal KeyError."""
    value = stored_object(retracing())
    whole = Trace.from_dict(value).search.plan["retrace"]
    del value["search"]["plan"]["retrace"]["most"]
    assert Trace.from_dict(value).search.plan["retrace"] == {**whole, "most": 3}
