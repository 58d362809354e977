"""Search methods as data: what the settings mean, and which combinations are refused."""

from __future__ import annotations

from typing import Any

import pytest

from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.plan.plan import (
    LOGPROB,
    MAJORITY,
    PAIRWISE,
    SELF,
    Method,
    Plan,
    Retrace,
    Settings,
    Step,
    Unit,
    make_plan,
)


def test_swires_has_its_published_numbers() -> None:
    """arXiv 2411.10440v6, appendix D: M = 4, N = 2, C = 3, temperature 0.6, top-p 0.9."""
    assert make_plan(Settings("swires")) == Plan(
        Method.SWIRES,
        (
            Step(Unit.STAGE, 1, 1),
            Step(Unit.STAGE, 4, 2),
            Step(Unit.STAGE, 4, 2),
            Step(Unit.ANSWER, 2, 1),
        ),
        Sampling(0.6, 0.9),
        SELF,
        Retrace(after=2, to=1, max_retraces=3, rank=2, threshold=None, deviations=0.2533),
    )


def test_swires_code_has_the_numbers_of_its_authors_program() -> None:
    """4 captions, 2 kept, 2 reasonings each, five rounds, three conclusions; the second best of all
    rounds decides."""
    plan = make_plan(Settings("swires-code"))
    assert [step.candidates for step in plan.steps] == [1, 4, 4, 3]
    assert [step.keep for step in plan.steps] == [1, 2, 3, 1]
    assert plan.retrace == Retrace(after=2, to=1, max_retraces=4, rank=2)


def test_the_first_version_of_the_paper_judges_in_pairs() -> None:
    plan = make_plan(Settings("stage-beam"))
    assert plan.judge == PAIRWISE
    assert plan.steps == (*[Step(Unit.STAGE, 2)] * 3, Step(Unit.ANSWER, 2))
    assert plan.retrace is None


def test_without_a_method_the_temperature_decides() -> None:
    assert make_plan(Settings()).method is Method.GREEDY
    assert make_plan(Settings(temperature=0.0)).method is Method.GREEDY
    drawn = make_plan(Settings(temperature=0.3))
    assert drawn == make_plan(Settings("sample", temperature=0.3))
    assert drawn.sampling == Sampling(0.3, 0.9)


@pytest.mark.parametrize("method", list(Method))
def test_one_candidate_has_nothing_to_choose(method: Method) -> None:
    plan = make_plan(Settings(method, candidates=1))
    assert plan.is_single_path
    assert plan.retrace is None
    assert plan.judges == ()


@pytest.mark.parametrize(
    ("settings", "candidates", "kept"),
    [
        (Settings("best-of-n", 8), [8], [1]),
        (Settings("sentence-beam"), [2], [1]),
        (Settings("sentence-beam", 6, 3), [6], [3]),
        (Settings("stage-beam", 3), [3, 3, 3, 3], [1, 1, 1, 1]),
        (Settings("stage-beam", 4, 2), [4, 4, 4, 4], [2, 2, 2, 1]),
        (Settings("swires", 6), [1, 6, 6, 3], [1, 3, 3, 1]),
        (Settings("swires", 6, 1), [1, 6, 6, 1], [1, 1, 1, 1]),
        (Settings("swires-code", 2), [1, 2, 2, 2], [1, 1, 2, 1]),
    ],
)
def test_candidates_and_keep_change_a_plan(
    settings: Settings, candidates: list[int], kept: list[int]
) -> None:
    plan = make_plan(settings)
    assert [step.candidates for step in plan.steps] == candidates
    assert [step.keep for step in plan.steps] == kept


def test_judge_retraces_and_threshold_change_a_plan() -> None:
    assert make_plan(Settings("best-of-n", judge=LOGPROB)).judge == LOGPROB
    assert make_plan(Settings("best-of-n", judge=MAJORITY)).judge == MAJORITY
    assert make_plan(Settings("swires", judge="/models/reward")).judges == ("/models/reward",)
    retrace = make_plan(Settings("swires", judge=LOGPROB, max_retraces=7, threshold=-0.243)).retrace
    assert retrace is not None
    assert (retrace.max_retraces, retrace.threshold) == (7, -0.243)
    assert make_plan(Settings("swires", max_retraces=0)).retrace is None


def test_the_judges_of_a_plan_are_those_that_it_asks() -> None:
    """A step without a choice asks no judge, and each name comes once."""
    steps = (
        Step(Unit.STAGE, judge="never"),
        Step(Unit.STAGE, 4, 2, judge="a"),
        Step(Unit.STAGE, 4, 4, judge="b"),
        Step(Unit.ANSWER, 4),
    )
    plan = Plan("mine", steps, Sampling(), "a")
    assert plan.judges == ("a",)
    assert Plan("mine", steps, Sampling(), "c", Retrace(2, 1, 3, 2)).judges == ("a", "c", "b")


def wrong(**settings: Any) -> Any:
    named = settings.pop("named")
    return pytest.param(Settings(**settings), named, id=named)


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        wrong(search="beam", named="beam"),
        wrong(search="best-of-n", candidates=0, named="0 candidates"),
        wrong(search="best-of-n", candidates=-3, named="-3 candidates"),
        wrong(search="swires", candidates=10_000, named="10000 candidates"),
        wrong(search="greedy", candidates=4, named="for 4 take best-of-n"),
        wrong(search="greedy", temperature=0.6, named="cannot have temperature 0.6"),
        wrong(search="sample", judge="self", named="no judge of self"),
        wrong(search="sample", keep=1, named="no keep of 1"),
        wrong(search="greedy", threshold=0.5, named="no threshold of 0.5"),
        wrong(search="greedy", max_retraces=2, named="no max_retraces of 2"),
        wrong(search="majority", judge="logprob", named="cannot be judged by logprob"),
        wrong(search="stage-beam", judge="majority", named="stage-beam judges stages"),
        wrong(search="swires", judge="", named="a judge needs a name"),
        wrong(search="swires", keep=5, named="keep 5 of 4"),
        wrong(search="swires", keep=0, named="keep 0"),
        wrong(search="best-of-n", keep=1, named="nothing to keep"),
        wrong(search="best-of-n", threshold=0.5, named="never goes back"),
        wrong(search="stage-beam", max_retraces=1, named="max_retraces of 1"),
        wrong(search="swires", max_retraces=-1, named="max_retraces -1"),
        wrong(search="swires", max_retraces=1000, named="max_retraces 1000"),
        wrong(search="swires", threshold=float("nan"), named="threshold nan"),
        wrong(search="sample", temperature=-1.0, named="temperature must be 0 or more"),
        wrong(search="sample", top_p=0.0, named="top_p must be above 0"),
    ],
)
def test_what_makes_no_sense_is_said(settings: Settings, named: str) -> None:
    with pytest.raises(UserError, match=named):
        make_plan(settings)
