"""Reads what is piped into a command, up to a limit."""

from __future__ import annotations

import sys

from llavacot_mlx.bounded_read import TooLargeError, read_stream
from llavacot_mlx.errors import UserError


def read_stdin(what: str, max_bytes: int) -> bytes:
    """All of stdin. Raises UserError, which begins with `what`, when that is too large."""
    try:
        return read_stream(sys.stdin.buffer, max_bytes)
    except TooLargeError as problem:
        raise UserError(f"{what} on stdin is {problem.strerror}") from None
