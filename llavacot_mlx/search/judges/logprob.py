"""Scores a candidate by the log-probability that the model gave its own text."""

from __future__ import annotations

from collections.abc import Sequence

from llavacot_mlx.search.node import Node


class LogprobJudge:
    """Scores by the mean log-probability of a candidate's own tokens, before temperature."""

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        return [node.logprob / len(node.token_ids) if node.token_ids else None for node in nodes]
