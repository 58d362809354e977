"""Redraws the last lines of a terminal in place, while the lines above them stay.

Only changed lines are written, in one write, between the escape sequences that let a terminal show
a whole update at once, so nothing flickers. Lines that are printed for good scroll up like any
output, and stay in the terminal's history.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TextIO

_HIDE_CURSOR, _SHOW_CURSOR = "\x1b[?25l", "\x1b[?25h"
_BEGIN_UPDATE, _END_UPDATE = "\x1b[?2026h", "\x1b[?2026l"  # ignored by terminals without it
_ERASE_LINE, _ERASE_BELOW = "\x1b[2K", "\x1b[J"


@dataclass(frozen=True)
class Line:
    """A line with its escape sequences for colors, and the number of columns that it fills."""

    text: str
    columns: int


class LiveRegion:
    """The last lines of a terminal.

    Its owner keeps the region lower than the screen, and its lines narrower.
    """

    def __init__(self, out: TextIO) -> None:
        self._out = out
        self._lines: Sequence[Line] = ()  # those on the screen; the cursor is in the last one
        self._width = 0  # the terminal's, when they were written
        self._suspended = False

    def open(self) -> None:
        self._write(_HIDE_CURSOR)

    def close(self) -> None:
        """Shows the cursor again; the region's last lines stay on the screen."""
        self._write(("\r\n" if self._lines else "") + _SHOW_CURSOR)
        self._lines = ()

    def suspend(self) -> None:
        """Shows the cursor again, and draws nothing until `resume`.

        It may be called in a signal handler, while another write is using the stream, so it writes
        past the stream.
        """
        self._suspended = True
        os.write(self._out.fileno(), f"\r\n{_SHOW_CURSOR}".encode())

    def resume(self) -> None:
        """Draws again, below what others have written since; may be called in a signal handler."""
        self._lines = ()
        os.write(self._out.fileno(), _HIDE_CURSOR.encode())
        self._suspended = False

    def draw(
        self, lines: Sequence[Line], *, width: int, height: int, above: Sequence[Line] = ()
    ) -> None:
        """Prints `above` for good where the region begins, and redraws the region below it.

        `width` and `height` are the terminal's current size.
        """
        if self._suspended:
            return
        # A window that became narrower has wrapped the lines that no longer fit, and one that
        # became lower has pushed the first lines out.
        rows = sum(max(1, -(-line.columns // width)) for line in self._lines[:-1])
        moved = bool(self._lines) and (width != self._width or rows >= height)
        if not above and not moved and list(lines) == list(self._lines):
            return
        up = min(rows, height - 1)
        steps = [_BEGIN_UPDATE, "\r", f"\x1b[{up}A" if up else ""]
        before = self._lines
        if moved or len(above) + len(lines) < len(before):
            steps.append(_ERASE_BELOW)
            before = ()
        for index, line in enumerate([*above, *lines]):
            if index:
                steps.append("\r\n")
            if index >= len(before):
                steps.append(line.text)
            elif line != before[index]:
                steps += [_ERASE_LINE, line.text]
        if above and not lines:
            steps.append("\r\n")
        # In the first column, the cursor stays in the row where the line begins if the terminal
        # wraps the line after its window becomes narrower.
        steps += ["\r", _END_UPDATE]
        self._lines, self._width = tuple(lines), width
        self._write("".join(steps))

    def _write(self, text: str) -> None:
        self._out.write(text)
        self._out.flush()
