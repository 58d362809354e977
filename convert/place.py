"""Where a conversion writes: a hidden sibling of its target, which takes the name when it is whole.

The sibling has the same name each time, so that the same command finds what an interrupted one
left. A lock on it keeps a second conversion away; the system drops the lock with the process.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from pathlib import Path
from typing import Self

from llavacot_mlx.atomic import flush, missing_parents, publish_folder, remove_empty
from llavacot_mlx.convert.target import Target, check_room, free_bytes
from llavacot_mlx.errors import UserError


class Place:
    """The target of one conversion. What is at a link's end is replaced, and the link stays."""

    def __init__(self, target: Path, source: Path, force: bool) -> None:
        """Raises UserError where the result could not take the target's name in the end."""
        self.target, self._source, self._force = target, source, force
        try:
            self.folder = target.resolve()
        except (OSError, RuntimeError):  # a loop of links, up to Python 3.12
            raise _loop(target) from None
        if self.folder.is_symlink():
            raise _loop(target)
        self.partial = self.folder.with_name(f".{self.folder.name}.partial")
        self._replaced = self.folder.with_name(f".{self.folder.name}.replaced")
        self._lock = -1
        self._made: list[Path] = []
        self.check_replaceable()

    def check_replaceable(self) -> None:
        """Raises UserError if there is something at the target that may not be replaced."""
        Target(self.target, "--mlx-path", self._force).check_replaceable(self._source)

    def __enter__(self) -> Self:
        """Makes the hidden folder, or takes over the one that is there. Raises UserError, OSError.

        It stays when the block ends, as does everything else until `clear`.
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

    def check_room(self, needed: int) -> None:
        """Raises UserError if the disk has no room for so many bytes more."""
        check_room(self.target, self.folder, needed)

    def free_bytes(self) -> int:
        """On the disk of the target, whose folder need not be there yet."""
        return free_bytes(self.folder)

    def keep_only(self, names: set[str]) -> None:
        """Removes everything else from the hidden folder."""
        for path in self.partial.iterdir():
            if path.name not in names:
                if path.is_dir() and not path.is_symlink():
                    shutil.rmtree(path)
                else:
                    path.unlink()

    def finish(self, unfinished: Path) -> None:
        """Gives the hidden folder the target's name; an old one under it goes afterwards.

        `unfinished` is the file in it that is removed first of all, once the rest is on the disk.
        """
        for file in self.partial.iterdir():
            flush(file)
        unfinished.unlink()
        publish_folder(self.partial, self.folder, self._replaced)

    def clear(self) -> None:
        """Removes the hidden folder, and the folders above the target that were made for it."""
        shutil.rmtree(self.partial, ignore_errors=True)
        remove_empty(self._made)

    def _locked(self) -> int:
        """The descriptor of the hidden folder, which no other process has locked."""
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
                    f"{self.target} is being written by another conversion; wait for it, or choose "
                    "another --mlx-path"
                ) from None
            except OSError as problem:
                if problem.errno not in (errno.ENOLCK, errno.ENOTSUP, errno.EBADF, errno.EINVAL):
                    os.close(descriptor)
                    raise
                return descriptor  # some network disks know no locks
            if self._is_at_partial(descriptor):
                return descriptor
            os.close(descriptor)  # it was renamed or removed before it was locked

    def _is_at_partial(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), self.partial.stat())
        except FileNotFoundError:
            return False

    def _recover(self) -> None:
        """Ends what a run that was killed between two renames had begun."""
        if self._replaced.exists():
            if self.folder.exists():
                shutil.rmtree(self._replaced, ignore_errors=True)
            else:
                self._replaced.rename(self.folder)


def _loop(target: Path) -> UserError:
    return UserError(f"{target}: its links lead back to it; choose another --mlx-path")
