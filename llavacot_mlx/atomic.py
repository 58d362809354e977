"""Writes files and folders completely or not at all."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from llavacot_mlx.errors import UserError


def check_can_write(file: Path) -> None:
    """Raises UserError if `write_file` would fail; leaves nothing behind."""
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
    """Writes `file` by renaming a complete sibling; replaces an existing one.

    A special file such as `/dev/stdout` is written directly; of a link, the target is replaced.
    Raises UserError when that fails; then the file is as it was.
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
    with _replacing(file, place, _partial(place)) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Yields a path to write to, which replaces `file` when the block succeeds.

    This is for libraries that write to a name; the path keeps the file's suffix. Raises UserError
    when the file cannot be written; then it is as it was.
    """
    place = _place(file)
    partial = _partial(place)
    partial = partial.with_name(f"{partial.name}{place.suffix}")
    with _replacing(file, place, partial):
        yield partial


@contextlib.contextmanager
def _replacing(file: Path, place: Path, partial: Path) -> Iterator[Path]:
    try:
        yield partial
        flush(partial)  # the name must not be there before the bytes
        partial.replace(place)
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise _unwritable(file, problem) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields a hidden sibling to write to, which is renamed to `folder` when the block succeeds.

    A failure leaves everything as it was, including an older folder of that name. `folder` must not
    be a link. Raises OSError.
    """
    partial = folder.with_name(f".{folder.name}.partial-{os.getpid()}")
    made = missing_parents(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial.mkdir()
        yield partial
        publish_folder(partial, folder, folder.with_name(f".{folder.name}.replaced-{os.getpid()}"))
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        remove_empty(made)


def publish_folder(partial: Path, folder: Path, replaced: Path) -> None:
    """Renames a finished folder to its name; an older folder of that name is removed afterwards.

    `replaced` is the older folder's name in between. All three are siblings. The content of
    `partial` is on the disk before the rename. Raises OSError; then the older folder is back.
    """
    for file in partial.iterdir():
        flush(file)
    flush(partial)
    if folder.exists():
        folder.rename(replaced)
        try:
            partial.rename(folder)
        except BaseException:
            replaced.rename(folder)
            raise
    else:
        partial.rename(folder)
    flush(folder.parent)
    shutil.rmtree(replaced, ignore_errors=True)


def missing_parents(path: Path) -> list[Path]:
    """Returns the parent folders of a path that do not exist yet, innermost first."""
    return [folder for folder in path.parents if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes the empty ones of the folders, innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def flush(path: Path) -> None:
    """Waits until a file or a folder is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


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
