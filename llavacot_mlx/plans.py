"""The search methods, as data.

A plan is a list of steps; a step says what is written next, how many candidates write it and how
many of them are kept. The engine in `search.py` runs any plan. Nothing here computes, so that the
command line can check its flags without loading mlx.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TypeVar

from .errors import UserError
from .stages import Stage


@dataclass(frozen=True)
class Sampling:
    """How a token is chosen. Temperature 0 takes the likeliest; `top_p` then has no effect."""

    temperature: float = 0.0
    top_p: float = 1.0


PUBLISHED_SAMPLING = Sampling(temperature=0.6, top_p=0.9)
"""Of the LLaVA-CoT authors (arXiv 2411.10440v6, appendix D)."""

_EVEN_CHANCE = 0.5
"""The published cut-off belongs to the scores of another judge; a probability has a middle."""

_MOST_CANDIDATES = 256  # far beyond what helps, and short of what a typing error can ask for


_Name = TypeVar("_Name", bound=enum.StrEnum)


class Method(enum.StrEnum):
    """How the answer is searched for."""

    GREEDY = "greedy"
    SAMPLE = "sample"
    BEST_OF_N = "best-of-n"
    MAJORITY = "majority"
    STAGE_BEAM = "stage-beam"
    SWIRES = "swires"


class Unit(enum.StrEnum):
    """How far a candidate writes in one step. A plan's last step goes to the end of the answer."""

    STAGE = "stage"
    ANSWER = "answer"


class JudgeName(enum.StrEnum):
    """Who scores the candidates."""

    SELF = "self"
    LOGPROB = "logprob"
    MAJORITY = "majority"


@dataclass(frozen=True)
class Step:
    """One round of candidates."""

    unit: Unit
    candidates: int
    """In all, spread evenly over those that were kept before."""
    keep: int


@dataclass(frozen=True)
class Retrace:
    """When to go back and write the steps from `to` on again."""

    after: int
    """The step after which that is decided, on the candidates of all rounds."""
    to: int
    most: int
    """How often at most."""
    threshold: float
    """The last of the kept must score at least this, or the search goes back."""


@dataclass(frozen=True)
class Plan:
    """A search method with its numbers."""

    method: Method
    steps: tuple[Step, ...]
    sampling: Sampling
    judge: JudgeName
    retrace: Retrace | None = None

    @property
    def single(self) -> bool:
        """Whether it follows one path, with nothing to choose."""
        return all(step.candidates == 1 for step in self.steps)


def plan_of(
    search: str | None,
    candidates: int | None,
    judge: str | None,
    temperature: float | None,
    top_p: float | None,
) -> Plan:
    """The plan that some settings ask for; None stands for what is usual.

    Raises UserError for a name that is none, or a number or judge that the method cannot have.
    """
    if search is None:
        search = Method.SAMPLE if temperature else Method.GREEDY
    method = _named(Method, search, "search")
    usual = Sampling() if method is Method.GREEDY else PUBLISHED_SAMPLING
    sampling = Sampling(
        usual.temperature if temperature is None else temperature,
        usual.top_p if top_p is None else top_p,
    )
    if method is Method.GREEDY and sampling.temperature > 0:
        raise UserError(f"greedy never draws, so it has no temperature of {temperature:g}")
    return make_plan(
        method, sampling, candidates, None if judge is None else _named(JudgeName, judge, "judge")
    )


def make_plan(
    method: Method, sampling: Sampling, candidates: int | None, judge: JudgeName | None
) -> Plan:
    """The plan of a method; `candidates` and `judge` are None for the method's own.

    Raises UserError for a number of candidates or a judge that the method cannot have.
    """
    if method in (Method.GREEDY, Method.SAMPLE):
        if candidates not in (None, 1):
            raise UserError(f"{method} follows one path; for {candidates} take best-of-n")
        if judge is not None:
            raise UserError(f"{method} follows one path, so there is nothing to judge")
        return Plan(method, (Step(Unit.ANSWER, 1, 1),), sampling, JudgeName.LOGPROB)
    if candidates is None:
        candidates = 2 if method is Method.STAGE_BEAM else 4
    if not 1 <= candidates <= _MOST_CANDIDATES:
        raise UserError(f"{candidates} candidates: take 1 to {_MOST_CANDIDATES}")
    if method is Method.MAJORITY:
        if judge not in (None, JudgeName.MAJORITY):
            raise UserError(f"majority counts conclusions; it cannot be judged by {judge}")
        return Plan(method, (Step(Unit.ANSWER, candidates, 1),), sampling, JudgeName.MAJORITY)
    if judge is JudgeName.MAJORITY and method is not Method.BEST_OF_N:
        raise UserError(f"{method} judges stages, and only whole answers have a majority")
    judge = judge or JudgeName.SELF
    if method is Method.SWIRES and judge is not JudgeName.SELF:
        raise UserError(f"swires goes back below an even chance, and {judge} gives no chances")
    if method is Method.BEST_OF_N:
        return Plan(method, (Step(Unit.ANSWER, candidates, 1),), sampling, judge)
    if method is Method.STAGE_BEAM:
        stage = Step(Unit.STAGE, candidates, 1)
        steps = (stage,) * (len(Stage) - 1) + (Step(Unit.ANSWER, candidates, 1),)
        return Plan(method, steps, sampling, judge)
    return _swires(sampling, candidates)


def _swires(sampling: Sampling, candidates: int) -> Plan:
    """Stage-wise retracing search with its published numbers (arXiv 2411.10440v6, appendix D).

    One summary; M = 4 captions, N = 2 kept; M reasonings, M / N from each, N kept; back to the
    captions, at most three times, while the N-th best reasoning of all rounds is not good enough;
    one conclusion from each, the better one kept.
    """
    keep = max(1, candidates // 2)
    steps = (
        Step(Unit.STAGE, 1, 1),
        Step(Unit.STAGE, candidates, keep),
        Step(Unit.STAGE, candidates, keep),
        Step(Unit.ANSWER, keep, 1),
    )
    if candidates == 1:
        return Plan(Method.SWIRES, steps, sampling, JudgeName.SELF)
    retrace = Retrace(after=2, to=1, most=3, threshold=_EVEN_CHANCE)
    return Plan(Method.SWIRES, steps, sampling, JudgeName.SELF, retrace)


def _named(names: type[_Name], name: str, setting: str) -> _Name:
    try:
        return names(name)
    except ValueError:
        raise UserError(f"{setting} {name!r} is none of {', '.join(names)}") from None
