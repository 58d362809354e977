"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

from .errors import UserError


def check_can_write(file: Path) -> None:
    """Raises UserError where `write_file` could not write; leaves nothing behind."""
    place = _place(file)
    if _is_stream(place):
        if not os.access(place, os.W_OK):
            raise UserError(f"{file}: may not be written")
        return
    if place.is_dir():
        raise UserError(f"{file}: is a folder; name a file in it")
    if place.exists() and not os.access(place, os.W_OK):
        raise UserError(f"{file}: is write-protected")
    partial = _partial(place)
    try:
        partial.touch(exist_ok=False)
        partial.unlink()
    except OSError as problem:
        raise _unwritable(file, problem) from None


def write_file(file: Path, data: bytes) -> None:
    """Writes `file`, in place of one that is there, by renaming a sibling that is complete.

    What is no plain file, such as `/dev/stdout`, is written to directly; of a link, what it points
    to is replaced. Raises UserError when that fails, and then the file is as it was.
    """
    check_can_write(file)
    place = _place(file)
    if _is_stream(place):
        try:
            place.write_bytes(data)
        except BrokenPipeError:
            raise
        except OSError as problem:
            raise _unwritable(file, problem) from None
        return
    partial = _partial(place)
    try:
        with partial.open("xb") as stream:
            stream.write(data)
        partial.replace(place)
    except OSError as problem:
        raise _unwritable(file, problem) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Yields a path to write to, which takes the place of `file` when the block ends well.

    For what another library writes by name; the path has the file's own ending. Raises UserError
    when the file cannot be written, and then it is as it was.
    """
    place = _place(file)
    partial = _partial(place)
    partial = partial.with_name(f"{partial.name}{place.suffix}")
    try:
        yield partial
        with partial.open("rb+") as stream:
            os.fsync(stream.fileno())  # the name must not be there before the bytes
        partial.replace(place)
    except OSError as problem:
        raise _unwritable(file, problem) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def _place(file: Path) -> Path:
    try:
        place = file.expanduser().resolve()
        place.exists()
    except OSError as problem:  # such as a name that is too long, or a loop of links
        raise _unwritable(file, problem) from None
    except (RuntimeError, ValueError) as problem:  # such as ~nobody, or a NUL
        raise UserError(f"{file}: {problem}") from None
    return place


def _is_stream(place: Path) -> bool:
    return place.exists() and not place.is_file() and not place.is_dir()


def _partial(place: Path) -> Path:
    # Not named after the file: that name may be as long as names can be.
    return place.parent / f".llavacot-{secrets.token_hex(8)}.partial"


def _unwritable(file: Path, problem: OSError) -> UserError:
    if isinstance(problem, FileNotFoundError):
        return UserError(f"{file}: there is no folder {file.parent}")
    return UserError(f"{file}: cannot be written: {problem.strerror or problem}")
