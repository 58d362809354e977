"""Two runs on the same questions: the paired difference, and the questions that changed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.benchmark_set import Task
from llavacot_mlx.evaluate.score import GradedAnswer, Hit, cluster_sums, question_hits
from llavacot_mlx.evaluate.score_run import RunScore
from llavacot_mlx.evaluate.statistics import mcnemar, paired_interval


@dataclass(frozen=True)
class Flip:
    """A question that one run got right and the other did not."""

    set: str
    index: int | str
    won: bool
    """Whether the second run got it right."""


@dataclass(frozen=True)
class PairedScores:
    """The second run minus the first, on the questions that both answered."""

    difference: float
    """In points."""
    low: float
    high: float
    p: float
    """McNemar's exact two-sided test of won against lost."""
    n: int
    lost: int
    """Questions that only the first got right."""
    won: int
    """Questions that only the second got right."""
    first: float
    """Scores on these questions, in points."""
    second: float


@dataclass(frozen=True)
class RunComparison:
    """The comparison of two runs, by set and over all of them."""

    sets: dict[str, PairedScores]
    total: PairedScores | None
    """Every question of all sets alike; None for a single set."""
    flips: list[Flip] = field(default_factory=list)


def compare_runs(first: RunScore, second: RunScore, names: tuple[str, str]) -> RunComparison:
    """Compares two runs on the questions that both answered.

    Questions that a run could not ask, and that nothing decided in either, are left out. `names`
    are those of the runs in errors. Raises UserError if the runs have no question in common, or if
    the same question is another one in the other run.
    """
    shared = [name for name in first.record.sets if name in second.record.sets]
    found: dict[str, PairedScores] = {}
    flips: list[Flip] = []
    all_pairs: list[tuple[Hit, Hit]] = []
    for name in shared:
        one, other = _hits(first, name), _hits(second, name)
        pairs = [(one[key], other[key]) for key in one if key in other]
        if not pairs:
            continue
        _check_same(pairs, names)
        task = first.record.sets[name].task
        found[name] = _paired(task, pairs)
        all_pairs += pairs
        flips += [
            Flip(name, mine.question.index, won=theirs.counted(0) > mine.counted(0))
            for mine, theirs in pairs
            if mine.counted(0) != theirs.counted(0)
        ]
    if not found:
        raise UserError(
            f"{names[0]} and {names[1]} have no question in common: they ran "
            f"{', '.join(first.record.sets)} and {', '.join(second.record.sets)}"
        )
    total = _paired(Task.CHOICE, all_pairs) if len(found) > 1 else None
    return RunComparison(found, total, flips)


def _hits(run: RunScore, name: str) -> dict[int | str, Hit]:
    """What each question of a set counts, the mean over repeats."""
    answers: list[GradedAnswer] = [
        each for each in run.answers if each.question.set == name and not each.answer.is_failed
    ]
    rotations = run.rotations[name]
    by_group: dict[int | str, list[Hit]] = {}
    for hit in question_hits(answers, rotations):
        if hit.value is not None:
            by_group.setdefault(hit.question.group, []).append(hit)
    return {
        group: Hit(hits[0].question, sum(hit.counted(0) for hit in hits) / len(hits))
        for group, hits in by_group.items()
    }


def _check_same(pairs: Sequence[tuple[Hit, Hit]], names: tuple[str, str]) -> None:
    for mine, theirs in pairs:
        if (mine.question.prompt, mine.question.answer) != (
            theirs.question.prompt,
            theirs.question.answer,
        ):
            raise UserError(
                f"{mine.question.set}, row {mine.question.index}: asks one thing in {names[0]} and "
                f"another in {names[1]}; run both on the same data"
            )


def _paired(task: Task, pairs: Sequence[tuple[Hit, Hit]]) -> PairedScores:
    first = cluster_sums(task, [mine for mine, _ in pairs], 0.0)
    # The questions of both are the first run's, so that the clusters are the same.
    second = cluster_sums(task, [Hit(mine.question, theirs.value) for mine, theirs in pairs], 0.0)
    low, high = paired_interval(first, second)
    won = sum(theirs.counted(0) > mine.counted(0) for mine, theirs in pairs)
    lost = sum(theirs.counted(0) < mine.counted(0) for mine, theirs in pairs)
    return PairedScores(
        difference=_points(second.score() - first.score()),
        low=_points(-high),
        high=_points(-low),
        p=mcnemar(won, lost),
        n=len(pairs),
        lost=lost,
        won=won,
        first=_points(first.score()),
        second=_points(second.score()),
    )


def _points(share: float) -> float:
    return round(100 * share, 4) + 0.0
