"""The search methods as data: plans, and the table that makes them from options.

A plan is a list of steps. A step says what is written next, how many candidates write it, and how
many of them are kept. `search/engine.py` runs any plan. Nothing here computes, so that the command
line can check its flags without loading mlx.
"""

from __future__ import annotations

import enum
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from llavacot_mlx.checked import brief, quoted
from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.sampling_params import PUBLISHED_SAMPLING, Sampling, check_sampling
from llavacot_mlx.prompt.stages import Stage

PUBLISHED_DEVIATIONS = 0.2533
"""The published threshold is the judge's mean score plus this many standard deviations."""

MAX_CANDIDATES = 256  # far more than helps, and fewer than a typo could ask for
MAX_RETRACES = 100


class Method(enum.StrEnum):
    """The name of a search method."""

    GREEDY = "greedy"
    SAMPLE = "sample"
    BEST_OF_N = "best-of-n"
    MAJORITY = "majority"
    SENTENCE_BEAM = "sentence-beam"
    STAGE_BEAM = "stage-beam"
    SWIRES = "swires"
    SWIRES_CODE = "swires-code"


class Unit(enum.StrEnum):
    """What a candidate writes in one step. A plan's last step runs to the end of the answer."""

    STAGE = "stage"
    SENTENCE = "sentence"
    """The step is repeated, sentence by sentence, to the end of the answer."""
    ANSWER = "answer"


# The built-in judges; any other name is an external judge, see `search/judges/plugins.py`.
SELF, LOGPROB, PAIRWISE, MAJORITY = "self", "logprob", "pairwise", "majority"
BUILT_IN_JUDGES = (SELF, LOGPROB, PAIRWISE, MAJORITY)


_SCORES = {
    SELF: (0.0, 1.0),
    PAIRWISE: (0.0, 1.0),
    LOGPROB: (-math.inf, 0.0),
    MAJORITY: (0.0, math.inf),
}
"""The lowest and the highest score that a built-in judge can give."""


@dataclass(frozen=True)
class Step:
    """One round of candidates: what they write, how many there are, and how many are kept."""

    unit: Unit
    candidates: int = 1
    """Number of candidates, spread evenly over the nodes that the step before kept."""
    keep: int = 1
    judge: str | None = None
    """None for the plan's judge."""
    sampling: Sampling | None = None
    """None for the plan's sampling."""
    max_tokens: int | None = None
    """Maximum number of tokens of one candidate. None for no limit but the whole path's."""


@dataclass(frozen=True)
class Retrace:
    """When a search goes back, and from which step it writes again."""

    after: int
    """Index of the step after which to decide, on the candidates of all rounds."""
    to: int
    """Index of the first step that is written again."""
    max_retraces: int
    """Maximum number of retraces."""
    rank: int
    """Rank of the candidate that must be good enough: 2 is the second best of all rounds."""
    threshold: float | None = None
    """Minimum score of that candidate. None for the judge's calibrated threshold: the mean of its
    scores plus `deviations` standard deviations."""
    deviations: float = PUBLISHED_DEVIATIONS


@dataclass(frozen=True)
class Plan:
    """A search method with all its numbers."""

    method: str
    steps: tuple[Step, ...]
    sampling: Sampling
    judge: str
    retrace: Retrace | None = None

    @property
    def is_single_path(self) -> bool:
        """Whether the plan follows a single path, so that there is nothing to choose."""
        return all(step.candidates == 1 for step in self.steps)

    @property
    def max_candidates(self) -> int:
        """The most candidates that are decoded together."""
        return max(step.candidates for step in self.steps)

    def judge_for(self, step: Step) -> str:
        return step.judge or self.judge

    def sampling_for(self, step: Step) -> Sampling:
        return step.sampling or self.sampling

    @property
    def judges(self) -> tuple[str, ...]:
        """The names of all judges that the plan may ask, without duplicates."""
        choosing = [step for step in self.steps if step.candidates > step.keep]
        deciding = [] if self.retrace is None else [self.steps[self.retrace.after]]
        return tuple(dict.fromkeys(self.judge_for(step) for step in (*choosing, *deciding)))


@dataclass(frozen=True)
class Settings:
    """The options of a search; None stands for the method's default."""

    search: str | None = None
    candidates: int | None = None
    keep: int | None = None
    judge: str | None = None
    temperature: float | None = None
    top_p: float | None = None
    max_retraces: int | None = None
    threshold: float | None = None


