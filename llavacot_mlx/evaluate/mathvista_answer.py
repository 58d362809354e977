"""Scores MathVista's answers: VLMEvalKit's checks, the official ones, and a rule without an LLM.

VLMEvalKit: `vlmeval/dataset/utils/mathvista.py`. Official: lupantech/MathVista,
`evaluation/calculate_score.py`.
"""

from __future__ import annotations

import ast
import enum
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

from llavacot_mlx.evaluate.option_inference import NO_OPTION, infer_option


class AnswerType(enum.StrEnum):
    """What MathVista asks for; TEXT is one of the options."""

    TEXT = "text"
    INTEGER = "integer"
    FLOAT = "float"
    LIST = "list"


@dataclass(frozen=True)
class MathAnswer:
    """The right answer of a MathVista question."""

    type: AnswerType
    value: str
    """A number or a list as text; of a question with options, the letter."""
    options: Mapping[str, str]
    precision: int = 0
    """Decimal places of a float."""


def prefetch(text: str, answer: MathAnswer) -> str | None:
    """Returns what VLMEvalKit takes from a text without asking an LLM; None where it asks.

    It takes any option that it can infer. It takes a number only if it is right, and not 0.
    """
    if answer.type is AnswerType.TEXT:
        return infer_option(text, answer.options)
    if not check_value(text, answer):
        return None
    return text if float(text) != 0 else None


def check_value(text: str, answer: MathAnswer) -> bool:
    """VLMEvalKit's final check of an extracted value.

    A list is always wrong: the kit compares with a misspelled type (its issue 1679).
    """
    try:
        match answer.type:
            case AnswerType.TEXT:
                return infer_option(text, answer.options) == answer.value
            case AnswerType.INTEGER:
                return int(text) == int(answer.value)
            case AnswerType.FLOAT:
                return float(text) == float(answer.value)
            case AnswerType.LIST:
                return False
    except (ValueError, OverflowError):
        return False


def check_official(text: str, answer: MathAnswer) -> bool:
    """The official scorer's verdict on an extracted value."""
    return official_value(text, answer) == _official_truth(answer)


def official_value(text: str, answer: MathAnswer) -> str | None:
    """Normalizes an extracted value as the official scorer does; None where it cannot.

    For a question with options it is the text of an option: the one whose letter stands in
    brackets, or is all of the text, and else the one nearest by Levenshtein's distance.
    """
    text = text.strip()
    try:
        match answer.type:
            case AnswerType.TEXT:
                return _nearest_option(text, answer.options)
            case AnswerType.INTEGER:
                return str(int(float(text)))
            case AnswerType.FLOAT:
                return str(round(float(text), answer.precision))
            case AnswerType.LIST:
                return str(text) or None
    except (ValueError, OverflowError):
        return None


def _official_truth(answer: MathAnswer) -> str:
    return answer.options[answer.value] if answer.type is AnswerType.TEXT else answer.value


def _nearest_option(text: str, options: Mapping[str, str]) -> str | None:
    if not text:
        return None
    bracketed = re.search(r"\(([a-zA-Z])\)", text)
    letter = bracketed[1].upper() if bracketed else text
    if letter in options:
        return options[letter]
    return min(options.values(), key=lambda option: _levenshtein(text, option), default=None)


def _levenshtein(first: str, second: str) -> int:
    row = list(range(len(second) + 1))
    for i, one in enumerate(first, start=1):
        above, row[0] = row[0], i
        for j, other in enumerate(second, start=1):
            above, row[j] = row[j], min(row[j] + 1, row[j - 1] + 1, above + (one != other))
    return row[-1]


_NUMBER = re.compile(r"(?<![\w.])[-+−]?\$?\s?(?:\d{1,3}(?:,\d{3})+|\d+)?(?:\.\d+|(?<=\d))(?!\w*\d)")
_AFTER_IS = re.compile(r"(?:\bis\b|\bare\b|=|≈)\s*(?:about|approximately)?\s*[:$(]?\s*$", re.I)
_LIST = re.compile(r"\[[^\[\]]*\]")


def extract_by_rule(text: str, answer: MathAnswer) -> str | None:
    """Finds the value in a conclusion without an LLM; a rule of ours, not the paper's.

    A free-form answer is the only number in the text, without its unit, `$`, `%` and commas
    between thousands; of several, the last that stands behind "is" or "=". A list is the only one
    in brackets. Returns None where the text has no such value.
    """
    if answer.type is AnswerType.TEXT:
        found = infer_option(text, answer.options)
        return None if found is None else answer.options.get(found, NO_OPTION)
    if answer.type is AnswerType.LIST:
        lists = _LIST.findall(text)
        return _plain_list(lists[0]) if len(lists) == 1 else None
    matches = [match for match in _NUMBER.finditer(text) if match.group().strip("+-−$ ")]
    if len(matches) > 1:
        matches = [match for match in matches if _AFTER_IS.search(text[: match.start()])][-1:]
    if len(matches) != 1:
        return None
    plain = re.sub(r"[$,\s]", "", matches[0].group()).replace("−", "-")
    return plain if math.isfinite(float(plain)) else None


def _plain_list(text: str) -> str | None:
    """A list as Python writes it."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None
    return str(value) if isinstance(value, list) else None
