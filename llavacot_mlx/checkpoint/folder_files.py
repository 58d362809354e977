"""Which files of a folder are part of a model or an adapter."""

from __future__ import annotations

from pathlib import Path

from llavacot_mlx.errors import UserError


def files_in(folder: Path, *endings: str) -> list[Path]:
    """The files of a folder, sorted by name; with `endings`, only those that end in one of them.

    Hidden files are left out: macOS writes `.DS_Store`, and on disks that are not its own beside
    every file a `._` one of the same name and ending; hubs and Git write `.gitattributes`.

    Raises UserError when the folder cannot be read, or has a device or a pipe in it: opened as a
    file, it would never end.
    """
    try:
        found = sorted(folder.iterdir())
    except NotADirectoryError:
        raise UserError(f"{folder} is not a folder") from None
    except OSError as problem:
        raise UserError(f"{folder} cannot be read: {problem.strerror}") from None
    files = [
        file
        for file in found
        if is_visible(file.name)
        and (not endings or file.name.endswith(endings))
        and not file.is_dir()
    ]
    for file in files:
        if file.exists() and not file.is_file():
            raise UserError(f"{file} is not a regular file")
    return files


def is_visible(name: str) -> bool:
    """Whether a name is one of a folder's own files, as opposed to what a system left there."""
    return not name.startswith(".")


def is_left_by_finder(name: str) -> bool:
    """Whether a file is one that macOS leaves in a folder by merely showing or copying it."""
    return name in (".DS_Store", ".localized") or name.startswith("._")
