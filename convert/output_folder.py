"""The folder that a command writes: whether it may be replaced, and whether it fits the disk."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.atomic import replace_folder
from llavacot_mlx.checkpoint.folder_files import is_left_by_finder
from llavacot_mlx.errors import UserError

_MARGIN_BYTES = 64 * 2**20  # for the small files beside the weights


@dataclass(frozen=True)
class OutputFolder:
    """The folder that a command writes, and the flag that names it."""

    folder: Path
    flag: str
    """The flag for it, which error messages name: `--mlx-path`."""
    force: bool
    """Whether an existing folder of the same kind may be replaced."""
    marker: str = "config.json"
    """A file that every folder of this kind contains."""

    def check_replaceable(self, *sources: Path) -> None:
        """Raises UserError if the folder exists and may not be replaced.

        A folder that contains one of the `sources` is never replaced.
        """
        resolved = self.folder.resolve()
        if not resolved.exists():
            return
        if not self.force:
            raise UserError(
                f"{self.folder} exists already: choose another {self.flag}, or add --force"
            )
        if any(source.resolve().is_relative_to(resolved) for source in sources):
            raise UserError(f"{self.folder} is or holds the source: choose another {self.flag}")
        if not (resolved / self.marker).is_file() and not _is_empty_folder(resolved):
            what = "a model" if self.marker == "config.json" else "an adapter"
            raise UserError(
                f"{self.folder} is not {what} folder, and --force replaces nothing else: choose "
                f"another {self.flag}"
            )

    @contextlib.contextmanager
    def replace(self, *sources: Path, size: int) -> Iterator[Path]:
        """Yields a hidden sibling to write to, which takes the folder's name when the block ends.

        After an error everything is as it was before, an existing folder of that name included.
        `size` is roughly what will be written, in bytes. Raises UserError when the folder is not
        replaceable (`check_replaceable`), when the disk is too small, or when it fills up.
        """
        self.check_replaceable(*sources)
        resolved = self.folder.resolve()  # a link stays, and what it points to is replaced
        try:
            with replace_folder(resolved) as partial:
                check_free_space(self.folder, resolved, size)
                yield partial
                self.check_replaceable(*sources)  # something may have appeared in the meantime
        except OSError as problem:
            raise write_error(problem, self.folder, size) from None


def check_free_space(named: Path, resolved: Path, size: int) -> None:
    """Raises UserError unless the disk of `resolved` has room for `size` more bytes.

    `named` is the folder as the user gave it.
    """
    free = free_bytes(resolved)
    if free < size + _MARGIN_BYTES:
        raise UserError(
            f"not enough disk for {named}: it needs {size / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free"
        )


def write_error(problem: OSError, folder: Path, size: int) -> UserError:
    """Returns the error to raise when `folder`, of `size` bytes, could not be written."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"the disk is full: {folder} needs {size / 1e9:.1f} GB; nothing was left behind"
        )
    return UserError(f"{problem.filename or folder}: {problem.strerror}")


def free_bytes(folder: Path) -> int:
    """Free bytes on the disk of a folder, which need not exist yet."""
    existing = next(parent for parent in folder.parents if parent.exists())
    return shutil.disk_usage(existing).free


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and all(is_left_by_finder(file.name) for file in path.iterdir())
