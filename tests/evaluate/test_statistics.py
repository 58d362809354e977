"""The benchmark's statistics, against figures worked out elsewhere."""

from __future__ import annotations

import pytest

from llavacot_mlx.evaluate.statistics import difference, mcnemar, wilson


def test_wilson_s_interval_of_a_share() -> None:
    """scipy 1.17.1: binomtest(863, 1000).proportion_ci(method="wilson")."""
    assert wilson(863, 1000) == pytest.approx((0.840295, 0.882927), abs=1e-5)


def test_a_share_of_all_or_nothing_has_an_interval_inside_it() -> None:
    assert wilson(10, 10) == pytest.approx((0.72247, 1.0), abs=1e-4)
    assert wilson(0, 10) == pytest.approx((0.0, 0.27753), abs=1e-4)


@pytest.mark.parametrize(
    ("wins", "losses", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (5, 5, 1.0),
        (8, 0, 2 / 2**8),
        (10, 2, 2 * (1 + 12 + 66) / 2**12),
        (2, 10, 2 * (1 + 12 + 66) / 2**12),
    ],
)
def test_the_exact_test_of_wins_against_losses(wins: int, losses: int, p: float) -> None:
    assert mcnemar(wins, losses) == pytest.approx(p)


def test_a_difference_is_of_the_same_questions() -> None:
    first = [True] * 70 + [False] * 30
    second = [True] * 50 + [False] * 20 + [True] * 10 + [False] * 20
    found = difference(first, second)
    assert (found.wins, found.losses) == (20, 10)
    assert found.value == pytest.approx(0.1)
    # Of so many draws the difference is nearly normal: 0.1 ± 1.96 · sqrt((0.3 − 0.01) / 100).
    assert found.low == pytest.approx(0.1 - 0.1056, abs=0.015)
    assert found.high == pytest.approx(0.1 + 0.1056, abs=0.015)


def test_answers_without_a_partner_are_an_error() -> None:
    with pytest.raises(ValueError, match="3 answers cannot be paired with 2"):
        difference([True] * 3, [True] * 2)
