"""Writes files and folders atomically: an interruption leaves the old content or the new."""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path

from llavacot_mlx.errors import UserError


def check_can_write(file: Path) -> None:
    """Raises UserError if `write_file` could not write `file`; creates nothing."""
    target = _resolved(file)
    if _is_stream(target):
        if not os.access(target, os.W_OK):
            raise UserError(f"{file}: may not be written")
        return
    if target.is_dir():
        raise UserError(f"{file}: is a folder; name a file in it")
    if target.exists() and not os.access(target, os.W_OK):
        raise UserError(f"{file}: is write-protected")
    partial = _partial(target)
    try:
        partial.touch(exist_ok=False)
        partial.unlink()
    except OSError as problem:
        raise _unwritable(file, problem) from None


def write_file(file: Path, data: bytes) -> None:
    """Writes or replaces `file` by renaming a complete sibling.

    A device or pipe, such as `/dev/stdout`, is written to directly. If `file` is a link, the file
    that it points to is replaced. Raises UserError when that fails; the file is then unchanged.
    """
    check_can_write(file)
    target = _resolved(file)
    if _is_stream(target):
        try:
            target.write_bytes(data)
        except BrokenPipeError:
            raise
        except OSError as problem:
            raise _unwritable(file, problem) from None
        return
    with _replacing(file, target, _partial(target)) as partial:
        partial.write_bytes(data)


@contextlib.contextmanager
def replace_file(file: Path) -> Iterator[Path]:
    """Yields a temporary path, which replaces `file` when the block ends without an error.

    Use it with libraries that write to a path; the path has the suffix of `file`. Raises UserError
    when the file cannot be written; it is then unchanged.
    """
    target = _resolved(file)
    partial = _partial(target)
    partial = partial.with_name(f"{partial.name}{target.suffix}")
    with _replacing(file, target, partial):
        yield partial


@contextlib.contextmanager
def _replacing(file: Path, target: Path, partial: Path) -> Iterator[Path]:
    try:
        yield partial
        flush(partial)  # the bytes must be on the disk before the name is
        partial.replace(target)
    except BrokenPipeError:
        raise
    except OSError as problem:
        raise _unwritable(file, problem) from None
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


@contextlib.contextmanager
def replace_folder(folder: Path) -> Iterator[Path]:
    """Yields a hidden sibling folder, which replaces `folder` when the block ends without an error.

    After an error everything is as before, and an existing `folder` is kept. `folder` must not be
    a link. Raises OSError.
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
    """Renames the finished folder `partial` to `folder`, and then removes an older `folder`.

    The older folder is called `replaced` in the meantime; all three are siblings. The files of
    `partial` are flushed to disk before it is renamed. Raises OSError; the older folder is then
    restored.
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
    """The parent folders of a path that do not exist yet, innermost first."""
    return [folder for folder in path.parents if not folder.exists()]


def remove_empty(folders: Iterable[Path]) -> None:
    """Removes the folders that are empty; `folders` are ordered innermost first."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def flush(path: Path) -> None:
    """Flushes a file or folder to disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _resolved(file: Path) -> Path:
    try:
        target = file.expanduser().resolve()
        target.exists()
    except OSError as problem:  # such as a name that is too long, or a loop of links
        raise _unwritable(file, problem) from None
    except (RuntimeError, ValueError) as problem:  # such as ~nobody, or a NUL
        raise UserError(f"{file}: {problem}") from None
    return target


def _is_stream(target: Path) -> bool:
    return target.exists() and not target.is_file() and not target.is_dir()


def _partial(target: Path) -> Path:
    # Not derived from the file's name, which may already have the maximum length.
    return target.parent / f".llavacot-{secrets.token_hex(8)}.partial"


def _unwritable(file: Path, problem: OSError) -> UserError:
    if isinstance(problem, FileNotFoundError):
        return UserError(f"{file}: there is no folder {file.parent}")
    return UserError(f"{file}: cannot be written: {problem.strerror or problem}")
