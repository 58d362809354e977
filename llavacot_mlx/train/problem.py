"""What can be wrong with a row of training data."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from llavacot_mlx.errors import UserError


class ProblemKind(enum.StrEnum):
    """The kinds of problems, in the order in which a row is looked at."""

    NOT_JSON = "broken JSON"
    NOT_A_CONVERSATION = "not a conversation"
    SEVERAL_PICTURES = "several pictures"
    PICTURE_MISSING = "picture missing"
    PICTURE_UNREADABLE = "picture unreadable"
    NO_STAGES = "no stages"
    NOT_REWRITTEN = "turn not rewritten"
    STAGE_MISSING = "stage missing"
    CONCLUSION_MISSING = "conclusion missing"
    STAGE_DOUBLED = "stage doubled"
    STAGE_MISORDERED = "stages misordered"
    STAGE_EMPTY = "stage empty"
    STAGE_NOT_CLOSED = "stage not closed"
    TEXT_OUTSIDE = "text outside the stages"
    LEAK = "leak phrase"
    TOO_LONG = "too long"


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong with one row."""

    row: int
    """The line of the file, from 1."""
    kind: ProblemKind
    detail: str
    """For people, one line, without the file and the row."""


class RowError(UserError):
    """A row that cannot be read as a conversation."""

    def __init__(self, where: str, kind: ProblemKind, detail: str) -> None:
        super().__init__(f"{where}: {detail}")
        self.kind = kind
        self.detail = detail
