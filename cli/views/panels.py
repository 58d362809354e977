"""Panels of the live view: a stage with its text, and a search's round with its candidates."""

from __future__ import annotations

from dataclasses import dataclass, field

from rich.box import HEAVY, ROUNDED, Box
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from llavacot_mlx.cli.printable import printable
from llavacot_mlx.cli.views.answer_view import stage_remark
from llavacot_mlx.cli.views.search_view import CandidateProgress, Round
from llavacot_mlx.cli.views.summary_line import summary_lines
from llavacot_mlx.plan.plan import Unit
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.record import Trace

STAGE_COLORS = {
    Stage.SUMMARY: "cyan",
    Stage.CAPTION: "bright_blue",  # blue cannot be read on black
    Stage.REASONING: "magenta",
    Stage.CONCLUSION: "green",
}
_MIN_PANEL_WIDTH = 24  # columns; below, a frame costs more than it gives
_MAX_TWO_LINE_CANDIDATES = 8  # the candidates of a larger round get one line each
_SCORE_COLUMNS = 5
_MIN_TEXT_COLUMNS = 6  # below, a candidate's score makes room for its text
_TAIL_CHARACTERS = 1000  # how much of the end of an unfinished candidate is wrapped
_KEPT = "✓"


@dataclass
class TextBlock:
    """Text that is being written: that of a stage, or text outside any stage."""

    stage: Stage | None
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return printable("".join(self.parts).strip())


@dataclass(frozen=True)
class Note:
    """The text in the lower edge of a panel."""

    text: str = ""
    warn: bool = False


NO_NOTE = Note()


def stage_panel(
    block: TextBlock, width: int, *, note: Note = NO_NOTE, max_rows: int | None = None
) -> RenderableType:
    """A block in `width` columns. With `max_rows`, only as many of its last lines as fit."""
    framed = block.stage is not None and width >= _MIN_PANEL_WIDTH
    is_answer = block.stage is Stage.CONCLUSION
    text = Text(block.text, style="bold" if is_answer else "")
    body: RenderableType = text
    if max_rows is not None:
        rows = text.wrap(Console(width=width), width - 4 if framed else width)
        room = max_rows - (2 if framed else block.stage is not None)
        if len(rows) > room:
            hidden = len(rows) - room + 1
            body = Group(Text(f"⋮ {hidden} lines above", style="dim"), *rows[hidden:])
    if block.stage is None:
        return body
    color = STAGE_COLORS[block.stage]
    title = Text(block.stage.value.capitalize(), style=f"not dim bold {color}")
    if not framed:
        heading = Text.assemble(title, (f" {note.text}", "yellow") if note.warn else "")
        return Group(heading, body)
    border, box = (color, HEAVY) if is_answer else (f"dim {color}", ROUNDED)
    return _panel(body, title, note, border=border, box=box, width=width)


def round_panel(
    round: Round, width: int, *, note: Note = NO_NOTE, max_rows: int | None = None
) -> RenderableType:
    """The candidates of a round in `width` columns.

    With `max_rows`, only the candidates that fit, and a line that says how many do not.
    """
    framed = width >= _MIN_PANEL_WIDTH
    inner = width - 4 if framed else width
    if round.identical:
        rows = _identical_candidates(round, inner)
    else:
        room = None if max_rows is None else max_rows - (2 if framed else 1)
        rows = _candidates(round, inner, room)
    if round.kept and not note.text:
        kept = ", ".join(map(str, round.kept))
        note = Note(f"kept {kept} · {round.tokens} tokens", note.warn)
    color = STAGE_COLORS[round.stage or Stage.CONCLUSION]
    title = Text(round.title, style=f"not dim {color}")
    for line in rows if framed else [title, *rows]:
        line.truncate(inner)  # a line that folds would need another row
    if not framed:
        return Group(title, *rows)
    return _panel(Group(*rows), title, note, border=f"dim {color}", box=ROUNDED, width=width)


def finished_answer(trace: Trace, width: int) -> RenderableType:
    """A whole answer as a terminal shows it at the end, for screenshots."""
    panels = [
        stage_panel(
            TextBlock(record.stage, [record.text]),
            width,
            note=Note(remark, warn=True) if remark else Note(f"{record.tokens} tokens"),
        )
        for record in trace.stages
        for remark in [stage_remark(record.stage, record.closed, record.note)]
    ]
    return Group(*panels, Text("\n".join(summary_lines(trace)), style="dim"))


def _panel(
    body: RenderableType, title: Text, note: Note, *, border: str, box: Box, width: int
) -> Panel:
    title.truncate(
        max(1, width - 6), overflow="ellipsis"
    )  # corners, a line and a space on each side
    return Panel(
        body,
        box=box,
        title=title,
        title_align="left",
        subtitle=Text(note.text, style="yellow" if note.warn else "dim") if note.text else None,
        subtitle_align="right",
        border_style=border,
        width=width,
    )


