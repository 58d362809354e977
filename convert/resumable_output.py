"""The output folder of a conversion, which a later run of the same command can resume.

Everything is written to a hidden sibling of the output, which takes the output's name once it is
complete. The sibling's name is always the same, so that the same command finds what an interrupted
one left. A lock on it keeps a second conversion out; the system releases it when the process ends.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Self

from llavacot_mlx.atomic import flush, missing_parents, publish_folder, remove_empty
from llavacot_mlx.convert.output_folder import OutputFolder, check_free_space, free_bytes
from llavacot_mlx.errors import UserError


class ResumableOutput:
    """The output of one conversion. If it is a link, the link's target is replaced."""

    def __init__(self, path: Path, source: Path, force: bool) -> None:
        """Raises UserError if the finished folder could not take this name."""
        self.path, self._source = path, source
        self._output = OutputFolder(path, "--mlx-path", force)
        try:
            self.folder = path.resolve()
        except (OSError, RuntimeError):  # a loop of links, up to Python 3.12
            raise _loop(path) from None
        if self.folder.is_symlink():
            raise _loop(path)
        self.partial = self.folder.with_name(f".{self.folder.name}.partial")
        self._replaced = self.folder.with_name(f".{self.folder.name}.replaced")
        self._lock = -1
        self._made: list[Path] = []
        self.check_replaceable()

    def check_replaceable(self) -> None:
        """Raises UserError if the output exists and may not be replaced."""
        self._output.check_replaceable(self._source)

    def __enter__(self) -> Self:
        """Creates the hidden folder, or takes over an existing one. Raises UserError or OSError.

        The end of the block only releases the lock: the folder stays until `finish` or `clear`.
        """
        self._made = missing_parents(self.folder)
        try:
            self.folder.parent.mkdir(parents=True, exist_ok=True)
            self._lock = self._locked()
        except BaseException:
            remove_empty(self._made)
            raise
        self._recover()
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self._lock)

    def check_free_space(self, needed: int) -> None:
        """Raises UserError unless the disk has room for `needed` more bytes."""
        check_free_space(self.path, self.folder, needed)

    def free_bytes(self) -> int:
        """Free bytes on the disk of the output."""
        return free_bytes(self.folder)

    def keep_only(self, names: set[str]) -> None:
        """Removes everything but `names` from the hidden folder."""
        for path in self.partial.iterdir():
            if path.name not in names:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def finish(self, unfinished: Path) -> None:
        """Gives the hidden folder the output's name, and then removes a folder it replaces.

        `unfinished` is the file that marks the folder as incomplete. It is removed before the
        renaming, once everything else is on the disk.
        """
        for file in self.partial.iterdir():
            flush(file)
        unfinished.unlink()
        publish_folder(self.partial, self.folder, self._replaced)

    def clear(self) -> None:
        """Removes the hidden folder, and the parent folders that were created for it."""
        shutil.rmtree(self.partial, ignore_errors=True)
        remove_empty(self._made)

    def _locked(self) -> int:
        """Creates and locks the hidden folder, and returns its descriptor."""
        while True:
            self.partial.mkdir(exist_ok=True)
            try:
                descriptor = os.open(self.partial, os.O_RDONLY | os.O_DIRECTORY)
            except FileNotFoundError:
                continue
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                os.close(descriptor)
                raise UserError(
                    f"{self.path} is being written by another conversion; wait for it, or choose "
                    "another --mlx-path"
                ) from None
            except OSError as problem:
                if problem.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL):
                    os.close(descriptor)
                    raise
                return descriptor  # some network file systems have no locks
            if self._is_at_partial(descriptor):
                return descriptor
            os.close(descriptor)  # it was renamed or removed before it was locked

    def _is_at_partial(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.partial.stat())
        except FileNotFoundError:
            return False

    def _recover(self) -> None:
        """Completes the renaming of a run that was killed between its two renames."""
        if self._replaced.exists():
            if self.folder.exists():
                shutil.rmtree(self._replaced, ignore_errors=True)
            else:
                self._replaced.rename(self.folder)


def _loop(path: Path) -> UserError:
    return UserError(f"{path}: its links lead back to it; choose another --mlx-path")
