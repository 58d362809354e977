"""Finds the sets that a person named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate import shapes
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet


def open_sets(
    names: str, data: Path | None, *, first: int = 0, limit: int | None = None, until: bool = False
) -> list[BenchmarkSet]:
    """Opens the sets of a list of names with commas between them.

    `data` is the folder of the data files. `first` is the number of the first question of shapes.
    Raises UserError for an unknown name, and for data that is missing or wrong.
    """
    return list(_opened(names, data, first, limit, until))


def _opened(
    names: str, data: Path | None, first: int, limit: int | None, until: bool
) -> Iterator[BenchmarkSet]:
    wanted = [name.strip() for name in names.split(",") if name.strip()]
    if not wanted:
        raise UserError("--set: name a set, such as shapes")
    for name in wanted:
        if wanted.count(name) > 1:
            raise UserError(f"--set {names}: {name} stands twice")
        if is_shapes(name):
            count = shapes.MAX_COUNT if until else limit
            yield shapes.open_shapes(name, first=first, count=count)
            continue
        raise UserError(f"--set {name}: there is no such set")


def is_shapes(name: str) -> bool:
    """Whether a name is that of the embedded world."""
    return name.partition(":")[0] == shapes.NAME
