"""Reads the tab-separated files of VLMEvalKit, whose pictures stand in them as base64."""

from __future__ import annotations

import ast
import base64
import binascii
import codecs
import contextlib
import csv
import hashlib
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from io import BufferedReader
from pathlib import Path

from llavacot_mlx.checked import wide_encoding
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.data_row import DataFile, DataRow
from llavacot_mlx.evaluate.file_picture import file_picture
from llavacot_mlx.evaluate.question import Index, PictureSource, parse_index
from llavacot_mlx.file_kinds import foreign_kind

MISSING = frozenset(
    [
        *("", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND"),
        *("1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN", "None", "n/a", "nan", "null"),
    ]
)
"""Cells that pandas reads as missing, also where they are an option's text."""

_MAX_REFERENCE = 64  # characters of a cell that names the row with the picture
_INDEX, _QUESTION, _IMAGE, _IMAGE_PATH = "index", "question", "image", "image_path"


@dataclass(frozen=True)
class _CellPicture:
    """A picture in a cell of the file, which is read again when it is needed."""

    path: Path
    offset: int
    """Byte offset of the row."""
    column: int
    digest: str
    where: str
    is_file: bool = True

    def read(self) -> bytes:
        with self.path.open("rb") as stream:
            stream.seek(self.offset)
            for _, cells in _records(self.path, stream):
                data = decode_picture(cells[self.column], self.where)
                if hashlib.sha256(data).hexdigest() == self.digest:
                    return data
                break
        raise UserError(f"{self.where}: the file has changed since the run began")


def read_tsv(path: Path, required: tuple[str, ...] = ()) -> DataFile:
    """Reads a file's rows. `required` columns must be there besides index, question and image.

    Rows without a picture are left out, as the kit does. Raises UserError, which names the file and
    the row, for a file that is none of these, for missing columns, for an index that is missing or
    stands twice, and for a picture that is not base64.
    """
    reading = _TsvReading(path, required)
    rows = tuple(reading.rows())
    if not rows:
        reason = "no row has a picture" if reading.count else "it has no rows"
        raise UserError(f"{path}: {reason}")
    return DataFile(str(path), "TSV", reading.columns, rows, reading.md5)


def tsv_columns(path: Path) -> tuple[str, ...]:
    """The names of a file's columns. Raises UserError as `read_tsv` does."""
    return _TsvReading(path, ()).header()


@dataclass
class _TsvReading:
    path: Path
    required: tuple[str, ...]
    columns: tuple[str, ...] = ()
    md5: str = ""
    count: int = 0
    _pictures: dict[Index, PictureSource] = field(default_factory=dict)
    _seen: set[Index] = field(default_factory=set)

    def header(self) -> tuple[str, ...]:
        with self._opened() as stream:
            return tuple(next(_records(self.path, stream), (0, []))[1])

    @contextlib.contextmanager
    def _opened(self) -> Iterator[BufferedReader]:
        path = self.path
        try:
            with path.open("rb") as stream:
                self._check_start(stream.read(4096))
                stream.seek(0)
                yield stream
        except FileNotFoundError:
            raise UserError(f"{path}: there is no such file") from None
        except IsADirectoryError:
            raise UserError(f"{path}: is a folder; name a TSV file") from None
        except OSError as problem:
            raise UserError(f"{path}: cannot be read: {problem.strerror}") from None

    def rows(self) -> Iterator[DataRow]:
        path = self.path
        with self._opened() as stream:
            self.md5 = hashlib.file_digest(stream, "md5").hexdigest()
            stream.seek(0)
            records = _records(path, stream)
            self._check_columns(next(records, (0, []))[1])
            found = [self._row(offset, cells) for offset, cells in records]
        for index, cells, picture in found:
            if isinstance(picture, _Reference):
                if picture.index not in self._pictures:
                    raise UserError(
                        f"{path}: row {index}: its image is that of row {picture.index}, which "
                        "has none"
                    )
                picture = self._pictures[picture.index]
            if picture is not None:
                words = frozenset(name for name in cells if cells[name] in MISSING)
                kept = {name: text for name, text in cells.items() if name not in words}
                yield DataRow(index, kept, picture, words)

    def _check_start(self, start: bytes) -> None:
        if kind := foreign_kind(start):
            raise UserError(f"{self.path} is {kind}")
        if encoding := wide_encoding(start):
            raise UserError(
                f"{self.path}: it is {encoding} text: save it as UTF-8, or run: "
                f"iconv -f {encoding} -t UTF-8"
            )
        if not start.removeprefix(codecs.BOM_UTF8).strip():
            raise UserError(f"{self.path}: is empty")

    def _check_columns(self, names: list[str]) -> None:
        path = self.path
        if len(names) == 1:
            mark = next((mark for mark in (",", ";", "|") if mark in names[0]), None)
            if mark:
                raise UserError(
                    f"{path}: its columns are separated by {mark!r}; save it with tabs between them"
                )
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise UserError(f"{path}: the column {twice[0]} stands twice")
        wanted = [_INDEX, _QUESTION, *self.required]
        missing = [name for name in dict.fromkeys(wanted) if name not in names]
        if _IMAGE not in names and _IMAGE_PATH not in names:
            missing.append(f"{_IMAGE} (or {_IMAGE_PATH})")
        if missing:
            raise UserError(
                f"{path}: missing column{'s' if len(missing) > 1 else ''} {', '.join(missing)}; "
                f"it has {', '.join(names)}"
            )
        self.columns = tuple(names)

    def _row(
        self, offset: int, values: list[str]
    ) -> tuple[Index, dict[str, str], PictureSource | _Reference | None]:
        self.count += 1
        path, columns = self.path, self.columns
        if len(values) > len(columns):
            raise UserError(
                f"{path}: row number {self.count} has {len(values)} cells, and there are "
                f"{len(columns)} columns; a text with tabs needs quotes around it"
            )
        cells = {name: value for name, value in zip(columns, values, strict=False) if value}
        if cells.get(_INDEX, "") in MISSING:
            raise UserError(f"{path}: row number {self.count} has no index")
        index = parse_index(cells.pop(_INDEX).strip())
        if index in self._seen:
            raise UserError(f"{path}: row {index} stands twice; an index belongs to one row")
        self._seen.add(index)
        image, image_path = cells.pop(_IMAGE, ""), cells.get(_IMAGE_PATH, "")
        picture: PictureSource | _Reference | None = None
        if image not in MISSING:
            picture = self._cell_picture(offset, index, image)
        elif image_path not in MISSING and _IMAGE not in columns:
            picture = file_picture(path.parent, image_path)
        if picture is not None and not isinstance(picture, _Reference):
            self._pictures[index] = picture
        return index, cells, picture

    def _cell_picture(self, offset: int, index: Index, image: str) -> PictureSource | _Reference:
        where = f"{self.path}: row {index}"
        if len(image) <= _MAX_REFERENCE:
            return _Reference(parse_index(image.strip()))
        digest = hashlib.sha256(decode_picture(image, where)).hexdigest()
        return _CellPicture(self.path, offset, self.columns.index(_IMAGE), digest, where)


@dataclass(frozen=True)
class _Reference:
    """The index of the row that has the picture."""

    index: Index


def decode_picture(cell: str, where: str) -> bytes:
    """Decodes the base64 of a picture, or of a list with one picture.

    Raises UserError that begins with `where`.
    """
    text = cell.strip()
    if text.startswith("["):
        try:
            listed = ast.literal_eval(text)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            raise UserError(f"{where}: the list in its column image is not whole") from None
        if len(listed) != 1:
            raise UserError(f"{where}: has {len(listed)} pictures; only one a row can be asked")
        text = str(listed[0])
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError):
        raise UserError(f"{where}: its column image is not whole base64; was it cut off?") from None


