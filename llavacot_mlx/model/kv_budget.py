"""A budget for the keys and values of one answer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llavacot_mlx.errors import UserError
from llavacot_mlx.usage import Usage

BITS = (8, 4)
"""Bits to which keys and values can be quantized."""

KVPart = Literal["images", "prefixes", "candidates"]
"""The images' K/V, those of text that is only read, and those of candidates in decoding."""


@dataclass(frozen=True)
class KVLimits:
    """Limits on the keys and values of an answer."""

    bits: int | None = None
    """8 or 4: K/V of images and of long finished texts are quantized to this many bits. None keeps
    them as they were computed."""
    budget: int | None = None
    """Maximum bytes of all K/V at one time; None for no limit."""

    def __post_init__(self) -> None:
        if self.bits not in (None, *BITS):
            raise UserError(f"{self.bits} bits: K/V can be kept in {' or '.join(map(str, BITS))}")
        if self.budget is not None and self.budget < 1:
            raise UserError(f"a budget of {self.budget} bytes holds nothing")


NO_LIMITS = KVLimits()


class KVBudget:
    """Reserves memory before it is allocated, so excess is refused before the machine swaps."""

    def __init__(self, usage: Usage, limits: KVLimits = NO_LIMITS) -> None:
        self._usage, self._limit = usage, limits.budget
        self.bits = limits.bits
        """See `KVLimits.bits`."""
        self._reserved: dict[KVPart, int] = {}

    def reserve(self, part: KVPart, count: int) -> None:
        """Sets the bytes of `part`. Raises UserError when all parts together exceed the budget."""
        self._reserved[part] = count
        total = sum(self._reserved.values())
        if self._limit is not None and total > self._limit:
            raise UserError(
                f"keys and values would take {_megabytes(total)}, and the budget is "
                f"{_megabytes(self._limit)}: take fewer candidates, fewer tokens or 8-bit K/V, "
                "or raise the budget"
            )
        self._usage.kv_bytes = max(self._usage.kv_bytes, total)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"
