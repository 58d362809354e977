"""MathVista's checks: VLMEvalKit's, the official ones, and the rule without an LLM."""

from __future__ import annotations

import pytest

from llavacot_mlx.evaluate.mathvista_answer import (
    AnswerType,
    MathAnswer,
    check_official,
    check_value,
    extract_by_rule,
    prefetch,
)

ANGLES = MathAnswer(AnswerType.TEXT, "C", {"A": "135°", "B": "140°", "C": "145°", "D": "150°"})


def number(kind: AnswerType, value: str, precision: int = 0) -> MathAnswer:
    return MathAnswer(kind, value, {}, precision)


@pytest.mark.parametrize(
    ("kind", "value", "text", "right"),
    [
        (AnswerType.INTEGER, "14", "14", True),
        (AnswerType.INTEGER, "14", "14.0", False),
        (AnswerType.INTEGER, "14", "14 cm", False),
        (AnswerType.INTEGER, "0", "0", True),
        (AnswerType.INTEGER, "1000", "1,000", False),
        (AnswerType.FLOAT, "1.2", "1.20", True),
        (AnswerType.FLOAT, "1.2", "1.23", False),
        (AnswerType.LIST, "[2007, 2008]", "[2007, 2008]", False),
    ],
)
def test_the_kit_s_check_of_a_value(kind: AnswerType, value: str, text: str, right: bool) -> None:
    assert check_value(text, number(kind, value)) is right


def test_the_kit_takes_any_option_but_only_a_right_number_that_is_not_zero() -> None:
    assert prefetch("145°", ANGLES) == "C"
    assert prefetch("D", ANGLES) == "D"
    assert not check_value("D", ANGLES)
    assert prefetch("14", number(AnswerType.INTEGER, "14")) == "14"
    assert prefetch("15", number(AnswerType.INTEGER, "14")) is None
    assert prefetch("0", number(AnswerType.INTEGER, "0")) is None


def test_the_official_scorer_rounds_and_compares_lists_as_text() -> None:
    assert check_official("14.0", number(AnswerType.INTEGER, "14"))
    assert check_official("1.23", number(AnswerType.FLOAT, "1.2", precision=1))
    assert check_official("[2007, 2008]", number(AnswerType.LIST, "[2007, 2008]"))
    assert not check_official("[2007,2008]", number(AnswerType.LIST, "[2007, 2008]"))


@pytest.mark.parametrize(
    ("text", "right"),
    [("(C)", True), ("the answer is (c) 140°", True), ("C", True), ("145", True), ("149°", False)],
)
def test_the_official_scorer_takes_the_nearest_option(text: str, right: bool) -> None:
    assert check_official(text, ANGLES) is right


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("14", "14"),
        ("14 cm", "14"),
        ("The answer is 5.", "5"),
        ("x = 3, so 2x = 6", "6"),
        ("$1,234.50", "1234.50"),
        ("about 3.5%", "3.5"),
        ("−7", "-7"),
        ("12 apples and 3 pears", None),
        ("1/2", None),
        ("none at all", None),
    ],
)
def test_the_number_of_a_conclusion_without_an_llm(text: str, value: str | None) -> None:
    assert extract_by_rule(text, number(AnswerType.FLOAT, "1", 2)) == value


def test_the_list_of_a_conclusion_without_an_llm() -> None:
    years = number(AnswerType.LIST, "[2007, 2008]")
    assert extract_by_rule("The years are [2007,2008].", years) == "[2007, 2008]"
    assert extract_by_rule("[1] and [2]", years) is None
