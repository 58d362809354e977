"""A number of bytes as people type it: `2GB`, `500MB`, `1.5 GiB`."""

from __future__ import annotations

import re

from llavacot_mlx.errors import UserError

_UNITS = {
    "": 1,
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
_TYPED = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]*)\s*")


def byte_count(text: str) -> int:
    """Raises UserError for what is no number of bytes."""
    typed = _TYPED.fullmatch(text)
    unit = typed and _UNITS.get(typed[2].upper())
    if not typed or unit is None:
        raise UserError(f"{text!r} is no number of bytes; type it like 2GB or 500MB")
    return round(float(typed[1]) * unit)
