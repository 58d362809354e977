"""Infers which option a text chooses, by the rules of VLMEvalKit.

`vlmeval-2024` is its commit 7de2dcbc (November 2024), with which the paper was scored, and
`vlmeval-2026` is e8e78f05 (August 2026): `vlmeval/utils/matching_util.py`.
"""

from __future__ import annotations

import enum
import re
from collections.abc import Mapping

NO_OPTION = "Z"
"""Stands for: the text chooses none of the options, and says so."""

_REFUSALS = (
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
)
_API_FAILURE = "Failed to obtain answer via API."
_SPACES = str.maketrans(dict.fromkeys(".()[],:;!*#{}", " "))
_LAST_TOKENS = 4  # among which vlmeval-2026 accepts a letter
_SAID = re.compile(r"answer is (?:\*\*)?([A-D])\b", re.IGNORECASE)  # "correct" or not


class Scorer(enum.StrEnum):
    """Which version of the benchmarks' scoring rules is used."""

    VLMEVAL_2024 = "vlmeval-2024"
    VLMEVAL_2026 = "vlmeval-2026"
    MATHVISTA_OFFICIAL = "mathvista-official"
    """As vlmeval-2024, but MathVista by its authors' own scorer."""


def infer_option(
    text: str, options: Mapping[str, str], scorer: Scorer = Scorer.VLMEVAL_2024
) -> str | None:
    """Returns the letter of the option that a text chooses, NO_OPTION, or None if it is unclear."""
    if _API_FAILURE in text:
        return None
    if any(refusal in text for refusal in _REFUSALS):
        return NO_OPTION
    is_newer = scorer is Scorer.VLMEVAL_2026
    return (
        _letter(text, options, only_last=is_newer)
        or (_said_letter(text, options) if is_newer else None)
        or _text(text, options, give_up=is_newer)
    )


def _letter(text: str, options: Mapping[str, str], *, only_last: bool) -> str | None:
    """The one option's letter that stands among the text's tokens."""
    tokens = text.translate(_SPACES).split()
    letters = [letter for letter in options if letter in tokens]
    if len(letters) == 1:
        is_late = tokens.index(letters[0]) >= len(tokens) - _LAST_TOKENS
        return letters[0] if is_late or not only_last else None
    if not letters and NO_OPTION in tokens:
        is_late = tokens.index(NO_OPTION) >= len(tokens) - _LAST_TOKENS
        return NO_OPTION if is_late or not only_last else None
    return None


def _said_letter(text: str, options: Mapping[str, str]) -> str | None:
    said = _SAID.search(text)
    letter = said[1].upper() if said else None
    return letter if letter in options else None


def _text(text: str, options: Mapping[str, str], *, give_up: bool) -> str | None:
    """The letter of the one option whose text stands in the text."""
    if give_up and len(text) > 2 * sum(map(len, options.values())):
        return None
    lower = text.lower()
    found = [letter for letter, option in options.items() if option.lower() in lower]
    return found[0] if len(found) == 1 else None
