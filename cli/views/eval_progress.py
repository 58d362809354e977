"""What is shown while a benchmark runs: how far it is, how good, and how fast."""

from __future__ import annotations

import sys
import time

from rich.console import Console
from rich.progress import MofNCompleteColumn

from llavacot_mlx.cli.units import format_number, format_seconds
from llavacot_mlx.cli.views.bars import ProgressBar
from llavacot_mlx.evaluate.statistics import wilson

_LINES = 10  # lines of a whole run where no bar can be drawn


class RunningScore:
    """The accuracy so far by rules alone, and the rate of this process."""

    def __init__(self, done: int, total: int) -> None:
        self.done, self.total = done, total
        self._before = done
        self._right = self._decided = self._tokens = 0
        self._began = time.monotonic()

    def count(self, right: bool | None, tokens: int) -> None:
        """Counts one more answer."""
        self.done += 1
        self._tokens += tokens
        if right is not None:
            self._decided += 1
            self._right += right

    def __str__(self) -> str:
        words = []
        if self._decided:
            low, high = wilson(self._right, self._decided)
            words.append(
                f"{100 * self._right / self._decided:.1f}% right ({100 * low:.1f}–{100 * high:.1f})"
            )
        seconds = time.monotonic() - self._began
        if seconds > 0 and self._tokens:
            words.append(f"{format_number(self._tokens / seconds)} tokens/s")
        return ", ".join(words)

    @property
    def left(self) -> str:
        """The time left, where it is known."""
        here = self.done - self._before
        if not here or self.done >= self.total:
            return ""
        seconds = (time.monotonic() - self._began) / here * (self.total - self.done)
        return f"{format_seconds(seconds)} left"


class EvalProgress(ProgressBar):
    """A bar on a terminal; elsewhere a line on stderr after each tenth of the run."""

    def __init__(self, done: int, total: int, *, quiet: bool = False) -> None:
        console = Console(stderr=True, highlight=False, quiet=quiet)
        super().__init__(console, "asking", total, MofNCompleteColumn())
        self._score = RunningScore(done, total)
        self._draws_lines = not quiet and (not console.is_terminal or console.is_dumb_terminal)
        self._quiet = quiet
        self._progress.update(self._task, completed=done)

    def count(self, right: bool | None, tokens: int) -> None:
        """Counts one more answer, by its verdict and its decoded tokens."""
        score = self._score
        score.count(right, tokens)
        self._progress.update(self._task, completed=score.done, description=str(score) or "asking")
        if self._draws_lines and score.done * _LINES // score.total > (
            (score.done - 1) * _LINES // score.total
        ):
            words = [f"{score.done} of {score.total}", str(score), score.left]
            print(", ".join(filter(None, words)), file=sys.stderr, flush=True)

    def say(self, line: str) -> None:
        """Prints a line above the bar."""
        if not self._quiet:
            self._progress.console.print(line, markup=False, soft_wrap=True)
