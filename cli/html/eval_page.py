"""The report of one or more runs of a benchmark, as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from llavacot_mlx import __version__
from llavacot_mlx.cli.html.page import page_style, page_template
from llavacot_mlx.cli.html.page_picture import PagePicture, page_picture
from llavacot_mlx.cli.units import format_seconds
from llavacot_mlx.cli.views.eval_tables import (
    PageTable,
    category_tables,
    score_notes,
    score_table,
    stage_table,
)
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.grade import GradedBy
from llavacot_mlx.evaluate.run_pictures import RunPictures
from llavacot_mlx.evaluate.score import GradedAnswer
from llavacot_mlx.evaluate.score_run import RunScore

_PICTURE_SIDE = 420  # pixels


@dataclass(frozen=True)
class PageStage:
    """A stage of an answer, or the text of one without stages."""

    heading: str
    text: str


@dataclass(frozen=True)
class PageRow:
    """An answer that is not right."""

    index: str
    verdict: str
    question: str
    options: str
    parts: list[PageStage]
    picture: PagePicture | None


@dataclass
class PageRun:
    """One run on the page."""

    name: str
    facts: list[tuple[str, str]]
    tables: list[PageTable]
    notes: list[str]
    wrong: list[PageGroup] = field(default_factory=list)


@dataclass(frozen=True)
class PageGroup:
    """The answers of a set that are not right."""

    title: str
    rows: list[PageRow]


def eval_page(runs: Sequence[tuple[Path, RunScore]], max_rows: int) -> str:
    """The page of these runs, with up to `max_rows` answers of each set that are not right."""
    pages = [_run(folder, score, max_rows) for folder, score in runs]
    title = "Benchmarks: " + ", ".join(page.name for page in pages)
    return page_template("eval_page.html.j2").render(
        title=title, style=page_style(), runs=pages, version=__version__
    )


def _run(folder: Path, score: RunScore, max_rows: int) -> PageRun:
    tables = [score_table(score)]
    for each in score.sets:
        tables += [*category_tables(each), stage_table(each)]
    pictures = RunPictures(score.record)
    page = PageRun(folder.name or str(folder), run_facts(score), tables, score_notes(score))
    for each in score.sets:
        wrong = [
            answer
            for answer in score.answers
            if answer.question.set == each.name and _is_wrong(answer)
        ]
        if not wrong:
            continue
        shown = [_row(answer, pictures) for answer in wrong[:max_rows]]
        count = f"{len(wrong):,} answers" if len(wrong) != 1 else "1 answer"
        title = f"{each.name}: {count} not right"
        if len(wrong) > len(shown):
            title += f", of which {len(shown)} are shown"
        page.wrong.append(PageGroup(title, shown))
    page.notes += [
        f"{name} is shown without pictures: {why}" for name, why in pictures.lost.items()
    ]
    return page


def run_facts(score: RunScore) -> list[tuple[str, str]]:
    """How the runs were made: a name and a value each."""
    record = score.record
    profile, plan = record.profile, record.plan
    seconds = sum(each.answer.seconds for each in score.answers)
    facts = [("Model", record.model.name)]
    if record.model.adapter is not None:
        facts.append(("Adapter", record.model.adapter))
    facts += [
        ("Profile", profile.name),
        ("Method", str(plan["method"])),
        ("Drawn at", f"temperature {plan['temperature']:g}, top-p {plan['top_p']:g}"),
        ("Longest answer", f"{profile.max_tokens} tokens"),
        ("Scored by", f"{profile.scorer}, from the {profile.answer_from}"),
        ("Seed", str(record.seed)),
        ("Time", f"{format_seconds(seconds)} of answers"),
        ("Machine", record.machine),
    ]
    for name, each in record.sets.items():
        source = ", ".join(f"{key} {value}" for key, value in each.source.items())
        facts.append((f"Data of {name}", source))
    return facts


def _is_wrong(answer: GradedAnswer) -> bool:
    return answer.value is None or answer.value < 1


def _row(answer: GradedAnswer, pictures: RunPictures) -> PageRow:
    question, row = answer.question, answer.answer
    parts = [PageStage(str(record.stage).capitalize(), record.text) for record in row.stages]
    if row.is_failed:
        parts = [PageStage("Error", row.error)]
    elif not parts:
        parts = [PageStage("Answer", row.text)]
    picture = None
    if (data := pictures.read(question)) is not None:
        try:
            picture = page_picture(data, _PICTURE_SIDE)
        except UserError:  # the row says that it does not open
            picture = None
    index = f"{question.index}" + (f", repeat {row.repeat + 1}" if row.repeat else "")
    options = "\n".join(f"{letter}. {text}" for letter, text in question.options.items())
    if all(text in question.question for text in question.options.values()):
        options = ""
    return PageRow(index, _verdict(answer), question.question, options, parts, picture)


def _verdict(answer: GradedAnswer) -> str:
    grade, expected = answer.grade, answer.question.answer
    wanted = "" if expected is None else f"; right is {expected}"
    if grade.by is GradedBy.FAILED:
        return "failed"
    if grade.by is GradedBy.NONE:
        return f"unresolved{wanted}"
    if grade.score is not None:
        return f"scored {grade.score:g}{wanted}"
    return f"{grade.value}{wanted}"
