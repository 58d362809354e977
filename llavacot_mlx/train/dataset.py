"""Training rows in a JSONL file, read one by one when they are wanted."""

from __future__ import annotations

import hashlib
import os
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from llavacot_mlx.errors import UserError
from llavacot_mlx.stages import Stage

from .conversation import Conversation, parse_row
from .problem import ProblemKind, RowError

_Stamp = tuple[int, int]

# What JSON makes of a stage's tag or of the key that LLaVA-CoT-100k's rows have.
_STAGED = re.compile(
    rb'(?:<|\\u003[cC])(?:%b)(?:>|\\u003[eE])|"conversations"\s*:'
    % b"|".join(stage.tag.encode() for stage in Stage)
)


@dataclass(frozen=True)
class Dataset:
    """The rows of one file. It holds where each begins, 16 bytes a row, and no row itself.

    Any number of threads may read.
    """

    file: Path
    images: Path
    """The folder that the rows' pictures are named relative to."""
    digest: str
    """SHA-256 of the file, in hexadecimal."""
    has_stages: bool
    """Whether its answers are meant to have the four stages: a row has a stage's tag, or is of
    LLaVA-CoT-100k's form. Otherwise it is a file of plain chats."""
    _places: array[int] = field(repr=False)
    """Of each row's first byte in the file."""
    _lines: array[int] = field(repr=False)
    _stamp: _Stamp

    @classmethod
    def open(cls, path: Path, images: Path | None) -> Dataset:
        """Finds the rows of a JSONL file; lines without anything on them are none.

        `images` is the folder of the pictures, by default the one that the file is in. Raises
        UserError when there is no such file or folder, or no row in it.
        """
        file = path.expanduser()
        folder = file.parent if images is None else images.expanduser()
        if images is not None and not folder.is_dir():
            raise UserError(f"{images}: there is no such folder of pictures")
        if file.is_dir():
            raise UserError(f"{path}: is a folder; name a file of rows")
        if file.exists() and not file.is_file():
            raise UserError(f"{path}: rows are read again every epoch, so it must be a plain file")
        places, lines = array("q"), array("q")
        digest = hashlib.sha256()
        has_stages = False
        try:
            with file.open("rb") as stream:
                place = 0
                for number, line in enumerate(stream, 1):
                    digest.update(line)
                    if line.strip():
                        places.append(place)
                        lines.append(number)
                        has_stages = has_stages or _STAGED.search(line) is not None
                    place += len(line)
                stamp = _stamp(os.fstat(stream.fileno()))
        except OSError as problem:
            raise UserError(f"{path}: {problem.strerror}") from None
        if not places:
            raise UserError(f"{path}: there is no row in it")
        return cls(file, folder, digest.hexdigest(), has_stages, places, lines, stamp)

    def __len__(self) -> int:
        return len(self._places)

    def line(self, index: int) -> int:
        """The line of the file that row `index`, from 0, stands on; lines count from 1."""
        return self._lines[index]

    def where(self, index: int) -> str:
        """Such as `train.jsonl, row 3`: the row's line, for messages."""
        return f"{self.file}, row {self.line(index)}"

    def conversation(self, index: int) -> Conversation:
        """Reads row `index`.

        Raises RowError when it is no conversation, and UserError when the file is not the one any
        more that was opened.
        """
        try:
            with self.file.open("rb") as stream:
                if _stamp(os.fstat(stream.fileno())) != self._stamp:
                    raise UserError(f"{self.file}: was changed while it was in use; start again")
                stream.seek(self._places[index])
                data = stream.readline()
        except OSError as problem:
            raise UserError(f"{self.file}: {problem.strerror}") from None
        where = self.where(index)
        try:
            line = data.decode()
        except UnicodeDecodeError:
            raise RowError(where, ProblemKind.NOT_JSON, "not UTF-8 text") from None
        return parse_row(line, where)

    def image_path(self, index: int) -> Path | None:
        """Where the picture of row `index` should lie. Raises as `conversation` does."""
        image = self.conversation(index).image
        return None if image is None else self.images / image


@dataclass(frozen=True)
class Splits:
    """What is trained on, and what is kept apart."""

    train: Dataset
    valid: Dataset | None
    test: Dataset | None


def open_splits(path: Path, images: Path | None) -> Splits:
    """The rows of a file, all to train on, or of a folder with `train.jsonl` and, where they are
    wanted, `valid.jsonl` and `test.jsonl`.

    Raises UserError as `Dataset.open` does.
    """
    folder = path.expanduser()
    if not folder.is_dir():
        return Splits(Dataset.open(path, images), None, None)
    if not (folder / "train.jsonl").exists():
        raise UserError(f"{path}: there is no train.jsonl in this folder")
    train, valid, test = (
        Dataset.open(path / name, images) if (folder / name).exists() else None
        for name in ("train.jsonl", "valid.jsonl", "test.jsonl")
    )
    assert train is not None
    return Splits(train, valid, test)


def _stamp(status: os.stat_result) -> _Stamp:
    """Size and last change of a file."""
    return status.st_size, status.st_mtime_ns
