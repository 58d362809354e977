"""The package's verdicts against those of a scorer that was written from the specification alone.

500 generated predictions a set, every verdict and the score.
"""

from __future__ import annotations

import ast
import dataclasses
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import independent_scorer as independent
import pytest
from benchmark_files import ROWS, write_set
from written_runs import write_run

from llavacot_mlx.evaluate.open_sets import open_sets
from llavacot_mlx.evaluate.option_inference import Scorer
from llavacot_mlx.evaluate.profile import PROFILES
from llavacot_mlx.evaluate.question import BenchmarkQuestion
from llavacot_mlx.evaluate.score import SetScore
from llavacot_mlx.evaluate.score_run import score_by_rule

COUNT = 500
Write = Callable[[random.Random, dict[str, Any]], str]


def tagged(rng: random.Random, text: str) -> str:
    """A prediction as a model writes it, mostly in the tags of a conclusion."""
    return rng.choice(
        [
            f"<CONCLUSION> {text} </CONCLUSION>",
            f"<CONCLUSION>{text}</CONCLUSION>",
            f"<REASONING> It is B, no doubt. </REASONING>\n\n<CONCLUSION> {text} </CONCLUSION> A",
            f"<CONCLUSION> {text}",
            text,
            f"<CONCLUSION> {text} </CONCLUSION>\n<CONCLUSION> Z </CONCLUSION>",
        ]
    )


def choice(rng: random.Random, row: dict[str, Any]) -> str:
    options = [row[letter] for letter in "ABCD" if row.get(letter)]
    letters = "ABCD"[: len(options)]
    piece = [
        *letters,
        *options,
        *(option.title() for option in options),
        *("Z", "E", "b", "A cat", "(B)", "B-", "**C**", "D/C", '"A"', "$B$", "A:", "[D]", "#B"),
        *("The answer is", "the correct answer is **", "is", "and", "or", "not", "I think", "so"),
        *("because of the red roof", "Cannot determine the answer", "{C}", "A;", "B!", "\n"),
        *(independent.REFUSALS[2], independent.API_FAILURE, "Options:", "answer is c", "x " * 30),
    ]
    words = [rng.choice(piece) for _ in range(rng.choice((0, 1, 1, 2, 3, 5)))]
    return rng.choice((" ", " ", ", ", "")).join(words)


def yes_no(rng: random.Random, row: dict[str, Any]) -> str:
    piece = [
        *("yes", "Yes", "YES", "no", "No", "not", "none", "unknown", "yes-no", "no_one", "'no'"),
        *("**Yes**", "Yes:", "yes.", "No,", "(no)", "yes!", '"Yes"', "1,000", "3.5", ". ", "a."),
        *("the picture", "is right", "; ", "no;", "yes/", "-no", "@yes", "`yes`", "a. " * 33),
    ]
    words = [rng.choice(piece) for _ in range(rng.choice((0, 1, 1, 2, 3, 4)))]
    return rng.choice((" ", " ", "")).join(words)


def value(rng: random.Random, row: dict[str, Any]) -> str:
    if row["question_type"] == "multi_choice":
        options = dict(zip("ABCD", ast.literal_eval(row["choices"]), strict=False))
        return choice(rng, {**row, **options})
    if row["answer_type"] == "list":
        return rng.choice(["[1, 2]", "The list is [1,2].", "[2, 1]", "1 and 2", "[1] or [2]", ""])
    number = rng.choice(
        [row["answer"], "14", "0", "-14", "1.2", "1.23", "1.24", "3", "1,000", "14.0", "2.5", "7"]
    )
    return rng.choice(
        [
            number,
            f"{number} cm",
            f"The answer is {number}.",
            f"${number}",
            f"{number}%",
            f"x = {number}",
            f"3 apples and {number} pears",
            f"the side is 5 and the area is {number}",
            f"a = 2 and b = {number} as wanted",
            "none at all",
            "",
        ]
    )


def verdict(name: str, text: str, row: dict[str, Any], scorer: Scorer) -> bool | None:
    """What the independent scorer says."""
    text = independent.scored_part(text)
    if name == "hallusionbench":
        said = independent.yes_or_no(text)
        return None if said is None else said == row["answer"]
    if name == "mathvista":
        row = {**row, "choices": ast.literal_eval(row["choices"] or "[]")}
        return independent.mathvista(text, row, official=scorer is Scorer.MATHVISTA_OFFICIAL)
    options = {letter: row[letter] for letter in "ABCD" if row.get(letter)}
    letter = independent.chosen(text, options, newer=scorer is Scorer.VLMEVAL_2026)
    return None if letter is None else letter == row["answer"]


