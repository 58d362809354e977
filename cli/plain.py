"""An answer as plain text, written while it comes: for pipes, files and `--plain`."""

from __future__ import annotations

from types import TracebackType
from typing import Self, TextIO

from llavacot_mlx.cli.figures import figures
from llavacot_mlx.cli.printable import printable
from llavacot_mlx.cli.view import Show
from llavacot_mlx.events import (
    Answered,
    Event,
    FreeText,
    Prepared,
    StageEnded,
    StageStarted,
    StageText,
)
from llavacot_mlx.stages import Stage


class PlainView:
    """Writes a heading and the text of each stage, a blank line between any two."""

    def __init__(self, out: TextIO, show: Show) -> None:
        self._out = out
        self._show = show
        self._begun = False  # something was written
        self._line_open = False  # the last thing written was not a line break
        self._in_free_text = False
        self._held = ""  # white space that only counts if text follows it

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if not isinstance(error, BrokenPipeError):
            self._end_line()

    def waiting(self, doing: str) -> None:
        """Nothing to write: a plain text has no progress in it."""

    def show(self, event: Event) -> None:
        match event:
            case StageStarted(stage) if self._show.stage(stage):
                self._begin_block()
                if self._show is not Show.ANSWER:
                    self._write(f"{stage.tag}\n")
            case StageText(stage, text) if self._show.stage(stage):
                self._write_trimmed(text)
            case StageEnded(stage, closed) if self._show.stage(stage):
                self._end_line()
                if not closed:
                    self._write(f"({not_closed(stage)})\n")
            case FreeText(text) if self._show is Show.ALL:
                if not self._in_free_text and text.strip():
                    self._begin_block()
                    self._in_free_text = True
                if self._in_free_text:
                    self._write_trimmed(text)
            case Answered(trace) if self._show is Show.ALL:
                self._begin_block()
                self._write(f"{figures(trace)}\n")
            case Prepared() | StageStarted() | StageText() | StageEnded() | FreeText() | Answered():
                pass  # not asked for

    def _begin_block(self) -> None:
        self._end_line()
        if self._begun:
            self._write("\n")
        self._begun = True
        self._in_free_text = False

    def _end_line(self) -> None:
        self._held = ""
        if self._line_open:
            self._write("\n")

    def _write_trimmed(self, text: str) -> None:
        """Writes a piece of a block without the white space around the block."""
        if not self._line_open:
            text = text.lstrip()
        kept = text.rstrip()
        if kept:
            self._write(self._held + kept)
            self._held = ""
        if self._line_open:
            self._held += text[len(kept) :]

    def _write(self, text: str) -> None:
        self._out.write(printable(text))
        self._out.flush()
        self._line_open = not text.endswith("\n")


def not_closed(stage: Stage) -> str:
    """What is said of a stage whose closing tag never came."""
    return f"{stage.closing} never came"
