"""Progress bars."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)
from rich.text import Text


class _Elapsed(TimeElapsedColumn):
    """The time since the start, labelled: two bare times side by side look alike."""

    def render(self, task: Task) -> Text:
        return super().render(task).append(" elapsed")


class _Left(TimeRemainingColumn):
    """The time left, labelled; nothing while it is not known."""

    def render(self, task: Task) -> Text:
        left = super().render(task)
        return left.append(" left") if any(letter.isdigit() for letter in left.plain) else Text()


class ProgressBar:
    """A progress bar on a terminal, gone at the end. Nothing is drawn elsewhere."""

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
            _Left(compact=True),
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


class BytesBar(ProgressBar):
    """A bar on stderr that counts bytes, with their rate and the time left."""

    def __init__(self, doing: str) -> None:
        console = Console(stderr=True, highlight=False)
        super().__init__(console, doing, None, DownloadColumn(), TransferSpeedColumn())

    def update(self, done: int, total: int) -> None:
        """Moves the bar to `done` of `total` bytes."""
        self._progress.update(self._task, completed=done, total=total)


class CountBar(ProgressBar):
    """A bar on stderr that counts items, with the time that they took and the time left."""

    def __init__(self, doing: str, total: int) -> None:
        console = Console(stderr=True, highlight=False)
        super().__init__(console, doing, total, MofNCompleteColumn(), _Elapsed())

    def advance(self) -> None:
        """Counts one more item."""
        self._progress.advance(self._task)
