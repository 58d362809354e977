"""The live view of an answer, for a terminal."""

from __future__ import annotations

import contextlib
import itertools
import threading
import time
from collections.abc import Iterable
from types import TracebackType
from typing import Self, TextIO

from rich.cells import cell_len
from rich.console import Console, RenderableType
from rich.text import Text

from llavacot_mlx.cli.units import format_seconds
from llavacot_mlx.cli.views.answer_view import ShowLevel, Waited, not_measured, stage_remark
from llavacot_mlx.cli.views.ending import ending_line
from llavacot_mlx.cli.views.keyboard import quiet_keyboard
from llavacot_mlx.cli.views.live_region import Line, LiveRegion
from llavacot_mlx.cli.views.panels import NO_NOTE, Note, TextBlock, round_panel, stage_panel
from llavacot_mlx.cli.views.search_view import Round, SearchProgress, retrace_line
from llavacot_mlx.cli.views.summary_line import search_summary_line, summary_lines
from llavacot_mlx.plan.plan import Unit
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.answer_events import Answered, Event, Interrupted
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    FreeText,
    Noticed,
    Prepared,
    Retraced,
    SearchEvent,
    StageEnded,
    StageStarted,
    StageText,
)
from llavacot_mlx.trace.record import Trace

_REDRAWS_PER_SECOND = 12
_MAX_WIDTH = 120  # columns; longer lines are hard to read
_SPINNER = "⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏"


