"""The journal of a conversion, from which an interrupted one resumes.

The journal is a file of JSON lines in the unfinished folder. The first line identifies the
conversion. Each later one records how many bytes of a file had reached the disk, and the SHA-256 of
those bytes. A line that was cut off by a crash is ignored.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

from llavacot_mlx import __version__
from llavacot_mlx.checked import Range, checked
from llavacot_mlx.convert.plan import TensorStep
from llavacot_mlx.convert.shards import Shard
from llavacot_mlx.errors import UserError

NAME = "journal.jsonl"
_READ_BYTES = 2**20


@dataclass(frozen=True)
class Identity:
    """Two conversions with the same identity write the same bytes."""

    source: dict[str, tuple[Any, ...]]
    """Size, modification time and SHA-256 of the header of each file, by its name."""
    result: str
    """SHA-256 of the planned files and of the versions of the programs that write them."""

    @classmethod
    def of(cls, steps: Sequence[TensorStep], shards: Sequence[Shard]) -> Identity:
        files = {step.source.entry.file for step in steps}
        written = hashlib.sha256(f"{__version__} {version('mlx')}".encode())
        for shard in shards:
            written.update(shard.file.encode() + shard.header)
            for step in shard.steps:
                written.update(repr((step.source.entry.name, step.quantization)).encode())
        return cls({file.name: _state(file) for file in sorted(files)}, written.hexdigest())

    def source_is_unchanged(self, folder: Path) -> bool:
        """Whether the files in `folder` are the ones that this identity was computed from."""
        try:
            return all(_state(folder / name) == state for name, state in self.source.items())
        except OSError:
            return False


@dataclass(frozen=True)
class _Mark:
    """A line of the journal after the first."""

    file: str
    bytes: Annotated[int, Range(min=1)]
    sha256: str


@dataclass(frozen=True)
class Kept:
    """The part of a file that an earlier run wrote and that is intact."""

    count: int = 0
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)


class Journal:
    """The journal of one conversion, in its unfinished folder."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / NAME
        self.saved = 0
        """Bytes that a later run does not have to write again."""

    def begin(self, identity: Identity) -> None:
        """Starts a new journal, in place of an earlier one."""
        self.file.write_text(_line(vars(identity)), encoding="utf-8")

    def found(self) -> Identity | None:
        """The identity of an earlier run; None without a readable journal."""
        for value in self._lines()[:1]:
            with contextlib.suppress(UserError):
                return checked(Identity, value)
        return None

    def kept(self, shards: Iterable[Shard]) -> dict[str, Kept]:
        """The intact part of each file that the journal mentions, by the file's name.

        A part ends at the last journaled position before the first byte that differs.
        """
        marks: dict[str, dict[int, str]] = defaultdict(dict)
        for value in self._lines()[1:]:
            with contextlib.suppress(UserError):
                mark = checked(_Mark, value)
                marks[mark.file][mark.bytes] = mark.sha256
        folder = self.file.parent
        kept = {s.file: _intact(folder / s.file, marks[s.file]) for s in shards if marks[s.file]}
        self.saved = sum(each.count for each in kept.values())
        return kept

    def add(self, shard: Shard, count: int, sha256: str, new: int, descriptor: int) -> None:
        """Waits until the first `count` bytes of a file are on the disk, and records that.

        `new` is the number of bytes since the previous record of this file.
        """
        os.fsync(descriptor)
        line = _line({"file": shard.file, "bytes": count, "sha256": sha256})
        with self.file.open("a", encoding="utf-8") as stream:
            stream.write(line)
            stream.flush()
            os.fsync(stream.fileno())
        self.saved += new

    def _lines(self) -> list[Any]:
        found: list[Any] = []
        try:
            for line in self.file.read_bytes().splitlines():
                found.append(json.loads(line))
        except (OSError, ValueError, RecursionError):
            pass  # missing, or cut off in the middle of a line
        return found


def _line(values: dict[str, Any]) -> str:
    return json.dumps(values) + "\n"


def _state(file: Path) -> tuple[Any, ...]:
    with file.open("rb") as stream:
        status = os.fstat(stream.fileno())
        length = int.from_bytes(stream.read(8), "little")
        header = hashlib.sha256(stream.read(length)).hexdigest()
    return status.st_size, status.st_mtime_ns, header


def _intact(file: Path, marks: dict[int, str]) -> Kept:
    """The longest part of a file up to which the digests of all marks are right."""
    digest, kept = hashlib.sha256(), Kept()
    try:
        with file.open("rb") as stream:
            for count in sorted(marks):
                while (left := count - stream.tell()) and (
                    data := stream.read(min(left, _READ_BYTES))
                ):
                    digest.update(data)
                if left or digest.hexdigest() != marks[count]:
                    break
                kept = Kept(count, digest.copy())
    except OSError:
        pass
    return kept
