"""The processes that train together, each on its share of every batch.

MLX starts them (`mlx.launch`) and carries the sums between them; without it there is one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import mlx.core as mx
from mlx.utils import tree_map


@dataclass(frozen=True)
class Workers:
    rank: int
    size: int

    @classmethod
    def all(cls) -> Workers:
        """Those that this process belongs to."""
        group = mx.distributed.init()
        return cls(group.rank(), group.size())

    @property
    def leads(self) -> bool:
        """Whether this is the process that writes and shows; the others only compute."""
        return self.rank == 0

    def share(self, rows: tuple[int, ...]) -> tuple[int, ...]:
        """The rows of a batch that are this process's."""
        return rows[self.rank :: self.size]

    def sum(self, tree: Any) -> Any:
        """The sum of a tree of arrays over all processes."""
        if self.size == 1:
            return tree
        return tree_map(mx.distributed.all_sum, tree)

    def same(self, tree: Any) -> Any:
        """The first process's arrays, in every process."""
        if self.size == 1:
            return tree
        return self.sum(tree if self.leads else tree_map(mx.zeros_like, tree))
