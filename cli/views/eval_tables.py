"""The tables of a benchmark's scores."""

from __future__ import annotations

import typer

from llavacot_mlx.cli.printable import printable_line
from llavacot_mlx.cli.views.tables import Column, print_table
from llavacot_mlx.evaluate.compare import PairedScores, RunComparison
from llavacot_mlx.evaluate.score import ScoreLine, SetScore
from llavacot_mlx.evaluate.score_run import RunScore

_SCORE_COLUMNS = (
    Column("set"),
    Column("score", number=True),
    Column("95%", number=True),
    Column("of", number=True),
    Column("rule", number=True),
    Column("LLM", number=True),
    Column("unresolved", number=True),
    Column("failed", number=True),
    Column("cut off", number=True),
    Column("malformed", number=True),
    Column("tokens", number=True),
)


def print_score(score: RunScore) -> None:
    """Prints the scores of a run."""
    print_table(_SCORE_COLUMNS, [_row(each) for each in score.sets])
    for line in score_notes(score):
        typer.echo(line)


def print_details(score: RunScore) -> None:
    """Prints the scores by category and by stage."""
    for each in score.sets:
        print_categories(each)
        print_stages(each)


def _row(each: SetScore) -> tuple[str, ...]:
    counts = (each.rule, each.llm, each.unresolved, each.failed, each.truncated, each.malformed)
    return (
        printable_line(each.name),
        "–" if each.score is None else f"{each.score:.1f}",
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


def print_categories(each: SetScore) -> None:
    """Prints the score by category, a table for each field."""
    for title, lines in each.categories.items():
        rows = [(printable_line(name), *_cells(line)) for name, line in lines.items()]
        columns = (Column("score", number=True), Column("95%", number=True))
        print_table((Column(f"{each.name}: {title}"), *columns, Column("of", number=True)), rows)


def _cells(line: ScoreLine) -> tuple[str, str, str]:
    return f"{line.score:.1f}", interval(line.low, line.high), f"{line.n:,}"


def print_stages(each: SetScore) -> None:
    """Prints how the stages were written, and how often the answers were right then."""
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
    names = ("well-formed", "tokens", "right if so", "right if not")
    print_table(
        (Column(f"{each.name}: stage"), *(Column(name, number=True) for name in names)), rows
    )


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