def _records(path: Path, stream: BufferedReader) -> Iterator[tuple[int, list[str]]]:
    """The rows from the stream's position on, each with its byte offset; blank lines are skipped.

    A row may have line breaks within quotes, so only the parser knows where it ends: it takes
    one line at a time.
    """
    lines = _Lines(path, stream)
    # Base64 of a picture has millions of characters. The limit is the module's; nobody else needs
    # one.
    csv.field_size_limit(sys.maxsize)
    reader = csv.reader(lines, delimiter="\t")
    while True:
        start = lines.offset
        try:
            cells = next(reader, None)
        except csv.Error as problem:
            raise UserError(f"{path}: line {lines.number}: {problem}") from None
        if cells is None:
            return
        if lines.ended:
            raise UserError(f"{path}: line {lines.number}: a quote is never closed")
        if cells:
            yield start, cells


class _Lines:
    """The lines of a binary stream as text, with the byte offset of the next one."""

    def __init__(self, path: Path, stream: BufferedReader) -> None:
        self._path, self._stream = path, stream
        self.offset = stream.tell()
        self.number = 0
        self.ended = False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._stream.readline()
        if not line:
            self.ended = True
            raise StopIteration
        self.offset += len(line)
        self.number += 1
        try:
            text = line.decode()
        except UnicodeDecodeError:
            raise UserError(f"{self._path}: line {self.number} is not UTF-8 text") from None
        is_first = self.offset == len(line)
        return text.removeprefix("\ufeff") if is_first else text
