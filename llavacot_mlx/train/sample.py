"""What is learned from one conversation: its token ids, and what each of them is as a target."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from pathlib import Path

import numpy as np


class Target(enum.IntEnum):
    """What a token is as a target of the loss. Reports are kept apart by it."""

    MASKED = 0
    """Not learned: prompts, headers, images, padding."""
    SUMMARY = 1
    CAPTION = 2
    REASONING = 3
    CONCLUSION = 4
    TAGS = 5
    """A stage's tags, what stands between stages, and the end of a turn."""


@dataclass(frozen=True)
class Sample:
    """One conversation as the model reads it.

    `targets[t]` says what token t is; where it is not MASKED, the model learns to write `ids[t]`
    after `ids[:t]`.
    """

    where: str
    """Such as `train.jsonl, row 3`."""
    ids: np.ndarray
    """(tokens,) int32."""
    targets: np.ndarray
    """(tokens,) uint8, of `Target`."""
    image: Path | None
