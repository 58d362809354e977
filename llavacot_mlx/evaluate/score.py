"""The score of a set from the verdicts on its answers, with intervals and tables."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np

from llavacot_mlx.evaluate.answer_file import AnswerRow
from llavacot_mlx.evaluate.benchmark_set import Task
from llavacot_mlx.evaluate.grade import GradedBy
from llavacot_mlx.evaluate.grade_file import GradeRow
from llavacot_mlx.evaluate.paper import (
    REASONING,
    REASONING_SCORES,
    SCORES,
    SEEN_IN_TRAINING,
    PaperComparison,
    compare_with_paper,
    paper_row,
)
from llavacot_mlx.evaluate.question_file import StoredQuestion
from llavacot_mlx.evaluate.run_folder import RunRecord, SetRecord
from llavacot_mlx.evaluate.statistics import ClusterSums, wilson
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.finish import Finish

_HALLUSION_PARTS = ("aAcc", "fAcc", "qAcc")


@dataclass(frozen=True)
class GradedAnswer:
    """A question, its answer, and the verdict."""

    question: StoredQuestion
    answer: AnswerRow
    grade: GradeRow

    @property
    def value(self) -> float | None:
        """From 0 to 1; None where nothing decided."""
        if self.grade.score is not None:
            return self.grade.score
        return None if self.grade.right is None else float(self.grade.right)


@dataclass(frozen=True)
class ScoreLine:
    """A score in points, with its 95% interval, of `n` questions."""

    score: float
    low: float
    high: float
    n: int


@dataclass(frozen=True)
class StageLine:
    """How often a stage was written as it should be, and how often the answer then was right."""

    well_formed: int
    """Answers that have it once, closed and not empty."""
    of: int
    tokens: float
    """Mean number of tokens."""
    right_if_well_formed: float | None
    """In points; None where there is no such answer."""
    right_otherwise: float | None


@dataclass(frozen=True)
class SetScore:
    """Everything that is said about a set of a run."""

    name: str
    score: float | None
    """In points. An unresolved answer counts as wrong; None where nothing could be scored."""
    low: float | None
    high: float | None
    band: tuple[float, float] | None
    """The score if all unresolved answers were wrong, and if all were right."""
    n: int
    """Questions that were scored; a question with its rotations is one."""
    size: int
    full_set: tuple[float, float] | None
    """The interval of the score of the whole set, from a run of a part of it."""
    answers: int
    rule: int
    llm: int
    unresolved: int
    failed: int
    truncated: int
    """Answers that reached the limit on tokens."""
    malformed: int
    """Answers without the four stages in order, closed and not empty."""
    no_conclusion: int
    """Answers without the tag of a conclusion, of which the whole text was scored."""
    open_conclusion: int
    """Answers whose conclusion is not closed."""
    tokens: float
    """Mean tokens decoded for an answer."""
    judge_tokens: float
    stages: dict[str, StageLine] = field(default_factory=dict)
    categories: dict[str, dict[str, ScoreLine]] = field(default_factory=dict)
    parts: dict[str, float] = field(default_factory=dict)
    """The metrics that the score is the mean of, in points."""
    reasoning: float | None = None
    clean: ScoreLine | None = None
    """The score without questions from sources that LLaVA-CoT was trained on."""
    paper: PaperComparison | None = None
    paper_reasoning: float | None = None
    scorer: str = ""
    extractor: str | None = None
    """The model that decided where the rules did not."""


def score_set(
    name: str, record: RunRecord, answers: Sequence[GradedAnswer], rotations: dict[int | str, int]
) -> SetScore:
    """Scores the answers of a set; `rotations` has the number of rotations of each question."""
    about = record.sets[name]
    scored = [each for each in answers if not each.answer.is_failed]
    hits = question_hits(scored, rotations)
    by = [each.grade.by for each in answers]
    unresolved = by.count(GradedBy.NONE)
    line, sums, high_sums = None, None, None
    if hits and unresolved < len(scored) and any(each.value is not None for each in scored):
        sums = cluster_sums(about.task, hits, 0.0)
        high_sums = cluster_sums(about.task, hits, 1.0)
        line = _line(about.task, sums, len({hit.question.group for hit in hits}))
    model = next((each.grade.model for each in answers if each.grade.by is GradedBy.LLM), None)
    return SetScore(
        name=name,
        score=None if line is None else line.score,
        low=None if line is None else line.low,
        high=None if line is None else line.high,
        band=_band(sums, high_sums, unresolved, about),
        n=len({hit.question.group for hit in hits}),
        size=about.size,
        full_set=_full_set(line, about.size),
        answers=len(answers),
        rule=by.count(GradedBy.RULE),
        llm=by.count(GradedBy.LLM),
        unresolved=unresolved,
        failed=len(answers) - len(scored),
        truncated=sum(each.answer.finish == Finish.LENGTH for each in scored),
        malformed=sum(not each.answer.well_formed for each in scored),
        no_conclusion=sum(Stage.CONCLUSION.opening not in each.answer.text for each in scored),
        open_conclusion=sum(_is_open(each.answer.text) for each in scored),
        tokens=_mean(each.answer.decoded_tokens for each in scored),
        judge_tokens=_mean(each.answer.judge_tokens for each in scored),
        stages={str(stage): _stage_line(stage, scored) for stage in Stage} if scored else {},
        categories=_tables(about, hits) if line else {},
        parts=_parts(about.task, sums),
        reasoning=_reasoning(name, about, hits, line),
        clean=_clean(name, about, hits) if line else None,
        paper=_paper(name, record, line, model),
        paper_reasoning=REASONING_SCORES.get(_row_name(record), {}).get(name),
        scorer=str(record.profile.scorer),
        extractor=model,
    )


@dataclass(frozen=True)
class Hit:
    """What one question counts, in one repeat."""

    question: StoredQuestion
    """Of its rotations the first."""
    value: float | None
    """From 0 to 1; None where it depends on an answer that nothing decided."""

    def counted(self, unresolved: float) -> float:
        return unresolved if self.value is None else self.value


def question_hits(answers: Sequence[GradedAnswer], rotations: dict[int | str, int]) -> list[Hit]:
    """What each question counts; one with rotations counts if all are right.

    Without the questions that have not been asked in all rotations, unless one is wrong already.
    """
    groups: dict[tuple[int | str, int], list[GradedAnswer]] = defaultdict(list)
    for each in answers:
        groups[each.question.group, each.answer.repeat].append(each)
    found = []
    for (group, _), members in groups.items():
        first = min(members, key=lambda each: each.question.rotation).question
        values = [each.value for each in members]
        decided = [value for value in values if value is not None]
        if len(members) == 1 == rotations[group]:
            found.append(Hit(first, values[0]))
        elif 0.0 in decided:
            found.append(Hit(first, 0.0))
        elif len(members) == rotations[group]:
            found.append(Hit(first, min(decided) if len(decided) == len(values) else None))
    return found


def cluster_sums(task: Task, hits: Sequence[Hit], unresolved: float) -> ClusterSums:
    """The sums of hits by cluster, with `unresolved` for a question that nothing decided."""
    clusters: dict[object, list[Hit]] = defaultdict(list)
    for hit in hits:
        clusters[_cluster(task, hit.question)].append(hit)
    sums = [_sums(task, members, unresolved) for members in clusters.values()]
    return ClusterSums(np.array([s[0] for s in sums]), np.array([s[1] for s in sums]))


def _cluster(task: Task, question: StoredQuestion) -> object:
    if task is Task.HALLUSION:
        return question.fields["l2-category"], question.fields["set"]
    return question.picture


def _sums(task: Task, members: Sequence[Hit], unresolved: float) -> tuple[list[float], list[float]]:
    values = [hit.counted(unresolved) for hit in members]
    hits, counts = [sum(values)], [float(len(values))]
    if task is Task.HALLUSION:
        for name in ("figure", "question"):
            groups: dict[str, list[float]] = defaultdict(list)
            for hit, value in zip(members, values, strict=True):
                groups[hit.question.fields[name]].append(value)
            hits.append(sum(map(min, groups.values())))
            counts.append(float(len(groups)))
    return hits, counts


def _line(task: Task, sums: ClusterSums, n: int) -> ScoreLine:
    score = sums.score()
    # Pictures of the world are independent draws, for which Wilson's interval is better.
    low, high = wilson(score * n, n) if task is Task.SHAPES else sums.interval()
    return ScoreLine(_points(score), _points(low), _points(high), n)


def _points(share: float) -> float:
    return round(100 * share, 4)


def _mean(values: Iterable[float]) -> float:
    numbers = list(values)
    return round(sum(numbers) / len(numbers), 2) if numbers else 0.0


def _band(
    low: ClusterSums | None, high: ClusterSums | None, unresolved: int, about: SetRecord
) -> tuple[float, float] | None:
    if not unresolved:
        return None
    if low is None or high is None:
        return (0.0, 100.0) if about.has_answers else None
    return _points(low.score()), _points(high.score())


def _full_set(line: ScoreLine | None, size: int) -> tuple[float, float] | None:
    if line is None or line.n >= size:
        return None
    factor = math.sqrt(1 - line.n / size)
    return (
        round(line.score - factor * (line.score - line.low), 4),
        round(line.score + factor * (line.high - line.score), 4),
    )


def _is_open(text: str) -> bool:
    _, opened, rest = text.partition(Stage.CONCLUSION.opening)
    return bool(opened) and Stage.CONCLUSION.closing not in rest


def _stage_line(stage: Stage, answers: Sequence[GradedAnswer]) -> StageLine:
    good: list[float] = []
    other: list[float] = []
    tokens = []
    for each in answers:
        records = [record for record in each.answer.stages if record.stage is stage]
        tokens.append(sum(record.tokens for record in records))
        is_good = len(records) == 1 and records[0].closed and bool(records[0].text.strip())
        if each.value is not None:
            (good if is_good else other).append(each.value)
        elif is_good:
            good.append(0.0)
        else:
            other.append(0.0)
    return StageLine(
        well_formed=len(good),
        of=len(answers),
        tokens=_mean(tokens),
        right_if_well_formed=_points(sum(good) / len(good)) if good else None,
        right_otherwise=_points(sum(other) / len(other)) if other else None,
    )


def _tables(about: SetRecord, hits: Sequence[Hit]) -> dict[str, dict[str, ScoreLine]]:
    tables = {name: _table(hits, name, has_labels=False) for name in about.categories}
    for name in about.labels:
        title = f"each {name}" if name in tables else name
        tables[title] = _table(hits, name, has_labels=True)
    return {name: table for name, table in tables.items() if table}


def labels_of(text: str) -> list[str]:
    """The labels of a cell with several, as in `ocr,math`."""
    return [label.strip() for label in text.split(",") if label.strip()]


def _categories(hit: Hit, name: str, *, has_labels: bool) -> list[str]:
    text = hit.question.fields.get(name, "")
    return labels_of(text) if has_labels else [text]


def _table(hits: Sequence[Hit], name: str, *, has_labels: bool) -> dict[str, ScoreLine]:
    values: dict[str, list[float]] = defaultdict(list)
    groups: dict[str, set[int | str]] = defaultdict(set)
    for hit in hits:
        for label in filter(None, _categories(hit, name, has_labels=has_labels)):
            values[label].append(hit.counted(0.0))
            groups[label].add(hit.question.group)
    return {label: _wilson_line(values[label], len(groups[label])) for label in sorted(values)}


def _wilson_line(values: Sequence[float], n: int) -> ScoreLine:
    share = sum(values) / len(values)
    low, high = wilson(share * n, n)
    return ScoreLine(_points(share), _points(low), _points(high), n)


def _parts(task: Task, sums: ClusterSums | None) -> dict[str, float]:
    if task is not Task.HALLUSION or sums is None:
        return {}
    ratios = sums.hits.sum(0) / sums.counts.sum(0)
    return {name: _points(ratio) for name, ratio in zip(_HALLUSION_PARTS, ratios, strict=True)}


def _reasoning(
    name: str, about: SetRecord, hits: Sequence[Hit], line: ScoreLine | None
) -> float | None:
    """The mean of the reasoning categories; None where one of them has no question."""
    if line is None or name not in REASONING:
        return None
    column, wanted = REASONING[name]
    has_labels = column in about.labels
    found = []
    for category in wanted:
        values = [
            hit.counted(0.0)
            for hit in hits
            if category in _categories(hit, column, has_labels=has_labels)
        ]
        if not values:
            return None
        found.append(sum(values) / len(values))
    return _points(sum(found) / len(found))


def _clean(name: str, about: SetRecord, hits: Sequence[Hit]) -> ScoreLine | None:
    if name not in SEEN_IN_TRAINING:
        return None
    column, seen = SEEN_IN_TRAINING[name]
    if not any(column in hit.question.fields for hit in hits):
        return None
    folded = {source.casefold() for source in seen}
    kept = [hit for hit in hits if hit.question.fields.get(column, "").casefold() not in folded]
    if not kept:
        return None
    sums = cluster_sums(about.task, kept, 0.0)
    return _line(about.task, sums, len({hit.question.group for hit in kept}))


def _row_name(record: RunRecord) -> str:
    return paper_row(str(record.plan.get("method", "")))


def _paper(
    name: str, record: RunRecord, line: ScoreLine | None, extractor: str | None
) -> PaperComparison | None:
    """The paper's score beside ours; None where the two are not of one kind.

    MMBench of the paper is of its test split, whose answers are not public, MM-Vet was graded by a
    model that is not ours, and MathVista's numbers were extracted by one.
    """
    row = _row_name(record)
    theirs = SCORES.get(row, {}).get(name)
    about = record.sets[name]
    is_by_rule = about.task is Task.MATHVISTA and extractor is None
    if line is None or theirs is None or not about.is_papers or is_by_rule:
        return None
    half = (line.high - line.low) / 2
    return compare_with_paper(row, theirs, line.score, half, about.size)


@dataclass(frozen=True)
class Average:
    """The mean of several sets' scores, as if they were independent."""

    score: float
    low: float
    high: float
    sets: int


def average(scores: Sequence[SetScore]) -> Average | None:
    """None for fewer than two sets, or where one has no score."""
    lines = [(each.score, each.low, each.high) for each in scores]
    found = [line for line in lines if line[0] is not None]
    if len(lines) < 2 or len(found) < len(lines):
        return None
    mean = sum(score or 0.0 for score, _, _ in found) / len(found)
    half = math.sqrt(sum((((high or 0) - (low or 0)) / 2) ** 2 for _, low, high in found))
    half /= len(found)
    return Average(round(mean, 4), round(mean - half, 4), round(mean + half, 4), len(found))