class LiveView:
    """An answer on a terminal: a panel per stage, which fills while its text is written.

    Only the open panel is ever redrawn. Finished panels are printed for good above it, so an answer
    longer than the screen scrolls by and is complete at the end. An open panel higher than the
    screen shows its last lines, and is printed whole when its stage ends.

    In a search, the open panel shows the candidates of a round. It is printed for good when the
    kept ones are known, and the chosen answer follows at the end.

    With `show=None` there is only a status line, gone at the end. That is for a command whose
    output goes elsewhere.
    """

    def __init__(
        self,
        out: TextIO,
        show: ShowLevel | None,
        unit: Unit = Unit.STAGE,
        waited: Waited = not_measured,
    ) -> None:
        self._waited = waited
        self._console = Console(file=out, highlight=False, markup=False, emoji=False)
        self._region = LiveRegion(out)
        self._show = show
        self._block: TextBlock | None = None
        self._search = SearchProgress(unit)
        self._status = ""
        self._status_since = 0.0
        self._spinner = itertools.cycle(_SPINNER)
        # The lines of the open panel, under what they depend on.
        self._drawn: tuple[tuple[int, ...], list[Line]] | None = None
        self._keyboard = quiet_keyboard(self._region.suspend, self._region.resume)
        self._lock = threading.Lock()  # the main thread draws as well
        self._failure: Exception | None = None  # in the drawing thread
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
        self._status = ""
        stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else "stopped"
        try:
            with contextlib.suppress(OSError):  # the terminal itself may be gone
                self._finish_block(Note(stopped, warn=True))
                self._print_open_round(stopped)
                self._draw()
        finally:
            with contextlib.suppress(OSError):
                self._region.close()
            self._keyboard.__exit__(None, None, None)

    def set_status(self, status: str) -> None:
        """Says what is being done, such as `loading the model`, until the next call or event."""
        self._status, self._status_since = status, time.monotonic()

    def show(self, event: Event) -> None:
        """Takes the next event. The screen follows within a twelfth of a second."""
        if self._failure is not None:
            raise self._failure
        with self._lock:
            self._take(event)

    def _take(self, event: Event) -> None:
        if isinstance(event, Noticed) and self._search.holds(event.text):
            return
        if not isinstance(event, Answered | Interrupted):
            self._print_notices()
        match event:
            case Prepared():
                self.set_status("waiting for the first word")
            case StageStarted() | StageText() | StageEnded() | FreeText():
                self._take_stage_event(event)
            case Noticed(text):
                if self._block is not None and self._block.stage is None:
                    self._finish_block()
                self._print_notice(text)
            case Interrupted(trace):
                self._finish_block(Note("interrupted", warn=True))
                self._print_open_round("interrupted")
                self._status = ""
                if self._search.started:
                    self._print_chosen(trace, "stopped; the best path so far:")
                self._print_notices()
            case Answered(trace):
                self._finish_block()
                self._status = ""
                self._print_ending(trace)
            case _:
                self._take_search_event(event)

    def _print_notices(self) -> None:
        """Prints what was noticed since the last round: under the answer if nothing followed."""
        for text in self._search.release_notices():
            self._print_notice(text)

    def _print_notice(self, text: str) -> None:
        if self._show is ShowLevel.ALL:
            self._print(Text(f"note: {text}", style="yellow"))

    def _take_stage_event(self, event: StageStarted | StageText | StageEnded | FreeText) -> None:
        match event:
            case StageStarted(stage):
                self._finish_block()
                self._block = TextBlock(stage)
                self.set_status(f"writing the {stage}")
            case StageText(stage, text):
                self._open_block(stage).parts.append(text)
            case StageEnded(stage, closed, tokens, remark):
                self._open_block(stage)
                remark = stage_remark(stage, closed, remark)
                self._finish_block(Note(remark, warn=True) if remark else Note(f"{tokens} tokens"))
            case FreeText(text):
                self._open_block(None).parts.append(text)

    def _take_search_event(self, event: SearchEvent) -> None:
        match event:
            case CandidateStarted():
                self.set_status(f"writing {self._search.start_candidate(event).writing}")
            case CandidateText() | CandidateEnded() | CandidateScored():
                self._search.update_candidate(event)
                round = self._search.round
                if isinstance(event, CandidateEnded) and round is not None and round.ended:
                    self.set_status("choosing")
            case CandidatesKept():
                self._drawn = None
                self._print_round(self._search.end_round(event))
            case Retraced():
                if self._show is ShowLevel.ALL:
                    self._print(Text(retrace_line(event), style="yellow"))

    def _print_ending(self, trace: Trace) -> None:
        """Prints what follows a finished answer: a search's choice, then the summary lines."""
        if self._search.started:
            self._print_chosen(trace, "chosen:")
        self._print_notices()
        if self._show is ShowLevel.ALL:
            if ending := ending_line(trace):
                self._print(Text(ending, style="yellow"))
            lines = [search_summary_line(trace)] if self._search.started else []
            self._print(
                Text("\n".join([*lines, *summary_lines(trace, self._waited())]), style="dim")
            )

    def _print_chosen(self, trace: Trace, heading: str) -> None:
        """Prints a path through a search, stage by stage."""
        if self._show is ShowLevel.ALL:
            self._print(Text(heading, style="dim"))
        for event in trace.stage_events():
            self._take_stage_event(event)
        self._finish_block()
        self._status = ""

    def _print_open_round(self, note: str) -> None:
        """Prints a round that was stopped, with what its candidates have written."""
        round, self._search.round = self._search.round, None
        self._print_round(round, Note(note, warn=True))

    def _print_round(self, round: Round | None, note: Note = NO_NOTE) -> None:
        """Prints the candidates of a round for good."""
        if round is not None and self._show is ShowLevel.ALL:
            self._print(round_panel(round, self._width, note=note))
            if legend := self._search.new_legend(round):
                self._print(Text(legend, style="dim"))

    def _open_block(self, stage: Stage | None) -> TextBlock:
        """The open block of `stage`; one of another stage is printed first."""
        if self._block is None or self._block.stage is not stage:
            self._finish_block()
            self._block = TextBlock(stage)
        return self._block

    def _finish_block(self, note: Note = NO_NOTE) -> None:
        """Prints the open block for good."""
        block, self._block, self._drawn = self._block, None, None
        if block is not None and self._is_shown(block):
            self._print(stage_panel(block, self._width, note=note))

    def _is_shown(self, block: TextBlock) -> bool:
        if self._show is None:
            return False
        if block.stage is None:
            return self._show is ShowLevel.ALL and bool(block.text)
        return self._show.stage(block.stage)

    def _keep_drawing(self) -> None:
        while not self._ended.wait(1 / _REDRAWS_PER_SECOND):
            try:
                with self._lock:
                    self._draw()
            except Exception as error:  # raised in the main thread, at the next event
                self._failure = error
                return

    def _print(self, renderable: RenderableType) -> None:
        """Prints something for good, above what is redrawn."""
        self._draw(above=self._lines(renderable))

    def _draw(self, above: Iterable[Line] = ()) -> None:
        lines = [*self._panel_lines(), *self._status_lines()]
        self._region.draw(
            lines,
            width=self._console.size.width,
            height=self._console.size.height,
            above=list(above),
        )

    def _panel_lines(self) -> list[Line]:
        """The open panel, drawn again only if its content or the window has changed."""
        block, round = self._block, self._search.round
        room = self._console.size.height - 1  # the status line is below
        if room < 4:
            return []
        if round is not None and self._show is ShowLevel.ALL:
            key = (round.changes, self._width, room)
            if self._drawn is None or self._drawn[0] != key:
                lines = self._lines(round_panel(round, self._width, max_rows=room))
                self._drawn = (key, lines[:room])
            return self._drawn[1]
        if block is None or not self._is_shown(block):
            return []
        key = (len(block.parts), self._width, room)
        if self._drawn is None or self._drawn[0] != key:
            self._drawn = (key, self._lines(stage_panel(block, self._width, max_rows=room)))
        return self._drawn[1]

    def _status_lines(self) -> list[Line]:
        if not self._status:
            return []
        waited = time.monotonic() - self._status_since
        text = f"{next(self._spinner)} {self._status}"
        if waited >= 1:
            text += f" · {format_seconds(int(waited)) if waited >= 60 else f'{int(waited)} s'}"
        return self._lines(Text(text[: self._width], style="dim"))

    @property
    def _width(self) -> int:
        # The last column stays free: after a line that ends in it, terminals differ about where
        # the cursor is.
        return max(1, min(_MAX_WIDTH, self._console.size.width - 1))

    def _lines(self, renderable: RenderableType) -> list[Line]:
        with self._console.capture() as captured:
            self._console.print(renderable, width=self._width)
        texts = captured.get().removesuffix("\n").split("\n")
        return [Line(text, cell_len(Text.from_ansi(text).plain)) for text in texts]
