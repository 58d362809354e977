"""A folder that is written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.atomic import replace_folder
from llavacot_mlx.errors import UserError

_MARGIN_BYTES = 64 * 2**20  # for the small files beside the weights


@dataclass(frozen=True)
class Target:
    """The folder that a command writes."""

    folder: Path
    flag: str
    """The flag that names it, for errors: `--mlx-path`."""
    force: bool
    """Whether it may replace a folder of its kind."""
    mark: str = "config.json"
    """The file that every folder of its kind holds."""

    def check_replaceable(self, *sources: Path) -> None:
        """Raises UserError if something is there that may not be replaced, a source above all."""
        place = self.folder.resolve()
        if not place.exists():
            return
        if not self.force:
            raise UserError(
                f"{self.folder} exists already: choose another {self.flag}, or add --force"
            )
        if any(source.resolve().is_relative_to(place) for source in sources):
            raise UserError(f"{self.folder} is or holds the source: choose another {self.flag}")
        if not (place / self.mark).is_file() and not _is_empty_folder(place):
            what = "model" if self.mark == "config.json" else "adapter"
            raise UserError(
                f"{self.folder} is no {what} folder, and --force replaces nothing else: choose "
                f"another {self.flag}"
            )


@contextlib.contextmanager
def written(target: Target, *sources: Path, size: int) -> Iterator[Path]:
    """Yields a hidden sibling to write to, which gets the target's name when the block ends well.

    What goes wrong leaves everything as it was, an older folder under that name too. `size` is
    about what will be written, in bytes. Raises UserError when the target is not replaceable (see
    there for `sources`), or the disk has no room or fills up.
    """
    target.check_replaceable(*sources)
    place = target.folder.resolve()  # where a link points to, beside the folder that it replaces
    try:
        with replace_folder(place) as partial:
            check_room(target.folder, place, size)
            yield partial
            target.check_replaceable(*sources)  # what came in the meantime, too
    except OSError as problem:
        raise write_error(problem, target.folder, size) from None


def _is_empty_folder(place: Path) -> bool:
    return place.is_dir() and not any(place.iterdir())


def check_room(target: Path, place: Path, size: int) -> None:
    """Raises UserError if the disk of `place` has no room for `size` bytes more."""
    free = free_bytes(place)
    if free < size + _MARGIN_BYTES:
        raise UserError(
            f"not enough disk for {target}: it needs {size / 1e9:.1f} GB and "
            f"{free / 1e9:.1f} GB are free"
        )


def write_error(problem: OSError, folder: Path, size: int) -> UserError:
    """What to say when `folder`, of `size` bytes, could not be written."""
    if problem.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return UserError(
            f"the disk is full: {folder} needs {size / 1e9:.1f} GB; nothing was left behind"
        )
    return UserError(f"{problem.filename or folder}: {problem.strerror}")


def free_bytes(place: Path) -> int:
    """On the disk of a folder that need not be there yet."""
    there = next(folder for folder in place.parents if folder.exists())
    return shutil.disk_usage(there).free
