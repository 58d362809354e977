"""Counters of the work that one answer took, and seconds of wall time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Usage:
    """Counters of work; the code that runs the model raises them."""

    prompt_tokens: int = 0
    images_encoded: int = 0
    prefilled_tokens: int = 0
    decoded_tokens: int = 0
    forward_passes: int = 0
    """Passes that decoded; a pass that verifies drafted tokens may decode several."""
    drafted_tokens: int = 0
    """Tokens that were guessed from earlier text, to be verified."""
    accepted_tokens: int = 0
    """Guessed tokens that were right."""
    judge_tokens: int = 0
    reused_tokens: int = 0
    """Tokens that later candidates shared with earlier ones and did not compute again."""
    kv_bytes: int = 0
    """Peak bytes of keys and values."""


@dataclass
class Timings:
    """Seconds of wall time. `first_token_s` counts from the question to its first token."""

    load_s: float = 0.0
    vision_s: float = 0.0
    prefill_s: float = 0.0
    first_token_s: float = 0.0
    decode_s: float = 0.0
    judge_s: float = 0.0
    total_s: float = 0.0
