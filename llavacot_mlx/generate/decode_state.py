"""Where decoding starts: a path whose next logits are known."""

from __future__ import annotations

from dataclasses import dataclass

import mlx.core as mx

from llavacot_mlx.model.shared_prefix import KVPath


@dataclass(frozen=True)
class DecodeState:
    """A path and the logits of its next token: where a candidate can start."""

    path: KVPath
    logits: mx.array
    """(1, vocabulary)."""


@dataclass(frozen=True)
class CandidateStart:
    """Where one candidate starts, and the key of its random numbers."""

    state: DecodeState
    key: str
    max_tokens: int
    """Maximum number of tokens; the candidate ends there even if it is incomplete."""
