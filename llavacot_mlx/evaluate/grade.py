"""The verdict on one answer, by the rules of its benchmark; what they leave open stays open."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from llavacot_mlx.evaluate.benchmark_set import Task
from llavacot_mlx.evaluate.mathvista_answer import (
    AnswerType,
    MathAnswer,
    check_official,
    check_value,
    extract_by_rule,
    prefetch,
)
from llavacot_mlx.evaluate.option_inference import Scorer, infer_option
from llavacot_mlx.evaluate.question_file import StoredQuestion
from llavacot_mlx.evaluate.yes_no_inference import infer_yes_or_no


class GradedBy(enum.StrEnum):
    """What decided about an answer."""

    RULE = "rule"
    LLM = "llm"
    NONE = "none"
    """Nothing: the answer is unresolved."""
    FAILED = "failed"
    """There is no answer, such as where the picture does not open."""


@dataclass(frozen=True)
class Grade:
    """The verdict on one answer."""

    by: GradedBy
    value: str | None = None
    """The option, the number or the word that the answer was taken for."""
    right: bool | None = None
    """None where nothing decided, and where the file has no right answer."""
    score: float | None = None
    """From 0 to 1, of a set whose answers are graded and not right or wrong."""


def grade_by_rule(question: StoredQuestion, text: str, scorer: Scorer) -> Grade:
    """Grades a prediction by rules alone."""
    match question.task:
        case Task.SHAPES:
            return _grade_shapes(question, text)
        case Task.CHOICE:
            return _decided(infer_option(text, question.options, scorer), question)
        case Task.YES_NO | Task.HALLUSION:
            return _decided(infer_yes_or_no(text), question)
        case Task.MATHVISTA:
            return _grade_mathvista(question, text, scorer)
        case Task.GRADED:
            return Grade(GradedBy.NONE)


def _decided(value: str | None, question: StoredQuestion) -> Grade:
    if value is None:
        return Grade(GradedBy.NONE)
    right = None if question.answer is None else value == question.answer
    return Grade(GradedBy.RULE, value, right)


def _grade_shapes(question: StoredQuestion, text: str) -> Grade:
    """Compares with the exact answer; of a question with options, an option's text counts too."""
    value = infer_option(text, question.options) if question.options else None
    value = text if value is None else value
    assert question.answer is not None
    right = value.rstrip(".").casefold() == question.answer.casefold()
    return Grade(GradedBy.RULE, value, right)


def math_answer(question: StoredQuestion) -> MathAnswer:
    """The right answer of a question of MathVista."""
    fields = question.fields
    is_choice = fields.get("question_type") == "multi_choice"
    value = question.answer or ""
    return MathAnswer(
        AnswerType.TEXT if is_choice else AnswerType(fields["answer_type"]),
        value,
        question.options,
        # VLMEvalKit's file leaves the precision out; the answers are written with it.
        int(float(fields.get("precision", len(value.partition(".")[2])))),
    )


def _grade_mathvista(question: StoredQuestion, text: str, scorer: Scorer) -> Grade:
    """VLMEvalKit's own decision where it needs no LLM, and else a rule of ours."""
    answer = math_answer(question)
    official = scorer is Scorer.MATHVISTA_OFFICIAL
    taken = prefetch(text, answer)
    if taken is not None and not official:
        return Grade(GradedBy.RULE, taken, check_value(taken, answer))
    value = extract_by_rule(text, answer)
    if value is None:
        return Grade(GradedBy.NONE)
    if answer.type is AnswerType.LIST and not official:
        return Grade(GradedBy.RULE, value, False)
    return Grade(GradedBy.RULE, value, check_official(value, answer))
