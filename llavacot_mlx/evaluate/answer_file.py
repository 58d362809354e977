"""The answers of a run, appended one by one, so that a run that is killed loses none."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

from llavacot_mlx.atomic import write_file
from llavacot_mlx.checked import checked, named
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.question_file import read_lines
from llavacot_mlx.prompt.stages import Stage, StageRecord

FILE_NAME = "answers.jsonl"
FAILED = "failed"
"""The finish of a question that could not be asked, such as where its picture does not open."""

AnswerKey = tuple[str, int | str, int, int]
"""Set, index, rotation and repeat."""


@dataclass(frozen=True)
class AnswerRow:
    """One answer."""

    set: str
    index: int | str
    rotation: int
    repeat: int
    prompt_sha256: str
    picture_sha256: str
    """Of the bytes that the model was given; empty if they could not be read."""
    text: str
    stages: tuple[StageRecord, ...]
    finish: str
    """A value of `trace.finish.Finish`, or FAILED."""
    prompt_tokens: int
    decoded_tokens: int
    judge_tokens: int
    seconds: float
    seed: int
    error: str = ""
    """Why it failed."""

    @property
    def key(self) -> AnswerKey:
        return (self.set, self.index, self.rotation, self.repeat)

    @property
    def is_failed(self) -> bool:
        return self.finish == FAILED

    @property
    def well_formed(self) -> bool:
        """Whether each of the four stages is there once, in order, closed, and not empty."""
        return [record.stage for record in self.stages] == list(Stage) and all(
            record.closed and record.text.strip() for record in self.stages
        )


def read_answers(folder: Path) -> dict[AnswerKey, AnswerRow]:
    """All answers in a run folder, of all its processes. Raises UserError that names the line."""
    found: dict[AnswerKey, AnswerRow] = {}
    for file in [folder / FILE_NAME, *_shares(folder)]:
        for number, value in read_lines(file):
            with named(f"{file}: line {number}"):
                row = checked(AnswerRow, value)
            found.setdefault(row.key, row)
    return found


def write_answers(folder: Path, rows: Iterable[AnswerRow]) -> None:
    """Replaces all answers of a run folder by these, in this order. Raises UserError."""
    write_file(folder / FILE_NAME, "".join(map(_line, rows)).encode(errors="backslashreplace"))
    for share in _shares(folder):
        share.unlink(missing_ok=True)


class AnswerFile:
    """Appends answers to the file of one process; each is on the disk before the next is asked."""

    def __init__(self, folder: Path, rank: int) -> None:
        """Opens the file, without a line that was cut off. Raises UserError."""
        self._file = folder / (f"answers.rank{rank}.jsonl" if rank else FILE_NAME)
        try:
            self._descriptor = os.open(self._file, os.O_RDWR | os.O_CREAT, 0o644)
            data = self._file.read_bytes()
            self._end = data.rfind(b"\n") + 1
            os.ftruncate(self._descriptor, self._end)
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
        except OSError as problem:
            raise self._unwritable(problem) from None

    def append(self, row: AnswerRow) -> None:
        """Writes one answer to the disk. Raises UserError; the file then ends as before."""
        data = _line(row).encode(errors="backslashreplace")
        try:
            written = 0
            while written < len(data):
                written += os.write(self._descriptor, data[written:])
            os.fsync(self._descriptor)
        except OSError as problem:
            os.ftruncate(self._descriptor, self._end)
            os.lseek(self._descriptor, self._end, os.SEEK_SET)
            raise self._unwritable(problem) from None
        self._end += len(data)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        os.close(self._descriptor)

    def _unwritable(self, problem: OSError) -> UserError:
        return UserError(
            f"{self._file}: cannot be written: {problem.strerror}; the answers in it are kept, and "
            "the same command goes on behind them"
        )


def _line(row: AnswerRow) -> str:
    value = asdict(row)
    if not row.error:
        del value["error"]
    return json.dumps(value, ensure_ascii=False) + "\n"


def _shares(folder: Path) -> list[Path]:
    return sorted(folder.glob("answers.rank*.jsonl"))