@dataclass(frozen=True)
class _RetraceRule:
    """How a method retraces from the reasonings to the captions."""

    max_retraces: int
    """Default maximum number of retraces."""
    rank: Callable[[int, int], int]
    """Function from candidates and keep to `Retrace.rank`."""


@dataclass(frozen=True)
class _Rules:
    """The definition of a search method: its steps, defaults, and allowed settings."""

    steps: Callable[[int, int], tuple[Step, ...]]
    """Function from candidates and keep to the steps."""
    candidates: int = 4
    """Default number of candidates; 1 for a method that can only follow a single path."""
    keep: Callable[[int], int] | None = lambda candidates: 1
    """Function from candidates to the default; None if the method only chooses at its end."""
    judge: str = SELF
    judge_is_fixed: bool = False
    """Whether the method's judge cannot be changed."""
    whole_answers: bool = False
    """Whether its candidates are whole answers, the only ones with a majority."""
    sampling: Sampling = PUBLISHED_SAMPLING
    samples: bool = True
    """Whether it allows a temperature above 0."""
    retrace_rule: _RetraceRule | None = None


def _one_answer(candidates: int, keep: int) -> tuple[Step, ...]:
    return (Step(Unit.ANSWER, candidates),)


def _sentences(candidates: int, keep: int) -> tuple[Step, ...]:
    return (Step(Unit.SENTENCE, candidates, keep),)


def _stages(candidates: int, keep: int) -> tuple[Step, ...]:
    stage = Step(Unit.STAGE, candidates, keep)
    return (*(stage for _ in list(Stage)[:-1]), Step(Unit.ANSWER, candidates))


def _swires(candidates: int, keep: int) -> tuple[Step, ...]:
    """The published steps: one summary; M = 4 captions, of which N = 2 are kept; M reasonings,
    M / N from each caption, of which N are kept; a conclusion from each."""
    return _one_summary_then(candidates, keep, concluded=keep)


def _swires_code(candidates: int, keep: int) -> tuple[Step, ...]:
    """The steps of the authors' code: the best three reasonings of all rounds get conclusions."""
    return _one_summary_then(candidates, keep, concluded=min(3, candidates))


def _one_summary_then(candidates: int, keep: int, concluded: int) -> tuple[Step, ...]:
    return (
        Step(Unit.STAGE),
        Step(Unit.STAGE, candidates, keep),
        Step(Unit.STAGE, candidates, concluded),
        Step(Unit.ANSWER, concluded),
    )


