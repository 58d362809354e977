"""Random access to the rows of a file: JSON lines, a JSON array, or objects over several lines."""

from __future__ import annotations

import codecs
import hashlib
import mmap
import os
import re
import shlex
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO

from llavacot_mlx.bounded_read import open_regular
from llavacot_mlx.checked import decode_text, parse_json, wide_encoding
from llavacot_mlx.errors import UserError
from llavacot_mlx.file_kinds import binary_kind, foreign_kind
from llavacot_mlx.rows.conversation import is_row
from llavacot_mlx.rows.problem import ProblemKind, RowError

_Stamp = tuple[int, int]
_NOTHING = re.compile(rb"(?!)")
_START_BYTES = 4096
_MAX_ROW_BYTES = 50_000_000
"""Of one row, which may hold a picture; parsed, it takes some times as much."""

# What matters for where a value ends: a whole string, a bracket, or a quote that opens no string.
_TOKEN = re.compile(rb'"[^"\\\x00-\x1f]*(?:\\.[^"\\\x00-\x1f]*)*"|[{}\[\]"]')
_BEFORE_FIRST = re.compile(rb"\s*")
_BETWEEN = re.compile(rb"\s*,\s*")
_BETWEEN_OBJECTS = re.compile(rb"\s*,?\s*")


@dataclass(frozen=True)
class RowFile:
    """Where each row of a file is. It keeps the rows' places, and no row itself.

    Safe to read from several threads.
    """

    file: Path
    digest: str
    """SHA-256 of the file, in hexadecimal."""
    is_marked: bool
    """Whether some row matches the pattern that `open` was given."""
    _offsets: array[int] = field(repr=False)
    """Byte offset of each row in the file."""
    _marks: array[int] = field(repr=False)
    """The line of each row in a file of lines, and else the offset of its end."""
    _is_lines: bool
    _stamp: _Stamp

    @classmethod
    def open(cls, path: Path, mark: re.Pattern[bytes] = _NOTHING) -> RowFile:
        """Indexes the rows of a file. Blank lines and a byte order mark are skipped.

        Raises UserError when the file is missing, has no row, or is of another kind.
        """
        file = path.expanduser()
        if file.is_dir():
            raise UserError(f"{path}: is a folder; name a file of rows")
        if file.exists() and not file.is_file():
            raise UserError(f"{path}: rows are read again every epoch, so it must be a plain file")
        try:
            with open_regular(file) as stream:
                start = stream.read(_START_BYTES)
                _check_kind(path, start)
                stream.seek(0)
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
                stamp = _stamp(os.fstat(stream.fileno()))
                places = None
                if start.removeprefix(codecs.BOM_UTF8).strip():
                    with mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as data:
                        places = _document_places(path, data)
                        if places is not None:
                            marked = any(mark.search(data, *place) for place in places)
                offsets, marks = array("q"), array("q")
                if places is not None:
                    for begin, end in places:
                        offsets.append(begin)
                        marks.append(end)
                else:
                    stream.seek(0)
                    marked = _index_lines(stream, mark, offsets, marks)
        except OSError as problem:
            raise UserError(f"{path}: {problem.strerror}") from None
        if not offsets:
            raise UserError(f"{path}: there is no row in it")
        rows = cls(file, digest, marked, offsets, marks, places is None, stamp)
        if len(rows) == 1:
            _check_one(path, rows.read(0))
        return rows

    def __len__(self) -> int:
        return len(self._offsets)

    def number(self, index: int) -> int:
        """Number, from 1, of row `index`, from 0: its line, or its place among the objects."""
        return self._marks[index] if self._is_lines else index + 1

    def where(self, index: int) -> str:
        """File and row for messages, such as `train.jsonl, row 3`."""
        return f"{self.file}, row {self.number(index)}"

    def read(self, index: int) -> bytes:
        """The bytes of row `index`, up to one beyond the longest that `text` accepts.

        Raises UserError when the file was changed since `open`.
        """
        try:
            with open_regular(self.file) as stream:
                if _stamp(os.fstat(stream.fileno())) != self._stamp:
                    raise UserError(f"{self.file}: was changed while it was in use; start again")
                stream.seek(self._offsets[index])
                size = _MAX_ROW_BYTES + 1
                if self._is_lines:
                    row = stream.readline(size).removeprefix(codecs.BOM_UTF8)
                else:
                    row = stream.read(min(size, self._marks[index] - self._offsets[index]))
        except OSError as problem:
            raise UserError(f"{self.file}: {problem.strerror}") from None
        return row

    def text(self, index: int) -> str:
        """`read` as text. Raises RowError when it is too long or not UTF-8."""
        row = self.read(index)
        if len(row) > _MAX_ROW_BYTES:
            detail = f"more than {_MAX_ROW_BYTES // 10**6} MB"
            raise RowError(self.where(index), ProblemKind.TOO_LONG, detail)
        try:
            return row.decode()
        except UnicodeDecodeError:
            raise RowError(self.where(index), ProblemKind.NOT_JSON, "not UTF-8 text") from None


def _stamp(found: os.stat_result) -> _Stamp:
    return found.st_size, found.st_mtime_ns