def _candidates(round: Round, width: int, room: int | None) -> list[Text]:
    """A line or two for each candidate, in at most `room` rows."""
    count = len(round.candidates)
    two_lines = count <= _MAX_TWO_LINE_CANDIDATES and (room is None or 2 * count <= room)
    fitting = count if room is None or count <= room else room - 1
    digits = len(str(round.candidates[-1].number))
    wrapper = Console(width=width)
    rows: list[Text] = []
    for candidate in round.candidates[:fitting]:
        prefix = _prefix(round, candidate, digits, width)
        rows += _candidate(round, candidate, prefix, width, 2 if two_lines else 1, wrapper)
    if fitting < count:
        rows.append(Text(f"⋮ {count - fitting} more", style="dim"))
    return rows


def _identical_candidates(round: Round, width: int) -> list[Text]:
    """Candidates that all wrote the same: their text once, then the outcome of each."""
    outcomes = Text("   ").join(map(_outcome, round.candidates))
    outcomes.truncate(width, overflow="ellipsis")
    return [
        *map(Text, _first_lines(round.identical_text, width, 2, Console(width=width))),
        outcomes,
    ]


def _outcome(candidate: CandidateProgress) -> Text:
    """Whether a candidate was kept, its number and its score."""
    parts = [Text(str(candidate.number))]
    if candidate.kept:
        parts.insert(0, Text(_KEPT, style="bold green"))
    if candidate.verdict:
        parts.append(Text(candidate.verdict))
    if not candidate.closed:
        parts.append(Text("not closed", style="yellow"))
    return Text(" ").join(parts)


def _prefix(round: Round, candidate: CandidateProgress, digits: int, width: int) -> Text:
    """What stands before a candidate's text: kept or not, number, parent and score."""
    mark = (_KEPT if candidate.kept else " ", "bold green")
    prefix = Text.assemble(
        mark,
        f" {candidate.number:>{digits}} ",
        (f"←{candidate.parent:<{digits}} " if round.forked else "", "dim"),
        (f"{candidate.verdict:>{_SCORE_COLUMNS}} ", "bold" if candidate.kept else ""),
    )
    if width < len(prefix) + _MIN_TEXT_COLUMNS:
        return Text.assemble(mark, f"{candidate.number} ")
    return prefix


def _candidate(
    round: Round,
    candidate: CandidateProgress,
    prefix: Text,
    width: int,
    rows: int,
    wrapper: Console,
) -> list[Text]:
    """One candidate in at most `rows` lines: the end of its text, or the start once it ended."""
    room = max(1, width - len(prefix))
    stage, newest = candidate.newest
    label = ""
    style = "dim"
    if candidate.ended:
        style = "yellow"
        label = "" if candidate.closed else "not closed · "
        gist = round.gist(candidate)
        if cell_len(label + gist) > room * rows:
            gist = round.distinct_gist(candidate)
        texts = _first_lines(label + gist, room, rows, wrapper)
    elif round.unit is Unit.ANSWER:
        label = f"{stage} · " if stage else ""
        texts = _last_lines(newest, max(1, room - len(label)), rows, wrapper) or [""]
        texts[0] = label + texts[0]
    else:
        texts = _last_lines(candidate.text, room, rows, wrapper)
    lines = [Text(text) for text in texts] or [Text()]
    lines[0].stylize(style, 0, len(label))
    prefixed = [
        Text.assemble(" " * len(prefix) if index else prefix, line)
        for index, line in enumerate(lines)
    ]
    if round.kept and not candidate.kept:
        for line in prefixed:
            line.stylize("dim")
    return prefixed


def _first_lines(text: str, width: int, rows: int, wrapper: Console) -> list[str]:
    """The first `rows` lines of a text, with an ellipsis at the end if there are more."""
    # No line takes more characters than this, and wrapping a long text takes its time.
    lines = [line.plain for line in Text(text[: 2 * width * (rows + 1)]).wrap(wrapper, width)]
    shown = [line.rstrip() for line in lines[:rows]]
    if len(lines) > rows:
        shown[-1] = set_cell_size(shown[-1], min(cell_len(shown[-1]), width - 1)) + "…"
    return shown


def _last_lines(text: str, width: int, rows: int, wrapper: Console) -> list[str]:
    """The last `rows` lines of a text, with an ellipsis at the start if there are more."""
    if rows == 1:
        end = text[-width:]
        while cell_len(end) > width - (len(end) < len(text)):
            end = end[1:]
        return [f"…{end}" if len(end) < len(text) else end]
    # Only the end of a long text is wrapped, from an offset that seldom moves, so that the words
    # above the last one stay where they are.
    begin = max(0, len(text) - _TAIL_CHARACTERS) // _TAIL_CHARACTERS * _TAIL_CHARACTERS
    lines = [line.plain.rstrip() for line in Text(text[begin:]).wrap(wrapper, max(1, width - 1))]
    if begin or len(lines) > rows:
        lines = lines[-rows:]
        lines[0] = f"…{lines[0]}"
    return lines
