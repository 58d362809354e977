"""How many bytes the keys and values of one answer take, and a limit on them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from llavacot_mlx.errors import UserError
from llavacot_mlx.usage import Usage

BITS = (8, 4)
"""Bits a value that keys and values can be kept in, besides all of them."""

KVPart = Literal["images", "prefixes", "rows"]
"""Of all K/V: the images', the text's that later tokens only read, and of what is being written."""


@dataclass(frozen=True)
class KVLimits:
    """What the keys and values of an answer may take."""

    bits: int | None = None
    """8 or 4: the picture's, and those of long finished texts, are kept in so many bits a value.
    None keeps them as they were computed."""
    budget: int | None = None
    """Bytes that all of them may take at one time; None sets no limit."""

    def __post_init__(self) -> None:
        if self.bits not in (None, *BITS):
            raise UserError(f"{self.bits} bits: K/V can be kept in {' or '.join(map(str, BITS))}")
        if self.budget is not None and self.budget < 1:
            raise UserError(f"a budget of {self.budget} bytes holds nothing")


NO_LIMITS = KVLimits()


class KVMeter:
    """Told before memory is taken, so that too much is refused before a machine swaps."""

    def __init__(self, usage: Usage, limits: KVLimits = NO_LIMITS) -> None:
        self._usage, self._budget = usage, limits.budget
        self.bits = limits.bits
        """Bits a value that K/V of images and of long finished texts are kept in; None for all."""
        self._held: dict[KVPart, int] = {}

    def hold(self, part: KVPart, count: int) -> None:
        """From now on `part` takes `count` bytes. Raises UserError where all parts are too much."""
        self._held[part] = count
        total = sum(self._held.values())
        if self._budget is not None and total > self._budget:
            raise UserError(
                f"keys and values would take {_megabytes(total)}, and the budget is "
                f"{_megabytes(self._budget)}: take fewer candidates, fewer tokens or 8-bit K/V, "
                "or raise the budget"
            )
        self._usage.kv_bytes = max(self._usage.kv_bytes, total)


def _megabytes(count: int) -> str:
    return f"{count / 1e6:,.2f} MB"