def measured(
    name: str, write: Write, scorer: Scorer, tmp_path: Path
) -> tuple[SetScore, dict[Any, bool | None], dict[Any, bool | None], list[dict[str, Any]]]:
    """The score, the verdicts of both scorers by index, and the rows that were asked."""
    rows = ROWS[name]()
    if name == "mmbench":
        from benchmark_files import mmbench_rows

        rows = mmbench_rows(COUNT // 4)
    write_set(tmp_path, name, rows)
    (each,) = open_sets(name, tmp_path)
    rng = random.Random(f"{name} {scorer}")
    asked = rows if name == "mmbench" else rng.sample(rows, COUNT)
    texts = {row["index"]: tagged(rng, write(rng, row)) for row in asked}

    def say(question: BenchmarkQuestion) -> str | None:
        return texts.get(question.index)

    profile = dataclasses.replace(PROFILES["paper"], scorer=scorer)
    run = score_by_rule(write_run(tmp_path / "run", [each], say, profile=profile))
    mine = {answer.question.index: answer.grade.right for answer in run.answers}
    theirs = {row["index"]: verdict(name, texts[row["index"]], row, scorer) for row in asked}
    assert mine.keys() == theirs.keys()
    different = {
        index: (texts[index], mine[index], theirs[index])
        for index in mine
        if mine[index] != theirs[index]
    }
    assert not different, next(iter(different.values()))
    return run.sets[0], mine, theirs, asked


@pytest.mark.parametrize(
    ("name", "write", "scorer"),
    [
        ("mmstar", choice, Scorer.VLMEVAL_2024),
        ("mmstar", choice, Scorer.VLMEVAL_2026),
        ("ai2d", choice, Scorer.VLMEVAL_2024),
        ("ai2d", choice, Scorer.VLMEVAL_2026),
        ("ai2d-no-mask", choice, Scorer.VLMEVAL_2024),
        ("mathvista", value, Scorer.VLMEVAL_2024),
    ],
)
def test_every_verdict_and_the_share_of_right_ones(
    name: str, write: Write, scorer: Scorer, tmp_path: Path
) -> None:
    found, _, theirs, _ = measured(name, write, scorer, tmp_path)
    assert len(theirs) == COUNT
    assert set(theirs.values()) == {True, False, None}
    right = independent.mean(each is True for each in theirs.values())
    assert found.score == pytest.approx(right, abs=1e-3)
    unresolved = list(theirs.values()).count(None)
    assert found.unresolved == unresolved
    assert found.band == pytest.approx((right, right + 100 * unresolved / COUNT), abs=1e-3)


@pytest.mark.parametrize("scorer", [Scorer.VLMEVAL_2024, Scorer.VLMEVAL_2026])
def test_every_verdict_on_rotations_and_the_score_of_mmbench(
    scorer: Scorer, tmp_path: Path
) -> None:
    def mostly_right(rng: random.Random, row: dict[str, Any]) -> str:
        return row["answer"] if rng.random() < 0.8 else choice(rng, row)

    found, _, theirs, _ = measured("mmbench", mostly_right, scorer, tmp_path)
    assert len(theirs) == COUNT
    assert found.score == pytest.approx(independent.circular(theirs), abs=1e-3)
    assert 10 < (found.score or 0) < 90


def test_every_verdict_and_the_three_metrics_of_hallusionbench(tmp_path: Path) -> None:
    def mostly_right(rng: random.Random, row: dict[str, Any]) -> str:
        return row["answer"] if rng.random() < 0.7 else yes_no(rng, row)

    found, _, theirs, asked = measured(
        "hallusionbench", mostly_right, Scorer.VLMEVAL_2024, tmp_path
    )
    categories = {row["index"]: row["l2-category"] for row in asked}
    parts = independent.hallusion({key: (categories[key], each) for key, each in theirs.items()})
    assert list(found.parts.values()) == pytest.approx(parts, abs=1e-3)
    assert found.score == pytest.approx(sum(parts) / 3, abs=1e-3)


def test_every_verdict_on_mere_yes_and_no(tmp_path: Path) -> None:
    _, _, theirs, _ = measured("hallusionbench", yes_no, Scorer.VLMEVAL_2024, tmp_path)
    assert set(theirs.values()) == {True, False, None}


def test_free_answers_are_open_without_a_grader(tmp_path: Path) -> None:
    """MM-Vet has no rules, so every verdict is open."""
    write_set(tmp_path, "mmvet")
    (each,) = open_sets("mmvet", tmp_path)
    rng = random.Random(1)
    run = score_by_rule(write_run(tmp_path / "run", [each], lambda question: tagged(rng, "x = -1")))
    assert {answer.grade.right for answer in run.answers} == {None}
    assert {answer.grade.score for answer in run.answers} == {None}
