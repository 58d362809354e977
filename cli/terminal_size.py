"""The size of the terminal, which a shell's variables may misstate."""

from __future__ import annotations

import os
import sys

_VARIABLES = ("COLUMNS", "LINES")


def ignore_exported_size() -> None:
    """Forgets COLUMNS and LINES where a terminal can be asked itself, and where they are no size.

    rich, typer and Python believe these variables before the terminal. A shell that exports them
    (`export COLUMNS`) sets them once, and a window that was resized since has another size.
    """
    for name in _VARIABLES:
        value = os.environ.get(name)
        if value is not None and (_is_terminal_with_size() or not _is_size(value)):
            del os.environ[name]


def _is_terminal_with_size() -> bool:
    for stream in (sys.__stdout__, sys.__stderr__):
        try:
            if stream is not None and os.get_terminal_size(stream.fileno()).columns > 0:
                return True
        except (OSError, ValueError):  # no terminal, or closed
            continue
    return False


def _is_size(value: str) -> bool:
    return value.isascii() and value.isdigit() and int(value) > 0
