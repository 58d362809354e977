"""Two runs on the same questions, and the curve of several."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmark_files import choice_rows, write_tsv
from written_runs import Say, concluded, write_run

from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet
from llavacot_mlx.evaluate.compare import RunComparison, compare_runs
from llavacot_mlx.evaluate.curve import curve_points, draw_curve
from llavacot_mlx.evaluate.open_sets import open_sets
from llavacot_mlx.evaluate.question import BenchmarkQuestion
from llavacot_mlx.evaluate.score_run import read_score


def own_set(folder: Path, count: int = 40) -> BenchmarkSet:
    (found,) = open_sets(str(write_tsv(folder / "own.tsv", choice_rows(count))), None)
    return found


def only(right: range) -> Say:
    """Answers of which those to questions with these numbers are right."""

    def say(question: BenchmarkQuestion) -> str:
        other = "B" if question.answer == "A" else "A"
        return concluded(question.answer or "" if question.index in right else other)

    return say


def compared(tmp_path: Path, first: Say, second: Say) -> RunComparison:
    own = own_set(tmp_path)
    runs = [
        read_score(write_run(tmp_path / name, [own], say))
        for name, say in (("a", first), ("b", second))
    ]
    return compare_runs(runs[0], runs[1], ("a", "b"))


def test_the_second_run_minus_the_first(tmp_path: Path) -> None:
    found = compared(tmp_path, only(range(20)), only(range(10, 40))).sets["own"]
    assert (found.first, found.second, found.difference) == (50, 75, 25)
    assert (found.n, found.lost, found.won) == (40, 10, 20)
    assert found.p == pytest.approx(0.0987, abs=1e-4)  # 2 · P(at most 10 of 30 heads)
    assert found.low < 25 < found.high
    assert (found.low + found.high) / 2 == pytest.approx(25, abs=3)


def test_equal_runs(tmp_path: Path) -> None:
    found = compared(tmp_path, only(range(20)), only(range(20)))
    pair = found.sets["own"]
    assert (pair.difference, pair.low, pair.high, pair.p) == (0, 0, 0, 1)
    assert (pair.lost, pair.won, found.flips) == (0, 0, [])


def test_the_questions_that_changed_are_listed(tmp_path: Path) -> None:
    flips = compared(tmp_path, only(range(20)), only(range(1, 21))).flips
    assert [(flip.index, flip.won) for flip in flips] == [(0, False), (20, True)]


def test_questions_that_only_one_run_answered_or_nothing_decided_are_left_out(
    tmp_path: Path,
) -> None:
    def some(question: BenchmarkQuestion) -> str | None:
        if question.index == 3:
            return concluded("I do not know")
        return None if int(question.index) > 29 else concluded("A")

    assert compared(tmp_path, some, only(range(40))).sets["own"].n == 29


def test_runs_without_a_question_in_common(tmp_path: Path) -> None:
    own = read_score(write_run(tmp_path / "a", [own_set(tmp_path)], only(range(9))))
    shapes = open_sets("shapes", None, limit=3)
    other = read_score(write_run(tmp_path / "b", shapes, lambda question: concluded("2")))
    with pytest.raises(UserError, match="a and b have no question in common: they ran own and"):
        compare_runs(own, other, ("a", "b"))


def test_runs_on_different_data_of_one_name(tmp_path: Path) -> None:
    first = read_score(write_run(tmp_path / "a", [own_set(tmp_path)], only(range(9))))
    rows = [row | {"question": "Another?"} for row in choice_rows(4)]
    (changed,) = open_sets(str(write_tsv(tmp_path / "own.tsv", rows)), None)
    second = read_score(write_run(tmp_path / "b", [changed], only(range(9))))
    with pytest.raises(UserError, match="own, row 0: asks one thing in a and another in b"):
        compare_runs(first, second, ("a", "b"))


def test_all_sets_together(tmp_path: Path) -> None:
    sets = [own_set(tmp_path), *open_sets("shapes", None, limit=10)]
    runs = [
        read_score(write_run(tmp_path / name, sets, lambda question, text=text: concluded(text)))
        for name, text in (("a", "A"), ("b", "B"))
    ]
    found = compare_runs(runs[0], runs[1], ("a", "b"))
    assert found.total is not None
    assert found.total.n == 50
    assert found.total.won == sum(pair.won for pair in found.sets.values())


def test_a_curve_has_a_point_for_each_run(tmp_path: Path) -> None:
    own = own_set(tmp_path)
    runs = [
        (name, read_score(write_run(tmp_path / name, [own], only(range(right)))))
        for name, right in (("low", 10), ("high", 30))
    ]
    points = curve_points(runs)
    assert {point.name: point.score for point in points} == {"low": 25, "high": 75}
    assert {(point.tokens, point.seconds, point.method) for point in points} == {
        (16, 0.5, "sample")
    }
    draw_curve(points, tmp_path / "curve.png")
    assert (tmp_path / "curve.png").read_bytes().startswith(b"\x89PNG")
