"""What keeps an answer from being four stages, and what gives away how it was made."""

from __future__ import annotations

import pytest

from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.rows.problem import ProblemKind as Kind
from llavacot_mlx.train.data.rules import leaks, stage_problems

S, C, R, E = (f"{stage.opening} {stage.value} {stage.closing}" for stage in Stage)
GOOD = f"{S}\n\n{C}\n\n{R}\n\n{E}"


def problems(answer: str) -> list[tuple[Kind, str]]:
    return list(stage_problems(answer))


@pytest.mark.parametrize("answer", [GOOD, S + C + R + E, f"\n {GOOD} \n"])
def test_good_answers(answer: str) -> None:
    assert problems(answer) == []


@pytest.mark.parametrize(
    ("answer", "found"),
    [
        ("Four.", [(Kind.NO_STAGES, "has no stage: 'Four.'")]),
        ("a\n" * 60, [(Kind.NO_STAGES, f"has no stage: '{'a ' * 30}…'")]),
        (S + C + R, [(Kind.CONCLUSION_MISSING, "CONCLUSION is missing")]),
        (S + R + E, [(Kind.STAGE_MISSING, "CAPTION is missing")]),
        (E, [(Kind.STAGE_MISSING, f"{tag} is missing") for tag in ("SUMMARY", "CAPTION")]
            + [(Kind.STAGE_MISSING, "REASONING is missing")]),
        (S + C + C + R + E + E, [
            (Kind.STAGE_DOUBLED, "CAPTION comes 2 times"),
            (Kind.STAGE_DOUBLED, "CONCLUSION comes 2 times"),
        ]),
        (S + R + C + E, [
            (Kind.STAGE_MISORDERED, "the order is SUMMARY, REASONING, CAPTION, CONCLUSION"),
        ]),
        (S + C + R + "<CONCLUSION> \n</CONCLUSION>", [(Kind.STAGE_EMPTY, "CONCLUSION is empty")]),
        (S + C + R + "<CONCLUSION> 4", [
            (Kind.STAGE_NOT_CLOSED, "</CONCLUSION> is missing"),
        ]),
        (f"<SUMMARY> a\n{C}{R}{E}", [(Kind.STAGE_NOT_CLOSED, "</SUMMARY> is missing")]),
        (f"{S} So: {C}{R}{E}", [(Kind.TEXT_OUTSIDE, "has text outside the stages: 'So:'")]),
        (f"{S}{C}{R}{E}</CONCLUSION>", [
            (Kind.TEXT_OUTSIDE, "has text outside the stages: '</CONCLUSION>'"),
        ]),
        (f"{S}{C}<REASONING> a <REASONING> b </REASONING>{E}", [
            (Kind.STAGE_DOUBLED, "<REASONING> stands inside REASONING"),
        ]),
        (f"{S}<CAPTION> a <REASONING> b </CAPTION>{R}{E}", [
            (Kind.STAGE_MISORDERED, "<REASONING> stands inside CAPTION"),
        ]),
    ],
)  # fmt: skip
def test_what_is_wrong_with_stages(answer: str, found: list[tuple[Kind, str]]) -> None:
    assert problems(answer) == found


@pytest.mark.parametrize(
    "text",
    [
        "This matches the standard answer.",
        "as the Standard\nAnswer says",
        "The reference answers agree.",
        "Given the provided answer, B",
        "the given answer is 4",
        "which is the answer that was provided",
        "The answer is given as 4",
        "the ground-truth answer",
        "(Here begins the SUMMARY stage) I count.",
    ],
)
def test_leaks(text: str) -> None:
    ((kind, detail),) = leaks(text)
    assert kind is Kind.LEAK
    assert detail.startswith("says ")


@pytest.mark.parametrize(
    "text",
    [
        "The correct answer is B.",
        "Looking at the given answer choices, B",
        "from the provided answer options",
        "a standard deviation answers this",
        "The answer is 4.",
        "nonstandard answer",
    ],
)
def test_what_is_no_leak(text: str) -> None:
    assert list(leaks(text)) == []
