"""The problems that a training row can have."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from llavacot_mlx.errors import UserError


class ProblemKind(enum.StrEnum):
    """The kinds of problems, in the order in which a row is checked."""

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
    """One problem of one row."""

    row: int
    """Line number in the file, from 1."""
    kind: ProblemKind
    detail: str
    """One line for a person, without file and row."""


class RowError(UserError):
    """A row that cannot be read as a conversation."""

    def __init__(self, where: str, kind: ProblemKind, detail: str) -> None:
        super().__init__(f"{where}: {detail}")
        self.kind = kind
        self.detail = detail