def _half(candidates: int) -> int:
    return max(1, candidates // 2)


# The two swires are stage-wise retracing search (arXiv 2411.10440v6, appendix D). As published it
# goes back at most three times, while the N-th best reasoning is not good enough; as coded there
# are five rounds in all, and the second best of all rounds decides.
_METHODS: Mapping[Method, _Rules] = {
    Method.GREEDY: _Rules(_one_answer, candidates=1, sampling=Sampling(), samples=False),
    Method.SAMPLE: _Rules(_one_answer, candidates=1),
    Method.BEST_OF_N: _Rules(_one_answer, keep=None, whole_answers=True),
    Method.MAJORITY: _Rules(
        _one_answer, keep=None, whole_answers=True, judge=MAJORITY, judge_is_fixed=True
    ),
    Method.SENTENCE_BEAM: _Rules(_sentences, candidates=2),
    Method.STAGE_BEAM: _Rules(  # the judge is that of the paper's first version
        _stages, candidates=2, judge=PAIRWISE
    ),
    Method.SWIRES: _Rules(
        _swires,
        keep=_half,
        retrace_rule=_RetraceRule(max_retraces=3, rank=lambda candidates, keep: keep),
    ),
    Method.SWIRES_CODE: _Rules(
        _swires_code,
        keep=_half,
        retrace_rule=_RetraceRule(max_retraces=4, rank=lambda candidates, keep: min(2, candidates)),
    ),
}


def make_plan(settings: Settings) -> Plan:
    """Makes the plan that the settings ask for.

    Raises UserError for an unknown method, or an option that the method does not support.
    """
    method = _method(settings)
    rules = _METHODS[method]
    if settings.candidates is not None:
        check_candidates(settings.candidates)
    if rules.candidates == 1:
        return _single(method, rules, settings)
    candidates = rules.candidates if settings.candidates is None else settings.candidates
    keep = _keep(method, rules, settings.keep, candidates)
    judge = _judge(method, rules, settings.judge)
    sampling = _sampling(rules, settings)
    steps = rules.steps(candidates, keep)
    return Plan(method, steps, sampling, judge, _retrace(method, settings, candidates, keep, judge))


def check_candidates(candidates: int) -> None:
    """Raises UserError for too few or absurdly many candidates."""
    if not 1 <= candidates <= MAX_CANDIDATES:
        raise UserError(f"{brief(candidates)} candidates: take 1 to {MAX_CANDIDATES}")


def check_keep(keep: int, candidates: int) -> None:
    """Raises UserError when fewer than one or more than all candidates are kept."""
    if keep < 1:
        raise UserError(f"keep {brief(keep)}: at least one must be kept")
    if keep > candidates:
        raise UserError(f"keep {brief(keep)} of {candidates}: no more can be kept than there are")


def check_threshold(judge: str, threshold: float) -> None:
    """Raises UserError for a threshold that no score of the judge could meet, or that all meet."""
    lowest, highest = _SCORES.get(judge, (-math.inf, math.inf))
    if not math.isfinite(threshold):
        raise UserError(f"threshold {threshold}: must be a number")
    if not lowest <= threshold <= highest:
        ends = "0 or more" if highest == math.inf else f"at most {highest:g}"
        between = f"from {lowest:g} to {highest:g}" if math.isfinite(lowest - highest) else ends
        raise UserError(f"threshold {threshold:g}: the scores of judge {judge} are {between}")


def _method(settings: Settings) -> Method:
    if settings.search is None:
        return Method.SAMPLE if settings.temperature else Method.GREEDY
    try:
        return Method(settings.search)
    except ValueError:
        raise UserError(
            f"search {quoted(settings.search)} is not one of {', '.join(Method)}"
        ) from None


def _single(method: Method, rules: _Rules, settings: Settings) -> Plan:
    if settings.candidates not in (None, 1):
        raise UserError(f"{method} follows one path; for {settings.candidates} take best-of-n")
    for name in ("judge", "keep", "max_retraces", "threshold"):
        value = getattr(settings, name)
        if value is not None:
            raise UserError(f"{method} follows one path, so there is no {name} of {value}")
    sampling = _sampling(rules, settings)
    if not rules.samples and sampling.temperature > 0:
        raise UserError(
            f"{method} does not sample, so it cannot have temperature {sampling.temperature:g}"
        )
    return Plan(method, rules.steps(1, 1), sampling, LOGPROB)


def _keep(method: Method, rules: _Rules, keep: int | None, candidates: int) -> int:
    """Returns how many candidates the steps before the last one keep."""
    if keep is None:
        return 1 if rules.keep is None else rules.keep(candidates)
    if rules.keep is None:
        raise UserError(f"{method} writes whole answers and gives one: there is nothing to keep")
    check_keep(keep, candidates)
    return keep


def _judge(method: Method, rules: _Rules, judge: str | None) -> str:
    if judge is None:
        return rules.judge
    if not judge.strip():
        raise UserError(f"a judge needs a name or a path; there are {', '.join(BUILT_IN_JUDGES)}")
    if rules.judge_is_fixed and judge != rules.judge:
        raise UserError(f"majority counts conclusions; it cannot be judged by {judge}")
    if judge == MAJORITY and not rules.whole_answers:
        raise UserError(f"{method} judges stages, and only whole answers have a majority")
    return judge


def _sampling(rules: _Rules, settings: Settings) -> Sampling:
    default = rules.sampling
    sampling = Sampling(
        default.temperature if settings.temperature is None else settings.temperature,
        default.top_p if settings.top_p is None else settings.top_p,
    )
    check_sampling(sampling)
    return sampling


def _retrace(
    method: Method, settings: Settings, candidates: int, keep: int, judge: str
) -> Retrace | None:
    rule, threshold = _METHODS[method].retrace_rule, settings.threshold
    if rule is None:
        for name in ("max_retraces", "threshold"):
            value = getattr(settings, name)
            if value is not None:
                raise UserError(f"{method} never goes back, so there is no {name} of {value:g}")
        return None
    max_retraces = rule.max_retraces if settings.max_retraces is None else settings.max_retraces
    if not 0 <= max_retraces <= MAX_RETRACES:
        raise UserError(f"max_retraces {brief(max_retraces)}: take 0 to {MAX_RETRACES}")
    if threshold is not None:
        check_threshold(judge, threshold)
    if candidates == 1 or max_retraces == 0:
        return None  # there is nothing to choose, or no retrace is allowed
    return Retrace(2, 1, max_retraces, rule.rank(candidates, keep), threshold)
