"""The tables of a benchmark's scores."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import typer

from llavacot_mlx.cli.printable import printable_line
from llavacot_mlx.cli.views.tables import Column, print_table
from llavacot_mlx.evaluate.compare import PairedScores, RunComparison
from llavacot_mlx.evaluate.curve import CurvePoint
from llavacot_mlx.evaluate.score import ScoreLine, SetScore
from llavacot_mlx.evaluate.score_run import RunScore


@dataclass(frozen=True)
class PageTable:
    """A table as texts; its first column is a name, and the others are numbers."""

    title: str
    columns: tuple[str, ...]
    rows: Sequence[tuple[str, ...]]

    def show(self) -> None:
        """Prints the table on stdout."""
        head, *numbers = self.columns
        title = f"{self.title}: {head}" if self.title else head
        columns = (Column(printable_line(title)), *(Column(name, number=True) for name in numbers))
        print_table(columns, [tuple(map(printable_line, row)) for row in self.rows])


def score_table(score: RunScore) -> PageTable:
    """The scores of a run, a row for each set."""
    counts = ("rule", "LLM", "unresolved", "failed", "cut off", "malformed", "tokens")
    return PageTable("", ("set", "score", "95%", "of", *counts), [_row(e) for e in score.sets])


def print_score(score: RunScore) -> None:
    """Prints the scores of a run, and what must be said beside them."""
    score_table(score).show()
    for line in score_notes(score):
        typer.echo(printable_line(line))


def print_details(score: RunScore) -> None:
    """Prints the scores by category and by stage."""
    for each in score.sets:
        for table in (*category_tables(each), stage_table(each)):
            table.show()


def _row(each: SetScore) -> tuple[str, ...]:
    counts = (each.rule, each.llm, each.unresolved, each.failed, each.truncated, each.malformed)
    return (
        each.name,
        _or_dash(each.score),
        interval(each.low, each.high),
        f"{each.n:,}",
        *(f"{count:,}" for count in counts),
        f"{each.tokens:.0f}",
    )


def interval(low: float | None, high: float | None) -> str:
    """An interval in points."""
    return "" if low is None or high is None else f"{low:.1f}–{high:.1f}"


def score_notes(score: RunScore) -> list[str]:
    """What must be said beside the scores, a line each."""
    lines = []
    for each in score.sets:
        lines += [f"{each.name}: {note}" for note in _notes(each)]
        lines += [f"{each.name}: {note}" for note in score.record.sets[each.name].notes]
    if score.average is not None:
        mean = score.average
        lines.append(
            f"average of {mean.sets} sets: {mean.score:.1f} ({interval(mean.low, mean.high)})"
        )
    return lines


def _notes(each: SetScore) -> list[str]:
    lines = []
    if each.band is not None:
        lines.append(
            f"{each.unresolved} answers are unresolved and count as wrong; the score is between "
            f"{each.band[0]:.1f} and {each.band[1]:.1f}"
        )
    if each.full_set is not None and each.size < 100_000:
        lines.append(
            f"{each.n} of {each.size} questions: the whole set's score is "
            f"{interval(*each.full_set)} (95%)"
        )
    if each.parts:
        parts = ", ".join(f"{name} {value:.1f}" for name, value in each.parts.items())
        lines.append(f"mean of {parts}")
    if each.reasoning is not None:
        beside = "" if each.paper_reasoning is None else f" (the paper: {each.paper_reasoning})"
        lines.append(f"reasoning subset: {each.reasoning:.1f}{beside}")
    if each.clean is not None:
        lines.append(
            f"without sources seen in training: {each.clean.score:.1f} "
            f"({interval(each.clean.low, each.clean.high)}) of {each.clean.n}"
        )
    if each.paper is not None:
        verdict = "within noise" if each.paper.within_noise else "beyond noise"
        lines.append(
            f"{each.paper.row} in the paper: {each.paper.score}; "
            f"ours {each.paper.difference:+.1f}, {verdict} (±{each.paper.noise:.1f})"
        )
    return lines


def category_tables(each: SetScore) -> list[PageTable]:
    """The score by category, a table for each field."""
    return [
        PageTable(
            each.name,
            (title, "score", "95%", "of"),
            [(name, *_cells(line)) for name, line in lines.items()],
        )
        for title, lines in each.categories.items()
    ]


def _cells(line: ScoreLine) -> tuple[str, str, str]:
    return f"{line.score:.1f}", interval(line.low, line.high), f"{line.n:,}"


def stage_table(each: SetScore) -> PageTable:
    """How the stages were written, and how often the answers were right then."""
    rows = [
        (
            stage,
            f"{100 * line.well_formed / line.of:.1f}%",
            f"{line.tokens:.0f}",
            _or_dash(line.right_if_well_formed),
            _or_dash(line.right_otherwise),
        )
        for stage, line in each.stages.items()
    ]
    columns = ("stage", "well-formed", "tokens", "right if so", "right if not")
    return PageTable(each.name, columns, rows)


def _or_dash(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def print_comparison(found: RunComparison, first: str, second: str) -> None:
    """Prints the paired differences of two runs."""
    rows = [(printable_line(name), *_pair(pair)) for name, pair in found.sets.items()]
    if found.total is not None:
        rows.append(("all questions", *_pair(found.total)))
    names = (first, second, "difference", "95%", "p", "of", "won", "lost")
    print_table((Column("set"), *(Column(printable_line(n), number=True) for n in names)), rows)


def _pair(pair: PairedScores) -> tuple[str, ...]:
    return (
        f"{pair.first:.1f}",
        f"{pair.second:.1f}",
        f"{pair.difference:+.1f}",
        f"{pair.low:+.1f} to {pair.high:+.1f}",
        f"{pair.p:.1e}" if pair.p < 0.001 else f"{pair.p:.3f}",
        f"{pair.n:,}",
        f"{pair.won:,}",
        f"{pair.lost:,}",
    )


def print_points(points: Sequence[CurvePoint]) -> None:
    """Prints the scores of runs, and what they cost."""
    names = ("score", "95%", "of", "tokens", "seconds")
    rows = [
        (
            printable_line(point.name),
            point.method,
            f"{point.score:.1f}",
            interval(point.low, point.high),
            f"{point.n:,}",
            f"{point.tokens:.0f}",
            f"{point.seconds:.2f}",
        )
        for point in points
    ]
    columns = (Column("run"), Column("method"), *(Column(name, number=True) for name in names))
    print_table(columns, rows)
