"""Infers whether a text says yes or no, by the rules of VLMEvalKit (`vlmeval/utils/yorn.py`)."""

from __future__ import annotations

import re

YES, NO = "Yes", "No"

_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_DIGITS_WITH_COMMA = re.compile(r"\d,\d")
_FULL_STOP = re.compile(r"\.(?!\d)")
_MAX_STOPS = 32  # the kit passes a flag, re.UNICODE, where the number of replacements stands


def infer_yes_or_no(text: str) -> str | None:
    """Returns YES, NO, or None if the text says neither or both."""
    words = _without_punctuation(text.lower()).split()
    says_yes, says_no = "yes" in words, "no" in words
    if says_yes == says_no:
        return None
    return YES if says_yes else NO


def _without_punctuation(text: str) -> str:
    """Removes the punctuation that the kit removes; `*` and `:` stay."""
    original = text
    has_number = _DIGITS_WITH_COMMA.search(original) is not None
    for mark in _PUNCTUATION:
        touches_space = f"{mark} " in original or f" {mark}" in original
        text = text.replace(mark, "" if touches_space or has_number else " ")
    return _FULL_STOP.sub("", text, count=_MAX_STOPS)
