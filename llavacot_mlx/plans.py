"""The search methods, as data.

A plan is a list of steps; a step says what is written next, how many candidates write it and how
many of them are kept. The engine in `search.py` runs any plan. Nothing here computes, so that the
command line can check its flags without loading mlx.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, replace

from .errors import UserError
from .sampling_params import PUBLISHED_SAMPLING, Sampling, check_sampling
from .stages import Stage

PUBLISHED_DEVIATIONS = 0.2533
"""The published cut-off lies so many standard deviations above the mean of the judge's scores."""

MOST_CANDIDATES = 256  # far beyond what helps, and short of what a typing error can ask for
MOST_RETRACES = 100


class Method(enum.StrEnum):
    """How the answer is searched for."""

    GREEDY = "greedy"
    SAMPLE = "sample"
    BEST_OF_N = "best-of-n"
    MAJORITY = "majority"
    SENTENCE_BEAM = "sentence-beam"
    STAGE_BEAM = "stage-beam"
    SWIRES = "swires"
    SWIRES_CODE = "swires-code"


class Unit(enum.StrEnum):
    """What a candidate writes in one step. A plan's last step goes to the end of the answer."""

    STAGE = "stage"
    SENTENCE = "sentence"
    """The step is repeated, sentence after sentence, until the answer is at its end."""
    ANSWER = "answer"


# Who scores the candidates; any other name is a judge from outside, see `judges/outside.py`.
SELF, LOGPROB, PAIRWISE, MAJORITY = "self", "logprob", "pairwise", "majority"
OWN_JUDGES = (SELF, LOGPROB, PAIRWISE, MAJORITY)


@dataclass(frozen=True)
class Step:
    """One round of candidates."""

    unit: Unit
    candidates: int = 1
    """In all, spread evenly over those that were kept before."""
    keep: int = 1
    judge: str | None = None
    """None for the plan's."""
    sampling: Sampling | None = None
    """None for the plan's."""
    max_tokens: int | None = None
    """Of one candidate; it ends there, complete or not. None for no limit but the answer's."""


@dataclass(frozen=True)
class Retrace:
    """When to go back and write the steps from `to` on again."""

    after: int
    """The step after which that is decided, on the candidates of all rounds."""
    to: int
    most: int
    """How often at most."""
    rank: int
    """The candidate that must be good enough: 2 is the second best of all rounds."""
    threshold: float | None = None
    """What it must score at least. None for the judge's calibrated cut-off: the mean of its
    scores plus `deviations` standard deviations."""
    deviations: float = PUBLISHED_DEVIATIONS


@dataclass(frozen=True)
class Plan:
    """A search method with its numbers."""

    method: str
    steps: tuple[Step, ...]
    sampling: Sampling
    judge: str
    retrace: Retrace | None = None

    @property
    def single(self) -> bool:
        """Whether it follows one path, with nothing to choose."""
        return all(step.candidates == 1 for step in self.steps)

    def judge_of(self, step: Step) -> str:
        return step.judge or self.judge

    def sampling_of(self, step: Step) -> Sampling:
        return step.sampling or self.sampling

    @property
    def judges(self) -> tuple[str, ...]:
        """The names of all judges that it may ask, each once."""
        asked = (self.judge_of(step) for step in self.steps if step.candidates > step.keep)
        deciding = () if self.retrace is None else (self.judge_of(self.steps[self.retrace.after]),)
        return tuple(dict.fromkeys((*asked, *deciding)))


@dataclass(frozen=True)
class Settings:
    """What a person may say about a search; None stands for what is usual."""

    search: str | None = None
    candidates: int | None = None
    keep: int | None = None
    judge: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_retraces: int | None = None
    threshold: float | None = None


def plan_of(settings: Settings) -> Plan:
    """The plan that some settings ask for.

    Raises UserError for a name that is none, or for a number that the method cannot have.
    """
    method = _method(settings)
    if method in (Method.GREEDY, Method.SAMPLE):
        return _single(method, settings)
    candidates = _candidates(method, settings)
    keep = _keep(method, settings, candidates)
    judge = _judge(method, settings)
    plan = Plan(method, _steps(method, candidates, keep), _sampling(method, settings), judge)
    return replace(plan, retrace=_retrace(method, settings, candidates, keep))


def _method(settings: Settings) -> Method:
    if settings.search is None:
        return Method.SAMPLE if settings.temperature else Method.GREEDY
    try:
        return Method(settings.search)
    except ValueError:
        raise UserError(f"search {settings.search!r} is none of {', '.join(Method)}") from None


def _sampling(method: Method, settings: Settings) -> Sampling:
    usual = Sampling() if method is Method.GREEDY else PUBLISHED_SAMPLING
    sampling = Sampling(
        usual.temperature if settings.temperature is None else settings.temperature,
        usual.top_p if settings.top_p is None else settings.top_p,
    )
    check_sampling(sampling)
    return sampling


