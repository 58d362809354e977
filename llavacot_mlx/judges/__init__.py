"""Judges score candidates, one file a judge."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from llavacot_mlx.search import Node


class Judge(Protocol):
    """Scores candidates that have just been written; higher is better."""

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        """One score a candidate, None where there is no verdict."""
