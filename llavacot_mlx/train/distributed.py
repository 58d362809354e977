"""The processes that train together, each on its shard of every batch.

`mlx.launch` starts them, and MLX sums arrays across them. Otherwise there is a single process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import mlx.core as mx
from mlx.utils import tree_map

T = TypeVar("T")


@dataclass(frozen=True)
class Workers:
    """The group of processes, and this process's rank in it."""

    rank: int
    size: int

    @classmethod
    def all(cls) -> Workers:
        """The group that this process belongs to."""
        group = mx.distributed.init()
        return cls(group.rank(), group.size())

    @property
    def is_main(self) -> bool:
        """Whether this process writes files and output; the others only compute."""
        return self.rank == 0

    def shard(self, rows: tuple[T, ...]) -> tuple[T, ...]:
        """This process's rows of a batch."""
        return rows[self.rank :: self.size]

    def wait(self) -> None:
        """Returns when all processes have come this far."""
        if self.size > 1:
            mx.eval(mx.distributed.all_sum(mx.array(1.0)))

    def all_sum(self, tree: Any) -> Any:
        """The sum of a tree of arrays over all processes."""
        if self.size == 1:
            return tree
        return tree_map(mx.distributed.all_sum, tree)
