"""An answer, and the search for it, as one self-contained HTML file.

These modules compute the content of the page; `page.html.j2` lays it out and escapes every text.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from llavacot_mlx import __version__
from llavacot_mlx.cli.html.details import details
from llavacot_mlx.cli.html.page_picture import page_picture
from llavacot_mlx.cli.html.search_section import search_section, stage_heading
from llavacot_mlx.cli.printable import printable, printable_line
from llavacot_mlx.cli.views.answer_view import stage_remark
from llavacot_mlx.cli.views.summary_line import summary_lines
from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.stages import Stage, StageRecord
from llavacot_mlx.trace.events import FreeText, StageEnded, StageStarted, StageText
from llavacot_mlx.trace.record import Trace

_FOLDER = Path(__file__).parent


def page(trace: Trace, picture: bytes | None, *, from_file: bool = False) -> str:
    """The page of a trace, with `picture` in it if there is one.

    With `from_file`, the picture is not the trace's own: the page says so. Raises UserError if
    `picture` is not an image.
    """
    shown = None
    if picture is not None:
        try:
            shown = page_picture(picture)
        except UserError as problem:
            raise UserError(f"picture: {problem}") from None
    return page_template("page.html.j2").render(
        trace=trace,
        picture=shown,
        from_file=from_file,
        style=page_style(),
        parts=_parts(trace),
        search=search_section(trace) if trace.search.nodes else None,
        notices=trace.search.notices,
        details=details(trace),
        figures=" · ".join(summary_lines(trace)),
        version=__version__,
    )


def page_style() -> str:
    """The style sheet of every page."""
    return (_FOLDER / "page.css").read_text(encoding="utf-8")


@cache
def page_template(name: str) -> Template:
    """A template that escapes every text."""
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # The filters keep control characters and direction overrides out of the page.
    environment.filters |= {"text": printable, "line": printable_line}
    return environment.get_template(name)


@dataclass(frozen=True)
class Fact:
    """A short remark beside a heading."""

    text: str
    warn: bool = False


@dataclass
class PathPart:
    """A stage of the path taken, or text outside any stage."""

    stage: Stage | None
    text: str = ""
    record: StageRecord | None = None
    """None outside a stage, and for a stage that was stopped in the middle."""

    @property
    def heading(self) -> str:
        return stage_heading(self.stage)

    @property
    def facts(self) -> list[Fact]:
        if self.record is None:
            return [] if self.stage is None else [Fact("stopped here", warn=True)]
        facts = [Fact(f"{self.record.tokens} tokens")]
        if self.record.candidates > 1:
            facts.append(Fact(f"one of {self.record.candidates} candidates"))
        if self.record.score is not None:
            facts.append(Fact(f"score {self.record.score:.2f}"))
        remark = stage_remark(self.record.stage, self.record.closed, self.record.note)
        if remark:
            facts.append(Fact(remark, warn=True))
        return facts


def _parts(trace: Trace) -> list[PathPart]:
    """The path taken, stage by stage."""
    parts: list[PathPart] = []
    records = iter(trace.stages)
    for event in trace.stage_events():
        match event:
            case StageStarted(stage):
                parts.append(PathPart(stage))
            case StageText(text=text):
                parts[-1].text += text
            case StageEnded():
                parts[-1].record = next(records)
            case FreeText(text):
                if not parts or parts[-1].stage is not None:
                    parts.append(PathPart(None))
                parts[-1].text += text
    for part in parts:
        part.text = part.text.strip()
    return [part for part in parts if part.stage is not None or part.text]
