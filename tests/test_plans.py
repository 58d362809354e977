"""Search methods as data: what the settings mean, and what they may not."""

from __future__ import annotations

import pytest

from llavacot_mlx.errors import UserError
from llavacot_mlx.plans import JudgeName, Method, Plan, Retrace, Step, Unit, plan_of
from llavacot_mlx.sampling import Sampling


def plan(
    search: str | None = None, candidates: int | None = None, judge: str | None = None
) -> Plan:
    return plan_of(search, candidates, judge, temperature=None, top_p=None)


def test_swires_has_its_published_numbers() -> None:
    """arXiv 2411.10440v6, appendix D: M = 4, N = 2, C = 3, temperature 0.6, top-p 0.9."""
    assert plan("swires") == Plan(
        Method.SWIRES,
        (
            Step(Unit.STAGE, 1, 1),
            Step(Unit.STAGE, 4, 2),
            Step(Unit.STAGE, 4, 2),
            Step(Unit.ANSWER, 2, 1),
        ),
        Sampling(0.6, 0.9),
        JudgeName.SELF,
        Retrace(after=2, to=1, most=3, threshold=0.5),
    )


def test_without_a_method_the_temperature_decides() -> None:
    assert plan_of(None, None, None, None, None).method is Method.GREEDY
    assert plan_of(None, None, None, 0.0, None).method is Method.GREEDY
    assert plan_of(None, None, None, 0.3, None) == plan_of("sample", None, None, 0.3, None)


@pytest.mark.parametrize("method", list(Method))
def test_one_candidate_has_nothing_to_choose(method: Method) -> None:
    assert plan(method, 1).single


def test_candidates_and_judge_change_a_plan() -> None:
    assert plan("best-of-n", 8, "logprob").steps == (Step(Unit.ANSWER, 8, 1),)
    assert plan("best-of-n", 8, "logprob").judge is JudgeName.LOGPROB
    beam = [Step(Unit.STAGE, 3, 1)] * 3 + [Step(Unit.ANSWER, 3, 1)]
    assert list(plan("stage-beam", 3).steps) == beam
    assert [step.keep for step in plan("swires", 6).steps] == [1, 3, 3, 1]


@pytest.mark.parametrize(
    ("search", "candidates", "judge", "named"),
    [
        ("beam", None, None, "beam"),
        ("best-of-n", 0, None, "0"),
        ("best-of-n", -3, None, "-3"),
        ("swires", 10_000, None, "10000"),
        ("best-of-n", None, "oracle", "oracle"),
        ("greedy", 4, None, "4"),
        ("sample", None, "self", "sample"),
        ("majority", None, "logprob", "logprob"),
        ("stage-beam", None, "majority", "stage-beam"),
        ("swires", None, "logprob", "logprob"),
    ],
)
def test_what_makes_no_sense_is_said(
    search: str, candidates: int | None, judge: str | None, named: str
) -> None:
    with pytest.raises(UserError, match=named):
        plan(search, candidates, judge)


def test_greedy_has_no_temperature() -> None:
    with pytest.raises(UserError, match="greedy"):
        plan_of("greedy", None, None, 0.6, None)
