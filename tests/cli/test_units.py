"""Bytes and seconds as people read and type them."""

from __future__ import annotations

import pytest

from llavacot_mlx.cli.units import parse_bytes
from llavacot_mlx.errors import UserError


@pytest.mark.parametrize(
    ("typed", "count"),
    [
        ("2GB", 2_000_000_000),
        ("1.5 gb", 1_500_000_000),
        ("500MB", 500_000_000),
        ("64 MiB", 64 * 2**20),
        ("3kB", 3000),
        ("4096", 4096),
        (" 7B ", 7),
        ("1TB", 10**12),
    ],
)
def test_what_is_meant(typed: str, count: int) -> None:
    assert parse_bytes(typed) == count


@pytest.mark.parametrize("typed", ["", "GB", "much", "-1GB", "2 GBs", "2G B", "1e9", "2.GB"])
def test_anything_else_is_refused(typed: str) -> None:
    with pytest.raises(UserError, match="type it like 2GB"):
        parse_bytes(typed)
