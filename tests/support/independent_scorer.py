"""A second scorer, written from the specification's prose and not from the package's code.

It takes what a data file says and a model's text, and returns a verdict: True, False, or None
where the rules leave it open. It is slow, and as plain as the prose.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from decimal import Decimal, InvalidOperation
from fractions import Fraction
from typing import Any

API_FAILURE = "Failed to obtain answer via API."
REFUSALS = [
    "Sorry, I can't help with images of people yet.",
    "I can't process this file.",
    "I'm sorry, but without the image provided",
    "Cannot determine the answer",
]


def scored_part(text: str) -> str:
    start = text.find("<CONCLUSION>")
    if start >= 0:
        text = text[start + len("<CONCLUSION>") :]
        end = text.find("</CONCLUSION>")
        if end >= 0:
            text = text[:end]
    return text.strip()


# --- Options ---


def chosen(text: str, options: Mapping[str, str], *, newer: bool = False) -> str | None:
    """The letter, `Z`, or None."""
    if API_FAILURE in text:
        return None
    for refusal in REFUSALS:
        if refusal in text:
            return "Z"
    spaced = "".join(" " if character in ".()[],:;!*#{}" else character for character in text)
    words = spaced.split()
    there = {letter for letter in options if words.count(letter)}
    if len(there) == 1:
        letter = there.pop()
        if not newer or (letter in words[-4:] and letter not in words[:-4]):
            return letter
    elif not there and "Z" in words and (not newer or "Z" not in words[:-4]):
        return "Z"
    if newer:
        said = said_answer(text)
        if said in options:
            return said
        if len(text) > 2 * sum(len(option) for option in options.values()):
            return None
    named = [letter for letter in options if text.lower().count(options[letter].lower())]
    return named[0] if len(named) == 1 else None


def said_answer(text: str) -> str | None:
    """L of the first "[correct] answer is [**]L"."""
    lower = text.lower()
    place = lower.find("answer is ")
    while place >= 0:
        rest = text[place + len("answer is ") :].removeprefix("**")
        if rest[:1].upper() in ("A", "B", "C", "D") and not rest[1:2].isalnum():
            return rest[0].upper()
        place = lower.find("answer is ", place + 1)
    return None


# --- Yes and no ---


def yes_or_no(text: str) -> str | None:
    text = text.lower()
    given = text
    number = any(
        given[n].isdigit() and given[n + 1] == "," and given[n + 2].isdigit()
        for n in range(len(given) - 2)
    )
    for mark in [*';/[]"{}()=+\\_-><@`,?!']:
        touches = any(
            given[n] == mark and " " in (given[n - 1 : n] + given[n + 1 : n + 2])
            for n in range(len(given))
        )
        text = text.replace(mark, "" if touches or number else " ")
    kept, deleted = [], 0
    for n, character in enumerate(text):
        if character == "." and not text[n + 1 : n + 2].isdigit() and deleted < 32:
            deleted += 1
        else:
            kept.append(character)
    words = set("".join(kept).split())
    if ("yes" in words) == ("no" in words):
        return None
    return "Yes" if "yes" in words else "No"


# --- MathVista ---


def mathvista(text: str, row: Mapping[str, Any], *, official: bool = False) -> bool | None:
    """By the kit where it would not ask a model, and else by the rule for when there is none."""
    if row["question_type"] == "multi_choice":
        options = dict(zip("ABCDEFGH", row["choices"], strict=False))
        letter = chosen(text, options)
        if letter is None:
            return None
        return letter == row["answer_option"]
    kind, answer = row["answer_type"], row["answer"]
    if not official and kind in ("integer", "float"):
        read = int if kind == "integer" else float
        try:
            if read(text) == read(answer) and float(text) != 0:
                return True
        except ValueError:
            pass
    if kind == "list":
        if text.count("[") != 1 or text.count("]") != 1:
            return None
        inside = text[text.index("[") + 1 : text.index("]")].split(",")
        try:
            values = [int(part) for part in inside]
        except ValueError:
            return None
        return str(values) == answer if official else False
    number = only_number(text)
    if number is None:
        return None
    if kind == "integer":
        return str(int(number)) == answer
    places = row.get("precision", len(answer.split(".")[1]))
    return str(round(float(number), places)) == answer


def only_number(text: str) -> Fraction | None:
    """The only number of a text, or the last one behind "is" or "="."""
    words = text.replace("=", " = ").split()
    numbers = []
    for n, word in enumerate(words):
        plain = word.strip("$%.!?()").replace("$", "").replace(",", "")
        try:
            value = Fraction(Decimal(plain))
        except InvalidOperation:
            continue
        before = words[n - 1].lower() if n else ""
        numbers.append((value, before in ("is", "=")))
    if len(numbers) == 1:
        return numbers[0][0]
    behind = [value for value, is_behind in numbers if is_behind]
    return behind[-1] if behind else None


# --- Scores ---


def mean(values: Iterable[float]) -> float:
    listed = list(values)
    return 100 * sum(listed) / len(listed)


def circular(verdicts: Mapping[int, bool | None]) -> float:
    """The score of MMBench from the verdict on each row; an open one counts as wrong."""
    main = [index for index in verdicts if index < 1_000_000]
    return mean(
        all(verdicts[index] is True for index in verdicts if index % 1_000_000 == question)
        for question in main
    )


def hallusion(rows: Mapping[str, tuple[str, bool | None]]) -> tuple[float, float, float]:
    """aAcc, fAcc and qAcc, from the l2-category and the verdict of each index."""
    figures: dict[Any, bool] = {}
    questions: dict[Any, bool] = {}
    for index, (category, verdict) in rows.items():
        parts = index.split("_")
        right = verdict is True
        figure, question = (category, parts[3], parts[4]), (category, parts[3], parts[5])
        figures[figure] = figures.get(figure, True) and right
        questions[question] = questions.get(question, True) and right
    return (
        mean(verdict is True for _, verdict in rows.values()),
        mean(figures.values()),
        mean(questions.values()),
    )
