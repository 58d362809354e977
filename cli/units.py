"""Bytes and seconds as people read and type them."""

from __future__ import annotations

import re

from llavacot_mlx.checked import quoted
from llavacot_mlx.errors import UserError

_BYTE_UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
_TYPED_BYTES = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def parse_bytes(text: str) -> int:
    """The number of bytes that a person typed, such as `2GB`, `500MB` or `1.5 GiB`.

    Raises UserError for text that is not a number with an optional unit.
    """
    typed = _TYPED_BYTES.fullmatch(text)
    unit = typed and _BYTE_UNITS.get(typed[2].upper())
    if not typed or unit is None:
        raise UserError(f"{quoted(text)} is not a number of bytes; type it like 2GB or 500MB")
    size = float(typed[1]) * unit
    if not size < 2**63:
        raise UserError(f"{quoted(text)} is more bytes than any machine has")
    return round(size)


def format_bytes(count: int) -> str:
    """A number of bytes for people, in the decimal units that download pages use: `7.3 GB`."""
    if count < 1000:
        return f"{count} bytes"
    amount, unit = count / 1e3, "kB"
    for larger in ("MB", "GB", "TB"):
        if amount >= 1000:
            amount, unit = amount / 1000, larger
    return f"{format_number(amount)} {unit}"


def format_seconds(value: float) -> str:
    """A duration for people: `0.03 s`, `4.1 s`, `2 min 05 s`."""
    if value >= 60:
        minutes, rest = divmod(round(value), 60)
        return f"{minutes} min {rest:02d} s"
    return f"{format_number(value)} s"


def format_number(value: float) -> str:
    """A positive number with about two digits: `0.03`, `4.1`, `128`."""
    if value >= 10:
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 0.1 else f"{value:.2f}"
