"""`log.jsonl`: one line per step and one per validation, written as they happen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llavacot_mlx.atomic import write_file
from llavacot_mlx.errors import UserError
from llavacot_mlx.train.data.sample import TokenKind
from llavacot_mlx.train.events import Stepped, Validated

FILE_NAME = "log.jsonl"


class TrainingLog:
    """Appends to a folder's log, after dropping lines past step `done` that a killed run left."""

    def __init__(self, folder: Path, done: int) -> None:
        self._file = folder / FILE_NAME
        kept = [row for row in read_log(folder) if row["step"] <= done] if done else []
        write_file(self._file, "".join(map(_line, kept)).encode())

    def append(self, event: Stepped | Validated) -> None:
        try:
            with self._file.open("a", encoding="utf-8") as stream:
                stream.write(_line(row_of(event)))
        except OSError as problem:
            raise UserError(f"{self._file} cannot be written: {problem.strerror}") from None


def read_log(folder: Path) -> list[dict[str, Any]]:
    """The lines of a folder's log; empty without a log. A truncated last line is ignored.

    Raises UserError when the log cannot be read.
    """
    file = folder / FILE_NAME
    if not file.exists():
        return []
    try:
        lines = file.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as problem:
        raise UserError(f"{file} cannot be read: {problem}") from None
    rows = []
    for number, line in enumerate(lines, 1):
        try:
            row = json.loads(line)
            row["step"]
        except (ValueError, KeyError, TypeError):
            if number == len(lines):
                break
            raise UserError(f"{file}, row {number}: not a line of a training's log") from None
        rows.append(row)
    return rows


def row_of(event: Stepped | Validated) -> dict[str, Any]:
    """The line of the log for an event."""
    return _step_row(event) if isinstance(event, Stepped) else _validation_row(event)


def _step_row(event: Stepped) -> dict[str, Any]:
    return {
        "step": event.step,
        "loss": event.loss,
        "learned_tokens": event.learned_tokens,
        "learning_rate": event.learning_rate,
        "grad_norm": event.grad_norm,
        "seconds": round(event.seconds, 4),
        "peak_memory_bytes": event.peak_memory_bytes,
    }


def _validation_row(event: Validated) -> dict[str, Any]:
    row: dict[str, Any] = {"step": event.step, "val_loss": event.loss}
    row["val_seconds"] = round(event.seconds, 4)
    for kind, metrics in event.kinds.items():
        row[f"val_loss_{_name(kind)}"] = metrics.loss
        row[f"val_accuracy_{_name(kind)}"] = metrics.accuracy
    if event.answers:
        row["val_answers"] = len(event.answers)
        row["val_well_formed"] = _fraction([answer.well_formed for answer in event.answers])
        row["val_right"] = _fraction([answer.right for answer in event.answers])
    return row


def _name(kind: TokenKind) -> str:
    return kind.name.lower()


def _fraction(values: list[bool]) -> float:
    return sum(values) / len(values)


def _line(row: dict[str, Any]) -> str:
    return json.dumps(row) + "\n"
