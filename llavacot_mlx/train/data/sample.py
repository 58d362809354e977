"""A training sample: the token ids of one conversation, and the kind of each token."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import numpy as np

from llavacot_mlx.prompt.image_source import LocatedImage


class TokenKind(enum.IntEnum):
    """The kind of a token in a row. The loss is reported by kind; masked tokens have none."""

    MASKED = 0
    """No loss: prompts, headers, images, padding."""
    SUMMARY = 1
    CAPTION = 2
    REASONING = 3
    CONCLUSION = 4
    TAGS = 5
    """Stage tags, text between stages, and the end of a turn."""


@dataclass(frozen=True)
class Sample:
    """One conversation as the model reads it.

    Where `token_kinds[t]` is not MASKED, the model is trained to predict `ids[t]` from `ids[:t]`.
    """

    where: str
    """File and line for messages, such as `train.jsonl, row 3`."""
    ids: np.ndarray
    """(tokens,) int32."""
    token_kinds: np.ndarray
    """(tokens,) uint8: the `TokenKind` of each token."""
    image: LocatedImage | None
