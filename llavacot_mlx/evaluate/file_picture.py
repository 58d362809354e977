"""A picture of a data set in a file of its own."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.prompt.image_source import read_image_file


@dataclass(frozen=True)
class FilePicture:
    """A picture in a file."""

    path: Path
    digest: str
    is_file: bool = True

    def read(self) -> bytes:
        return read_image_file(self.path)


def file_picture(folder: Path, name: str) -> FilePicture:
    """The picture of a name, which is relative to `folder` or to its folder `images`.

    It need not be there: reading it then raises UserError.
    """
    for path in (folder / name, folder / "images" / name, folder / Path(name).name):
        try:
            digest = hashlib.sha256(path.read_bytes()).hexdigest()
        except (OSError, ValueError):
            continue
        return FilePicture(path, digest)
    return FilePicture(folder / name, f"missing {name}")