def _check_kind(path: Path, start: bytes) -> None:
    """Raises UserError, with what to do, for a file that is no JSON."""
    if kind := foreign_kind(start):
        raise UserError(f"{path}: is {kind}")
    if kind := binary_kind(start):
        raise UserError(f"{path}: is {kind}, not a file of rows")
    if start.startswith(b"PAR1"):
        read = "import sys, pandas; pandas.read_parquet(sys.argv[1])"
        program = f"{read}.to_json(sys.argv[2], orient='records', lines=True)"
        raise UserError(f"{path}: is a Parquet file; convert it: {_command(program, path)}")
    if wide_encoding(start):
        try:
            decode_text(start)
        except ValueError as problem:
            raise UserError(f"{path}: {problem}") from None


def _command(program: str, path: Path) -> str:
    """A command that writes JSON lines beside the file."""
    output = path.with_suffix(".jsonl" if path.suffix != ".jsonl" else ".rows.jsonl")
    words = (shlex.quote(word) for word in (program, str(path), str(output)))
    return f"python3 -c {' '.join(words)}"


def _index_lines(
    stream: BinaryIO, mark: re.Pattern[bytes], offsets: array[int], numbers: array[int]
) -> bool:
    """Adds the offset and number of each line that is not blank; returns whether one is marked."""
    offset, number, marked = 0, 1, False
    is_new = True  # the next piece begins a line, and does not go on with one that is too long
    while line := stream.readline(_MAX_ROW_BYTES + 1):
        if is_new and line.removeprefix(codecs.BOM_UTF8).strip():
            offsets.append(offset)
            numbers.append(number)
            marked = marked or mark.search(line) is not None
        offset += len(line)
        is_new = line.endswith(b"\n")
        number += is_new
    return marked


def _document_places(path: Path, data: mmap.mmap) -> list[tuple[int, int]] | None:
    """Begin and end of each row of an array, or of objects over several lines; None for lines."""
    start = len(codecs.BOM_UTF8) if data[:3] == codecs.BOM_UTF8 else 0
    while start < len(data) and data[start : start + 1].isspace():
        start += 1
    first = data[start : start + 1]
    if first == b"[":
        return _array_places(path, data, start)
    if first != b"{":
        return None
    place = next(_values(data, start), None)
    if place is None or b"\n" not in data[start : place[1]].strip():
        return None
    try:
        parse_json(data[place[0] : min(place[1], place[0] + _MAX_ROW_BYTES)].decode())
    except (ValueError, RecursionError):  # UnicodeDecodeError among them
        return None  # a file of lines whose first one is broken
    return _object_places(path, data, start)


def _array_places(path: Path, data: mmap.mmap, start: int) -> list[tuple[int, int]]:
    places: list[tuple[int, int]] = []
    end = start + 1
    for begin, stop in _values(data, end):
        if begin == stop:  # the array's end
            if data[end:begin].strip() or data[begin + 1 :].strip():
                break
            return places
        _check_gap(path, data[end:begin], len(places), _BETWEEN if places else _BEFORE_FIRST)
        places.append((begin, stop))
        end = stop
    raise UserError(
        f"{path}: its JSON array is broken after row {len(places)}; was it cut off? "
        "A file with one object a line has no such trouble"
    )


def _object_places(path: Path, data: mmap.mmap, start: int) -> list[tuple[int, int]]:
    places: list[tuple[int, int]] = []
    end = start
    for begin, stop in _values(data, start):
        if begin == stop:
            break
        _check_gap(path, data[end:begin], len(places), _BETWEEN_OBJECTS)
        places.append((begin, stop))
        end = stop
    if data[end:].strip().strip(b","):
        raise UserError(
            f"{path}: its rows go over several lines, and row {len(places) + 1} has no end"
        )
    return places


def _check_gap(path: Path, gap: bytes, before: int, allowed: re.Pattern[bytes]) -> None:
    if allowed.fullmatch(gap) is None:
        found = gap.strip().strip(b",").strip()[:40].decode(errors="replace")
        raise UserError(
            f"{path}: after row {before}, expected an object"
            + (f", not {found!r}" if found else " behind a comma")
        )


def _values(data: mmap.mmap, start: int) -> Iterator[tuple[int, int]]:
    """Begin and end of each object and array from `start` on; equal ones at a bracket too many.

    Stops where a string has no end.
    """
    depth = begin = 0
    for token in _TOKEN.finditer(data, start):
        first = data[token.start()]
        if first == ord('"'):
            if token.end() - token.start() == 1:
                return
        elif first in b"{[":
            if depth == 0:
                begin = token.start()
            depth += 1
        else:
            depth -= 1
            if depth < 0:
                yield token.start(), token.start()
                return
            if depth == 0:
                yield begin, token.end()


def _check_one(path: Path, text: bytes) -> None:
    """Raises UserError, with what to do, if the only row is an object that holds the rows."""
    try:
        row = parse_json(text.decode())
    except (ValueError, RecursionError):
        return
    if not isinstance(row, dict) or is_row(row):
        return
    lists = [
        key
        for key, value in row.items()
        if isinstance(value, list) and value and all(isinstance(each, dict) for each in value)
    ]
    if len(lists) == 1:
        rows = f"json.load(open(sys.argv[1]))[{lists[0]!r}]"
        program = (
            f"import json, sys; out = open(sys.argv[2], 'w'); "
            f"[print(json.dumps(row), file=out) for row in {rows}]"
        )
        raise UserError(
            f"{path}: is one object whose list {lists[0]} seems to be the rows; "
            f"convert it: {_command(program, path)}"
        )
