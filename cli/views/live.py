"""The terminal views; no other file knows rich."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Self, TextIO

from rich.box import HEAVY, ROUNDED, SIMPLE_HEAD
from rich.cells import cell_len, set_cell_size
from rich.console import Console, Group, RenderableType
from rich.panel import Panel
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.table import Table
from rich.text import Text

from llavacot_mlx.cli.printable import printable
from llavacot_mlx.cli.units import format_seconds
from llavacot_mlx.cli.views.keyboard import quiet_keyboard
from llavacot_mlx.cli.views.live_region import Line, Region
from llavacot_mlx.cli.views.plain import not_closed
from llavacot_mlx.cli.views.search_view import Candidate, Round, SearchSoFar, step_back
from llavacot_mlx.cli.views.summary_line import search_summary_line, summary_line
from llavacot_mlx.cli.views.view import Show
from llavacot_mlx.plan.plan import Unit
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.event_log import stage_events
from llavacot_mlx.trace.events import (
    Answered,
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    Event,
    FreeText,
    Interrupted,
    Noticed,
    Prepared,
    Retraced,
    StageEnded,
    StageStarted,
    StageText,
)
from llavacot_mlx.trace.record import Trace

_DRAWINGS_PER_SECOND = 12
_WIDEST = 100  # longer lines are hard to read
_NARROWEST_PANEL = 24  # below, a frame costs more than it gives
_LONG_ROWS_UP_TO = 8  # candidates of a round that get two lines each; more get one
_SCORE_COLUMNS = 5
_NARROWEST_TEXT = 6  # columns; below, a candidate's score makes room for its text
_TAIL = 1000  # characters at the end of a candidate that is being written that are looked at
_UNLIMITED = 10_000  # columns of what is no terminal
_KEPT = "✓"
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"
_COLOURS = {
    Stage.SUMMARY: "cyan",
    Stage.CAPTION: "blue",
    Stage.REASONING: "magenta",
    Stage.CONCLUSION: "green",
}


@dataclass
class _Block:
    """What is being written now: a stage, or text outside any stage."""

    stage: Stage | None
    parts: list[str] = field(default_factory=list)

    @property
    def text(self) -> str:
        return printable("".join(self.parts).strip())


class LiveView:
    """An answer on a terminal: a panel per stage, filling while its text comes.

    Only the open panel is ever redrawn; finished ones are printed for good above it, so an answer
    longer than the screen scrolls by and is all there in the end. An open panel higher than the
    screen shows its last lines, and is printed whole when its stage ends.

    Of a search, the open panel has the candidates of a round, and is printed when it is known which
    are kept; the chosen answer follows in the end.

    With `show=None` there is but a line that says what is being done, gone at the end: for output
    that goes elsewhere.
    """

    def __init__(self, out: TextIO, show: Show | None, unit: Unit = Unit.STAGE) -> None:
        self._console = Console(file=out, highlight=False, markup=False, emoji=False)
        self._region = Region(out)
        self._show = show
        self._block: _Block | None = None
        self._search = SearchSoFar(unit)
        self._searched = False
        self._doing = ""
        self._doing_since = 0.0
        self._spinner = itertools.cycle(_SPINNER)
        self._drawn: tuple[tuple[int, ...], list[Line]] | None = None  # the open block's lines
        self._keyboard = quiet_keyboard(self._region.leave, self._region.come_back)
        self._lock = threading.Lock()  # both threads draw
        self._failure: Exception | None = None  # of the other thread
        self._ended = threading.Event()
        self._drawer = threading.Thread(target=self._keep_drawing, daemon=True)

    def __enter__(self) -> Self:
        self._keyboard.__enter__()
        self._region.open()
        self._drawer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._drawer.join()
        self._doing = ""
        stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped"
        try:
            with contextlib.suppress(OSError):  # the terminal may be what is gone
                self._finish_block(note=stopped, warn=True)
                self._print_open_round(stopped)
                self._draw()
        finally:
            with contextlib.suppress(OSError):
                self._region.close()
            self._keyboard.__exit__(None, None, None)

    def waiting(self, doing: str) -> None:
        """Says what is being done, such as `loading the model`, until something else is."""
        self._doing, self._doing_since = doing, time.monotonic()

    def show(self, event: Event) -> None:
        """Takes the next event. The screen follows within a twelfth of a second."""
        if self._failure is not None:
            raise self._failure
        with self._lock:
            self._take(event)

    def _take(self, event: Event) -> None:
        match event:
            case Prepared():
                self.waiting("waiting for the first word")
            case StageStarted(stage):
                self._finish_block()
                self._block = _Block(stage)
                self.waiting(f"writing the {stage}")
            case StageText(stage, text):
                self._open_block(stage).parts.append(text)
            case StageEnded(stage, closed, tokens):
                self._open_block(stage)
                self._finish_block(
                    note=f"{tokens} tokens" if closed else not_closed(stage),
                    warn=not closed,
                )
            case FreeText(text):
                self._open_block(None).parts.append(text)
            case CandidateStarted():
                self._searched = True
                self.waiting(f"writing {self._search.started(event).writing}")
            case CandidateText() | CandidateEnded() | CandidateScored():
                self._search.take(event)
                round = self._search.round
                if isinstance(event, CandidateEnded) and round is not None and round.ended:
                    self.waiting("choosing")
            case CandidatesKept():
                self._drawn = None
                self._print_round(self._search.chosen(event))
            case Retraced() if self._show is Show.ALL:
                self._draw(above=self._lines(Text(step_back(event), style="yellow")))
            case Noticed(text) if self._show is Show.ALL:
                self._draw(above=self._lines(Text(f"note: {text}", style="dim")))
            case Retraced() | Noticed():
                pass  # not asked for
            case Interrupted(trace):
                self._finish_block(note="interrupted", warn=True)
                self._print_open_round("interrupted")
                self._doing = ""
                if self._searched:
                    self._print_chosen(trace, "stopped; the best path so far:")
            case Answered(trace):
                self._finish_block()
                self._doing = ""
                self._print_ending(trace)

    def _print_ending(self, trace: Trace) -> None:
        """What is known of an answer when it is there: of a search, what it chose."""
        if self._searched:
            self._print_chosen(trace, "chosen:")
        if self._show is Show.ALL:
            lines = [search_summary_line(trace)] if self._searched else []
            self._draw(
                above=self._lines(Text("\n".join([*lines, summary_line(trace)]), style="dim"))
            )

    def _print_chosen(self, trace: Trace, heading: str) -> None:
        """Prints a path through a search, stage by stage."""
        if self._show is Show.ALL:
            self._draw(above=self._lines(Text(heading, style="dim")))
        for told in stage_events(trace.text, trace.stages):
            self._take(told)
        self._finish_block()
        self._doing = ""

    def _print_open_round(self, note: str) -> None:
        """Prints what there is of a round that was stopped."""
        round, self._search.round = self._search.round, None
        self._print_round(round, note=note, warn=True)

    def _print_round(self, round: Round | None, *, note: str = "", warn: bool = False) -> None:
        """Prints the candidates of a round for good."""
        if round is not None and self._show is Show.ALL:
            self._draw(above=self._lines(_candidates(round, self._width, note=note, warn=warn)))

    def _open_block(self, stage: Stage | None) -> _Block:
        if self._block is None or self._block.stage is not stage:
            self._finish_block()
            self._block = _Block(stage)
        return self._block

    def _finish_block(self, note: str = "", *, warn: bool = False) -> None:
        """Prints the open block for good."""
        block, self._block, self._drawn = self._block, None, None
        if block is not None and self._shown(block):
            self._draw(above=self._lines(_picture(block, self._width, note=note, warn=warn)))

    def _shown(self, block: _Block) -> bool:
        if self._show is None:
            return False
        if block.stage is None:
            return self._show is Show.ALL and bool(block.text)
        return self._show.stage(block.stage)

    def _keep_drawing(self) -> None:
        while not self._ended.wait(1 / _DRAWINGS_PER_SECOND):
            try:
                with self._lock:
                    self._draw()
            except Exception as error:  # raised in the main thread, at the next event
                self._failure = error
                return

    def _draw(self, above: Iterable[Line] = ()) -> None:
        lines = [*self._block_lines(), *self._status_lines()]
        self._region.draw(
            lines,
            width=self._console.size.width,
            height=self._console.size.height,
            above=list(above),
        )

    def _block_lines(self) -> list[Line]:
        block, round = self._block, self._search.round
        room = self._console.size.height - 1  # the status line is below
        if room < 4:
            return []
        if round is not None and self._show is Show.ALL:
            key = (round.changes, self._width, room)
            if self._drawn is None or self._drawn[0] != key:
                lines = self._lines(_candidates(round, self._width, highest=room))
                self._drawn = (key, lines[:room])
            return self._drawn[1]
        if block is None or not self._shown(block):
            return []
        key = (len(block.parts), self._width, room)
        if self._drawn is None or self._drawn[0] != key:
            self._drawn = (key, self._lines(_picture(block, self._width, highest=room)))
        return self._drawn[1]

    def _status_lines(self) -> list[Line]:
        if not self._doing:
            return []
        waited = time.monotonic() - self._doing_since
        text = f"{next(self._spinner)} {self._doing}"
        if waited >= 1:
            text += f" · {format_seconds(int(waited)) if waited >= 60 else f'{int(waited)} s'}"
        return self._lines(Text(text[: self._width], style="dim"))

    @property
    def _width(self) -> int:
        # The last column stays free: a line that ends in it leaves terminals of two minds
        # about where the cursor is.
        return max(1, min(_WIDEST, self._console.size.width - 1))

    def _lines(self, picture: RenderableType) -> list[Line]:
        with self._console.capture() as captured:
            self._console.print(picture, width=self._width)
        texts = captured.get().removesuffix("\n").split("\n")
        return [Line(text, cell_len(Text.from_ansi(text).plain)) for text in texts]


def _picture(
    block: _Block, width: int, *, note: str = "", warn: bool = False, highest: int | None = None
) -> RenderableType:
    """A block as rich draws it, in `highest` rows: then only its last lines are shown."""
    framed = block.stage is not None and width >= _NARROWEST_PANEL
    answer = block.stage is Stage.CONCLUSION
    text = Text(block.text, style="bold" if answer else "")
    body: RenderableType = text
    if highest is not None:
        rows = text.wrap(Console(width=width), width - 4 if framed else width)
        room = highest - (2 if framed else block.stage is not None)
        if len(rows) > room:
            hidden = len(rows) - room + 1
            body = Group(Text(f"⋮ {hidden} lines above", style="dim"), *rows[hidden:])
    if block.stage is None:
        return body
    colour = _COLOURS[block.stage]
    title = Text(block.stage.value.capitalize(), style=f"not dim bold {colour}")
    if not framed:
        heading = Text.assemble(title, (f" {note}", "yellow") if warn else "")
        return Group(heading, body)
    return Panel(
        body,
        box=HEAVY if answer else ROUNDED,
        title=title,
        title_align="left",
        subtitle=Text(note, style="yellow" if warn else "dim") if note else None,
        subtitle_align="right",
        border_style=colour if answer else f"dim {colour}",
        width=width,
    )


def _candidates(
    round: Round, width: int, *, note: str = "", warn: bool = False, highest: int | None = None
) -> RenderableType:
    """The candidates of a round, in `highest` rows: then those that fit, and how many do not."""
    framed = width >= _NARROWEST_PANEL
    inner = width - 4 if framed else width
    rows: list[Text]
    if round.identical:
        rows = _identical(round, inner)
    else:
        count = len(round.candidates)
        room = None if highest is None else highest - (2 if framed else 1)
        long = count <= _LONG_ROWS_UP_TO and (room is None or 2 * count <= room)
        fitting = count if room is None or count <= room else room - 1
        wrapper = Console(width=inner)
        digits = len(str(round.candidates[-1].number))
        rows = []
        for candidate in round.candidates[:fitting]:
            rows += _candidate(round, candidate, digits, inner, 2 if long else 1, wrapper)
        if fitting < count:
            rows.append(Text(f"⋮ {count - fitting} more", style="dim"))
    if round.kept and not note:
        kept = ", ".join(map(str, round.kept))
        note = f"kept {kept} · {round.tokens} tokens"
    colour = _COLOURS[round.stage or Stage.CONCLUSION]
    title = Text(round.title, style=f"not dim {colour}")
    for line in [*rows] if framed else [title, *rows]:
        line.truncate(inner)  # a line that folds would need another row
    if not framed:
        return Group(title, *rows)
    return Panel(
        Group(*rows),
        box=ROUNDED,
        title=title,
        title_align="left",
        subtitle=Text(note, style="yellow" if warn else "dim") if note else None,
        subtitle_align="right",
        border_style=f"dim {colour}",
        width=width,
    )


def _identical(round: Round, width: int) -> list[Text]:
    """Candidates that all wrote the same: what they wrote, once, and what became of each."""
    fates = Text("   ").join(map(_fate, round.candidates))
    fates.truncate(width, overflow="ellipsis")
    return [*map(Text, _head(round.told_once, width, 2, Console(width=width))), fates]


def _fate(candidate: Candidate) -> Text:
    parts = [Text(str(candidate.number))]
    if candidate.kept:
        parts.insert(0, Text(_KEPT, style="bold green"))
    if candidate.verdict:
        parts.append(Text(candidate.verdict))
    if not candidate.closed:
        parts.append(Text("not closed", style="yellow"))
    return Text(" ").join(parts)


def _candidate(
    round: Round, candidate: Candidate, digits: int, width: int, rows: int, wrapper: Console
) -> list[Text]:
    """One candidate in at most `rows` lines: where it is while it writes, then what it wrote."""
    mark = (_KEPT if candidate.kept else " ", "bold green")
    prefix = Text.assemble(
        mark,
        f" {candidate.number:>{digits}} ",
        (f"←{candidate.parent:<{digits}} " if round.forked else "", "dim"),
        (f"{candidate.verdict:>{_SCORE_COLUMNS}} ", "bold" if candidate.kept else ""),
    )
    if width < len(prefix) + _NARROWEST_TEXT:
        prefix = Text.assemble(mark, f"{candidate.number} ")
    room = max(1, width - len(prefix))
    stage, newest = candidate.newest
    label = ""
    style = "dim"
    if candidate.ended:
        style = "yellow"
        label = "" if candidate.closed else "not closed · "
        gist = round.gist(candidate)
        if round.shared and cell_len(label + gist) > room * rows:
            gist = f"…{gist[round.shared :]}"  # where they differ says more than how they begin
        texts = _head(label + gist, room, rows, wrapper)
    elif round.unit is Unit.ANSWER:
        label = f"{stage} · " if stage else ""
        texts = _tail(newest, max(1, room - len(label)), rows, wrapper) or [""]
        texts[0] = label + texts[0]
    else:
        texts = _tail(candidate.text, room, rows, wrapper)
    lines = [Text(text) for text in texts] or [Text()]
    lines[0].stylize(style, 0, len(label))
    pictures = [
        Text.assemble(prefix if not index else " " * len(prefix), line)
        for index, line in enumerate(lines)
    ]
    if round.kept and not candidate.kept:
        for picture in pictures:
            picture.stylize("dim")
    return pictures


def _head(text: str, width: int, rows: int, wrapper: Console) -> list[str]:
    """The first `rows` lines of a text, marked where it goes on."""
    # No line takes more characters than this, and wrapping a long text takes its time.
    lines = [line.plain for line in Text(text[: 2 * width * (rows + 1)]).wrap(wrapper, width)]
    shown = [line.rstrip() for line in lines[:rows]]
    if len(lines) > rows:
        shown[-1] = set_cell_size(shown[-1], min(cell_len(shown[-1]), width - 1)) + "…"
    return shown


def _tail(text: str, width: int, rows: int, wrapper: Console) -> list[str]:
    """The last lines of a text, marked where something came before."""
    if rows == 1:
        end = text[-width:]
        while cell_len(end) > width - (len(end) < len(text)):
            end = end[1:]
        return [f"…{end}" if len(end) < len(text) else end]
    # Only the end of a long text is wrapped, from a place that seldom moves, so that the words
    # above the last one stay where they are.
    begin = max(0, len(text) - _TAIL) // _TAIL * _TAIL
    lines = [line.plain.rstrip() for line in Text(text[begin:]).wrap(wrapper, max(1, width - 1))]
    if begin or len(lines) > rows:
        lines = lines[-rows:]
        lines[0] = f"…{lines[0]}"
    return lines


def finished(trace: Trace, width: int) -> RenderableType:
    """A whole answer as it stands on a terminal in the end; for pictures of it."""
    panels = [
        _picture(
            _Block(record.stage, [record.text]),
            width,
            note=f"{record.tokens} tokens" if record.closed else not_closed(record.stage),
            warn=not record.closed,
        )
        for record in trace.stages
    ]
    return Group(*panels, Text(summary_line(trace), style="dim"))


class Bar:
    """A progress bar on a terminal; nothing elsewhere."""

    def __init__(
        self,
        console: Console,
        doing: str,
        total: int | None,
        *columns: ProgressColumn,
        width: int = 30,
    ) -> None:
        self._progress = Progress(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=width),
            *columns,
            TimeRemainingColumn(compact=True),
            console=console,
            transient=True,
            disable=console.quiet or not console.is_terminal or console.is_dumb_terminal,
        )
        self._task = self._progress.add_task(doing, total=total)

    def __enter__(self) -> Self:
        try:
            self._progress.start()  # hides the cursor, and draws: Ctrl-C may come in between
        except BaseException:
            self._progress.stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._progress.stop()


class BytesBar(Bar):
    """Of bytes, with rate and time left."""

    def __init__(self, out: TextIO, doing: str) -> None:
        console = Console(file=out, highlight=False)
        super().__init__(console, doing, None, DownloadColumn(), TransferSpeedColumn())

    def at(self, done: int, total: int) -> None:
        """Moves the bar to `done` of `total` bytes."""
        self._progress.update(self._task, completed=done, total=total)


class CountBar(Bar):
    """Of things done one by one, with the time they took and that is left, on stderr."""

    def __init__(self, doing: str, total: int) -> None:
        console = Console(stderr=True, highlight=False)
        super().__init__(console, doing, total, MofNCompleteColumn(), TimeElapsedColumn())

    def advance(self) -> None:
        """One more is done."""
        self._progress.advance(self._task)


@dataclass(frozen=True)
class Column:
    """Of a table."""

    name: str
    number: bool = False
    """Whether its cells stand on the right, as numbers do."""


def print_table(columns: Iterable[Column], rows: Iterable[Iterable[str]]) -> None:
    """On stdout; a cell may have several lines. Only a terminal makes long lines wrap."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = _UNLIMITED
    table = Table(box=SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for column in columns:
        table.add_column(
            column.name, justify="right" if column.number else "left", no_wrap=column.number
        )
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)
    console.print()
