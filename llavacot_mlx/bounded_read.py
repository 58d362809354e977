"""Reads files and streams up to a limit.

What a path names may be a device that never ends, or a pipe that nobody writes to; a stream may be
anything. Everything that a person hands over is read through here.
"""

from __future__ import annotations

import errno
import os
import stat
from io import BufferedReader
from pathlib import Path
from typing import Protocol

# Pipes that a shell opened for the command, as in `llavacot trace <(zcat search.json.gz)`.
_OPEN_PIPES = ("/dev/fd/", "/dev/stdin", "/proc/self/fd/")


class _Readable(Protocol):
    def read(self, size: int, /) -> bytes: ...


class NotRegularError(OSError):
    """The path names a device, a pipe or a socket. `strerror` says so."""


class TooLargeError(OSError):
    """There is more to read than the limit. `strerror` says how much may be there."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(errno.EFBIG, f"too large: more than {max_bytes // 10**6} MB")


def open_regular(file: Path) -> BufferedReader:
    """Opens a regular file, /dev/null, or a pipe that the shell opened for the command.

    Never waits for somebody to write. Raises OSError, and ValueError for a name with a NUL.
    """
    descriptor = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        mode = status.st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(file))
        is_open_pipe = stat.S_ISFIFO(mode) and str(file).startswith(_OPEN_PIPES)
        is_empty = stat.S_ISCHR(mode) and status.st_rdev == Path(os.devnull).stat().st_rdev
        if not (stat.S_ISREG(mode) or is_open_pipe or is_empty):
            raise NotRegularError(errno.EINVAL, "not a regular file", str(file))
        os.set_blocking(descriptor, True)
        return os.fdopen(descriptor, "rb")
    except BaseException:
        os.close(descriptor)
        raise


def read_file(file: Path, max_bytes: int) -> bytes:
    """The bytes of a file. Raises OSError, TooLargeError among them, and ValueError for a NUL."""
    with open_regular(file) as stream:
        if os.fstat(stream.fileno()).st_size > max_bytes:
            raise TooLargeError(max_bytes)
        return read_stream(stream, max_bytes)


def read_stream(stream: _Readable, max_bytes: int) -> bytes:
    """All bytes of a stream. Raises TooLargeError after one more than `max_bytes`, and OSError."""
    pieces = []
    left = max_bytes + 1
    while left and (piece := stream.read(min(left, _PIECE))):
        pieces.append(piece)
        left -= len(piece)
    if not left:
        raise TooLargeError(max_bytes)
    return b"".join(pieces)


_PIECE = 2**20  # a read of the whole limit at once would set that much memory aside
