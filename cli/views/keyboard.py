"""The keyboard while something is drawn in place.

Keys are not echoed, because an Enter in the middle of a drawing would move it; the shell gets what
was typed. Ctrl-Z leaves the terminal in order, and `fg` continues the drawing.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_LOCAL_FLAGS = 3  # the index of the flags with ECHO in what tcgetattr returns


@contextmanager
def quiet_keyboard(suspend: Callable[[], None], resume: Callable[[], None]) -> Iterator[None]:
    """Calls `suspend` before Ctrl-Z stops the process, and `resume` when it continues.

    Both run in a signal handler: at any moment, so they must not wait for a lock.
    """
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    usual = None if keyboard is None else termios.tcgetattr(keyboard)

    def echo(on: bool) -> None:
        if keyboard is None or usual is None:
            return
        attributes = list(usual)
        if not on:
            attributes[_LOCAL_FLAGS] &= ~termios.ECHO
        with suppress(termios.error):  # the terminal may be gone
            termios.tcsetattr(keyboard, termios.TCSANOW, attributes)

    def stop(number: int, frame: FrameType | None) -> None:
        suspend()
        echo(on=True)
        signal.signal(signal.SIGTSTP, signal.SIG_DFL)
        os.kill(os.getpid(), signal.SIGTSTP)  # stops here, until fg
        signal.signal(signal.SIGTSTP, stop)
        echo(on=False)
        resume()

    before = signal.signal(signal.SIGTSTP, stop)
    echo(on=False)
    try:
        yield
    finally:
        echo(on=True)
        signal.signal(signal.SIGTSTP, before)
