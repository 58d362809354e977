"""Reading ends: at the limit, and at once where a path names no regular file."""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest

from llavacot_mlx.bounded_read import (
    NotRegularError,
    TooLargeError,
    open_regular,
    read_file,
    read_stream,
)


def test_a_file_is_read_up_to_the_limit(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes(b"x" * 10)
    assert read_file(file, 10) == b"x" * 10
    with pytest.raises(TooLargeError):
        read_file(file, 9)
    with pytest.raises(IsADirectoryError):
        read_file(tmp_path, 9)
    with pytest.raises(ValueError, match="null"):
        read_file(Path("a\0b"), 9)


def test_a_stream_without_an_end() -> None:
    """`/dev/zero` on stdin once filled the memory."""
    read = 0

    class Endless(io.RawIOBase):
        def read(self, size: int = -1, /) -> bytes:
            nonlocal read
            read += size
            return bytes(size)

    with pytest.raises(TooLargeError, match="more than 5 MB"):
        read_stream(Endless(), 5 * 10**6)
    assert read == 5 * 10**6 + 1


def test_devices_and_pipes_are_no_files(tmp_path: Path) -> None:
    """Opening a pipe that nobody writes to once waited for ever."""
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    link = tmp_path / "link"
    link.symlink_to("/dev/zero")
    for path in (pipe, link, Path("/dev/zero")):
        with pytest.raises(NotRegularError, match="not a regular file"):
            open_regular(path)


def test_what_a_shell_opens_for_the_command() -> None:
    """`llavacot trace <(zcat search.json.gz)`; and /dev/null is how to name no file."""
    reading, writing = os.pipe()
    try:
        os.write(writing, b"hello")
        os.close(writing)
        assert read_file(Path(f"/dev/fd/{reading}"), 100) == b"hello"
    finally:
        os.close(reading)
    assert read_file(Path(os.devnull), 100) == b""
