"""Random access to the rows of a JSONL file, each read when it is needed."""

from __future__ import annotations

import codecs
import hashlib
import os
import re
from array import array
from dataclasses import dataclass, field
from pathlib import Path

from llavacot_mlx.checked import decode_text, wide_encoding
from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.train.data.conversation import Conversation, parse_row
from llavacot_mlx.train.data.problem import ProblemKind, RowError

_Stamp = tuple[int, int]

# A stage's tag, or the key of LLaVA-CoT-100k's rows, as JSON may spell them.
_STAGED = re.compile(
    rb'(?:<|\\u003[cC])(?:%b)(?:>|\\u003[eE])|"conversations"\s*:'
    % b"|".join(stage.tag.encode() for stage in Stage)
)


@dataclass(frozen=True)
class Dataset:
    """The rows of one file. It keeps the offset and line number of each row, and no row itself.

    Safe to read from several threads.
    """

    file: Path
    images: Path
    """The folder that the rows' image paths are relative to."""
    digest: str
    """SHA-256 of the file, in hexadecimal."""
    has_stages: bool
    """Whether the answers should have the four stages: some row has a stage tag, or the form of
    LLaVA-CoT-100k. Otherwise the rows are plain chats."""
    _offsets: array[int] = field(repr=False)
    """Byte offset of each row in the file."""
    _lines: array[int] = field(repr=False)
    _stamp: _Stamp

    @classmethod
    def open(cls, path: Path, images: Path | None) -> Dataset:
        """Indexes the rows of a JSONL file, skipping blank lines.

        `images` is the folder of the images, by default the folder of the file. Raises UserError
        when the file or the folder is missing, or when there is no row.
        """
        file = path.expanduser()
        folder = file.parent if images is None else images.expanduser()
        if images is not None and not folder.is_dir():
            raise UserError(f"{images}: there is no such folder of pictures")
        if file.is_dir():
            raise UserError(f"{path}: is a folder; name a file of rows")
        if file.exists() and not file.is_file():
            raise UserError(f"{path}: rows are read again every epoch, so it must be a plain file")
        offsets, lines = array("q"), array("q")
        digest = hashlib.sha256()
        has_stages = False
        try:
            with file.open("rb") as stream:
                offset = 0
                for number, line in enumerate(stream, 1):
                    digest.update(line)
                    if number == 1:
                        _check_encoding(path, line)
                    if line.removeprefix(codecs.BOM_UTF8).strip():
                        offsets.append(offset)
                        lines.append(number)
                        has_stages = has_stages or _STAGED.search(line) is not None
                    offset += len(line)
                stamp = _stamp(os.fstat(stream.fileno()))
        except OSError as problem:
            raise UserError(f"{path}: {problem.strerror}") from None
        if not offsets:
            raise UserError(f"{path}: there is no row in it")
        return cls(file, folder, digest.hexdigest(), has_stages, offsets, lines, stamp)

    def __len__(self) -> int:
        return len(self._offsets)

    def line(self, index: int) -> int:
        """Line number, from 1, of row `index`, from 0."""
        return self._lines[index]

    def where(self, index: int) -> str:
        """File and line of a row for messages, such as `train.jsonl, row 3`."""
        return f"{self.file}, row {self.line(index)}"

    def conversation(self, index: int) -> Conversation:
        """Reads row `index`.

        Raises RowError when it is not a conversation, and UserError when the file was changed since
        it was opened.
        """
        try:
            with self.file.open("rb") as stream:
                if _stamp(os.fstat(stream.fileno())) != self._stamp:
                    raise UserError(f"{self.file}: was changed while it was in use; start again")
                stream.seek(self._offsets[index])
                data = stream.readline()
        except OSError as problem:
            raise UserError(f"{self.file}: {problem.strerror}") from None
        where = self.where(index)
        try:
            line = data.removeprefix(codecs.BOM_UTF8).decode()
        except UnicodeDecodeError:
            raise RowError(where, ProblemKind.NOT_JSON, "not UTF-8 text") from None
        return parse_row(line, where)

    def image_path(self, index: int) -> Path | None:
        """Path of the image of row `index`, which may not exist. Raises as `conversation` does."""
        image = self.conversation(index).image
        return None if image is None else self.images / image


@dataclass(frozen=True)
class Splits:
    """The training, validation and test datasets."""

    train: Dataset
    valid: Dataset | None
    test: Dataset | None


def open_splits(path: Path, images: Path | None) -> Splits:
    """Opens training data: a file, or a folder with train.jsonl and optionally valid and test.

    The optional files of a folder are `valid.jsonl` and `test.jsonl`.

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


def _check_encoding(path: Path, line: bytes) -> None:
    """Raises UserError once for a file in UTF-16, each row of which would be broken."""
    if wide_encoding(line):
        try:
            decode_text(line)
        except ValueError as problem:
            raise UserError(f"{path}: {problem}") from None


def _stamp(status: os.stat_result) -> _Stamp:
    """Size and modification time of a file."""
    return status.st_size, status.st_mtime_ns
