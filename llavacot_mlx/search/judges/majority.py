"""Scores a candidate by how many others agree with it (self-consistency, arXiv 2203.11171)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from llavacot_mlx.search.node import Node


class MajorityJudge:
    """Scores by the share of candidates with the same conclusion; None without a conclusion."""

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        votes = Counter(node.conclusion for node in nodes)
        return [
            None if node.conclusion is None else votes[node.conclusion] / len(nodes)
            for node in nodes
        ]
