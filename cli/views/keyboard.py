"""The keyboard while something is drawn in place.

Keys are not echoed, for an Enter in the middle of a drawing would move it; what is typed waits for
the shell. Ctrl-Z leaves the terminal in order, and drawing goes on with `fg`.
"""

from __future__ import annotations

import os
import signal
import sys
import termios
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_LOCAL_FLAGS = 3  # the place of the echo flag in what tcgetattr returns


@contextmanager
def quiet_keyboard(leave: Callable[[], None], resume: Callable[[], None]) -> Iterator[None]:
    """Calls `leave` before Ctrl-Z stops the process, and `resume` when it goes on.

    Both run as a signal handler does: in between, and without waiting for a lock.
    """
    keyboard = sys.stdin.fileno() if sys.stdin is not None and sys.stdin.isatty() else None
    usual = None if keyboard is None else termios.tcgetattr(keyboard)

    def echo(on: bool) -> None:
        if keyboard is None or usual is None:
            return
        attributes = list(usual)
        if not on:
            attributes[_LOCAL_FLAGS] &= ~termios.ECHO
        with suppress(termios.error):  # a terminal that is gone by now
            termios.tcsetattr(keyboard, termios.TCSANOW, attributes)

    def stop(number: int, frame: FrameType | None) -> None:
        leave()
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
