"""Draws the accuracy of several runs against the tokens and the seconds that they took."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.score_run import RunScore
from llavacot_mlx.train.plots import new_figure, save_figure, style_axes

SIZE = (1400, 650)
"""Width and height of the figure, in pixels."""


@dataclass(frozen=True)
class CurvePoint:
    """One run."""

    name: str
    method: str
    score: float
    """In points."""
    low: float
    high: float
    tokens: float
    """Mean tokens decoded and judged for a question."""
    seconds: float
    """The median for an answer: other programs may have used the machine as well."""
    n: int


def curve_points(runs: Sequence[tuple[str, RunScore]]) -> list[CurvePoint]:
    """A point for each run, in the order of methods and tokens.

    A run of several sets stands with their average. Raises UserError for a run without a score.
    """
    points = []
    for name, run in runs:
        answers = [each.answer for each in run.answers if not each.answer.is_failed]
        line = run.average or run.sets[0]
        if line.score is None or line.low is None or line.high is None or not answers:
            raise UserError(f"{name}: has no score; llavacot eval score {name} says why")
        questions = {(each.question.set, each.question.group) for each in run.answers}
        repeats = run.record.repeats
        spent = sum(each.decoded_tokens + each.judge_tokens for each in answers)
        points.append(
            CurvePoint(
                name=name,
                method=str(run.record.plan["method"]),
                score=line.score,
                low=line.low,
                high=line.high,
                tokens=round(spent / len(questions) / repeats, 1),
                seconds=round(statistics.median(each.seconds for each in answers), 3),
                n=sum(each.n for each in run.sets),
            )
        )
    return sorted(points, key=lambda point: (point.method, point.tokens))


def draw_curve(points: Sequence[CurvePoint], file: Path) -> None:
    """Draws the points with their intervals as a PNG file; a line joins the runs of a method.

    Raises UserError as `train.plots.check_can_draw` does.
    """
    figure = new_figure(file, SIZE)
    left, right = figure.subplots(1, 2, sharey=True)
    _draw(left, points, "tokens", "tokens decoded and judged for a question")
    _draw(right, points, "seconds", "seconds for an answer")
    left.set_ylabel("right answers, %, with 95% intervals")
    left.legend(frameon=False, loc="best")
    save_figure(figure, file)


def _draw(axes: Any, points: Sequence[CurvePoint], name: str, label: str) -> None:
    methods: dict[str, list[CurvePoint]] = defaultdict(list)
    for point in points:
        methods[point.method].append(point)
    for number, (method, members) in enumerate(methods.items()):
        members = sorted(members, key=lambda point: getattr(point, name))
        places = [getattr(point, name) for point in members]
        scores = [point.score for point in members]
        spread = [
            [max(0.0, point.score - point.low) for point in members],
            [max(0.0, point.high - point.score) for point in members],
        ]
        color = f"C{number}"
        axes.errorbar(places, scores, yerr=spread, color=color, marker="o", capsize=3, label=method)
        for place, point in zip(places, members, strict=True):
            above = {"xytext": (6, 6), "textcoords": "offset points"}
            axes.annotate(point.name, (place, point.score), fontsize=8, color=color, **above)
    if all(getattr(point, name) > 0 for point in points):
        axes.set_xscale("log")
    axes.set_xlabel(label)
    style_axes(axes)
