"""A question of a benchmark, and where its picture is."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

Index = int | str
"""What a data file calls a row: a number, or a text such as `VD_chart_1_0_1_0`."""

ROTATION_STEP = 1_000_000
"""A question's rotations have its index plus a multiple of this (MMBench)."""


class PictureSource(Protocol):
    """Where a picture is."""

    @property
    def digest(self) -> str:
        """Equal for equal pictures."""

    @property
    def is_file(self) -> bool:
        """Whether it is a file of the data set, which a profile may save as JPEG first."""

    def read(self) -> bytes:
        """Returns the bytes of the picture's file. Raises UserError where it cannot be read."""


@dataclass(frozen=True)
class BenchmarkQuestion:
    """One row of a benchmark.

    A question with its options in another order is a row of its own; both have the same `group`.
    """

    set: str
    index: Index
    question: str
    prompt: str
    """The text that the model is asked."""
    picture: PictureSource
    rotation: int = 0
    """Which of the orders of its options this is."""
    group: Index = ""
    """The index of the question that it is a rotation of; by default its own."""
    options: Mapping[str, str] = field(default_factory=dict)
    """Texts of the options by letter."""
    answer: str | None = None
    """The right letter, value or text; None where the file does not say."""
    fields: Mapping[str, str] = field(default_factory=dict)
    """What else the row says, such as its category."""

    def __post_init__(self) -> None:
        if self.group == "":
            object.__setattr__(self, "group", self.index)

    @property
    def where(self) -> str:
        """What errors call it."""
        return f"{self.set}, row {self.index}"


def parse_index(text: str) -> Index:
    """A row's index as a number where it is one."""
    digits = text.removeprefix("-")
    is_number = digits.isascii() and digits.isdigit() and len(digits) < 16
    return int(text) if is_number else text