def _single(method: Method, settings: Settings) -> Plan:
    if settings.candidates not in (None, 1):
        raise UserError(f"{method} follows one path; for {settings.candidates} take best-of-n")
    unused = {
        "judge": settings.judge,
        "keep": settings.keep,
        "max_retraces": settings.max_retraces,
        "threshold": settings.threshold,
    }
    for name, value in unused.items():
        if value is not None:
            raise UserError(f"{method} follows one path, so there is no {name} of {value}")
    sampling = _sampling(method, settings)
    if method is Method.GREEDY and sampling.temperature > 0:
        raise UserError(f"greedy never draws, so it has no temperature of {sampling.temperature:g}")
    return Plan(method, (Step(Unit.ANSWER),), sampling, LOGPROB)


def _candidates(method: Method, settings: Settings) -> int:
    if settings.candidates is None:
        return 2 if method in (Method.STAGE_BEAM, Method.SENTENCE_BEAM) else 4
    check_candidates(settings.candidates)
    return settings.candidates


def check_candidates(candidates: int) -> None:
    """Raises UserError for a number of candidates that is too small or absurd."""
    if not 1 <= candidates <= MOST_CANDIDATES:
        raise UserError(f"{candidates} candidates: take 1 to {MOST_CANDIDATES}")


def _keep(method: Method, settings: Settings, candidates: int) -> int:
    """Of the rounds before the last, how many go on."""
    retraces = method in (Method.SWIRES, Method.SWIRES_CODE)
    if settings.keep is None:
        return max(1, candidates // 2) if retraces else 1
    if method in (Method.BEST_OF_N, Method.MAJORITY):
        raise UserError(f"{method} writes whole answers and gives one: there is nothing to keep")
    check_keep(settings.keep, candidates)
    return settings.keep


def check_keep(keep: int, candidates: int) -> None:
    """Raises UserError for more kept than written, or none."""
    if keep < 1:
        raise UserError(f"keep {keep}: at least one must be kept")
    if keep > candidates:
        raise UserError(f"keep {keep} of {candidates}: no more can be kept than there are")


def _judge(method: Method, settings: Settings) -> str:
    judge = settings.judge
    if judge is not None and not judge.strip():
        raise UserError(f"a judge has a name or a path; there are {', '.join(OWN_JUDGES)}")
    if method is Method.MAJORITY:
        if judge not in (None, MAJORITY):
            raise UserError(f"majority counts conclusions; it cannot be judged by {judge}")
        return MAJORITY
    if judge == MAJORITY and method is not Method.BEST_OF_N:
        raise UserError(f"{method} judges stages, and only whole answers have a majority")
    if judge is None:
        return PAIRWISE if method is Method.STAGE_BEAM else SELF  # as the paper's first version
    return judge


def _steps(method: Method, candidates: int, keep: int) -> tuple[Step, ...]:
    if method in (Method.BEST_OF_N, Method.MAJORITY):
        return (Step(Unit.ANSWER, candidates),)
    if method is Method.SENTENCE_BEAM:
        return (Step(Unit.SENTENCE, candidates, keep),)
    if method is Method.STAGE_BEAM:
        stage = Step(Unit.STAGE, candidates, keep)
        return (*(stage for _ in list(Stage)[:-1]), Step(Unit.ANSWER, candidates))
    # Stage-wise retracing search. As published (arXiv 2411.10440v6, appendix D): one summary; M = 4
    # captions, N = 2 kept; M reasonings, M / N from each, N kept; a conclusion from each. As its
    # authors coded it: the best three reasonings of all rounds get a conclusion each.
    concluded = min(3, candidates) if method is Method.SWIRES_CODE else keep
    return (
        Step(Unit.STAGE),
        Step(Unit.STAGE, candidates, keep),
        Step(Unit.STAGE, candidates, concluded),
        Step(Unit.ANSWER, concluded),
    )


def _retrace(method: Method, settings: Settings, candidates: int, keep: int) -> Retrace | None:
    """Published: at most three times, while the N-th best reasoning is not good enough.

    As coded: five rounds in all, and the second best of all rounds decides.
    """
    if method not in (Method.SWIRES, Method.SWIRES_CODE):
        for name, value in (
            ("max_retraces", settings.max_retraces),
            ("threshold", settings.threshold),
        ):
            if value is not None:
                raise UserError(f"{method} never goes back, so there is no {name} of {value:g}")
        return None
    coded = method is Method.SWIRES_CODE
    most = settings.max_retraces
    if most is None:
        most = 4 if coded else 3
    if not 0 <= most <= MOST_RETRACES:
        raise UserError(f"max_retraces {most}: take 0 to {MOST_RETRACES}")
    if settings.threshold is not None and not math.isfinite(settings.threshold):
        raise UserError(f"threshold {settings.threshold}: must be a number")
    if candidates == 1 or most == 0:
        return None  # nothing to choose, or nowhere to go back to
    rank = min(2, candidates) if coded else keep
    return Retrace(after=2, to=1, most=most, rank=rank, threshold=settings.threshold)
