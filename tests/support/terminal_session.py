"""A command on a real pseudo-terminal, with a person's hands and eyes."""

from __future__ import annotations

import codecs
import fcntl
import os
import pty
import select
import signal
import struct
import termios
import time
from types import TracebackType
from typing import Self

from fakes import FakeTerminal

_NOT_INHERITED = ("NO_COLOR", "COLUMNS", "LINES", "PYTHONUNBUFFERED")
_PATIENCE = 60.0  # seconds; only a test that fails waits for so long


class TerminalSession:
    """Starts `command`, whose terminal is shown by a `FakeTerminal`."""

    def __init__(
        self,
        command: list[str],
        *,
        width: int = 80,
        height: int = 24,
        environment: dict[str, str] | None = None,
    ) -> None:
        self.terminal = FakeTerminal(width, height)
        self.output = b""
        self._decoder = codecs.getincrementaldecoder("utf-8")()
        plain = {k: v for k, v in os.environ.items() if k not in _NOT_INHERITED}
        self.pid, self._fd = pty.fork()
        if self.pid == 0:  # the child
            _set_size(0, width, height)
            os.execvpe(
                command[0], command, {**plain, "TERM": "xterm-256color", **(environment or {})}
            )
        _set_size(self._fd, width, height)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._fd)

    @property
    def text(self) -> str:
        """All that can be read on the terminal, scrolling back included."""
        return "\n".join(self.terminal.lines)

    def wait_for(self, text: str) -> None:
        """Reads until `text` stands on the terminal."""
        deadline = time.monotonic() + _PATIENCE
        while text not in self.text:
            assert self._read(deadline), f"{text!r} never came:\n{self.text}"

    def press(self, keys: bytes) -> None:
        os.write(self._fd, keys)

    def resize(self, width: int, height: int) -> None:
        """The window becomes smaller; what the terminal shows is folded as terminals do."""
        self._read(time.monotonic() + 0.05)
        self.terminal.narrow(width, height)
        _set_size(self._fd, width, height)

    def finish(self) -> int:
        """Reads to the end, and returns the exit code; minus the signal that ended the process."""
        deadline = time.monotonic() + _PATIENCE
        while self._read(deadline):
            pass
        while time.monotonic() < deadline:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        raise AssertionError(f"the command never ended:\n{self.text}")

    def _read(self, deadline: float) -> bool:
        """Takes in what comes next; False at the end or when time is up."""
        ready, _, _ = select.select([self._fd], [], [], max(0.0, deadline - time.monotonic()))
        if not ready:
            return False
        try:
            data = os.read(self._fd, 65536)
        except OSError:  # how Linux tells that the other side closed the terminal
            return False
        self.output += data
        self.terminal.feed(self._decoder.decode(data))
        return bool(data)


def _set_size(fd: int, width: int, height: int) -> None:
    fcntl.ioctl(fd, termios.TIOCSWINSZ, struct.pack("HHHH", height, width, 0, 0))
