"""Compares candidates pair by pair: which of two is better (arXiv 2411.10440v1)."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import mlx.core as mx

from llavacot_mlx.model.shared_prefix import KVPath
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.search.context import SearchContext
from llavacot_mlx.search.judges.batched_question import ask_each
from llavacot_mlx.search.judges.prompts import (
    PAIRWISE_CRITERIA,
    WHOLE_ANSWER_CRITERION,
    pairwise_question,
)
from llavacot_mlx.search.node import Node


@dataclass(frozen=True)
class _Comparison:
    """Two candidates and the path that they share."""

    nodes: tuple[Node, Node]
    path: KVPath
    orders: tuple[list[int], list[int]]
    """Token ids of the question, with the first of `nodes` as text 1 and as text 2."""

    @property
    def longest(self) -> int:
        return max(map(len, self.orders))


class PairwiseJudge:
    """Scores a candidate by the fraction of its comparisons that it wins; all pairs are compared.

    A pair is shown in a user turn after what both have in common, so the image and the stages
    before are not read again. It is asked in both orders; the most likely token is the answer.
    There is no verdict when an answer is neither number, when the two orders contradict each other,
    or when the pair exceeds the model's context. A candidate without any verdict has no score.
    """

    def __init__(self, context: SearchContext) -> None:
        self._context, self._tokenizer = context, context.tokenizer
        one, two = (self._tokenizer.encode(number)[0] for number in ("1", "2"))
        self._winner = {(one, two): 0, (two, one): 1}
        """The winner of a pair, by the two answers."""

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        won: dict[int, list[bool]] = {node.id: [] for node in nodes}
        pairs = [self._comparison(*pair) for pair in itertools.combinations(nodes, 2)]
        context = self._context.model.config.text.max_position_embeddings
        fitting = [pair for pair in pairs if pair.path.length + pair.longest <= context]
        for pair, winner in zip(fitting, self._winners(fitting), strict=True):
            if winner is not None:
                for index, node in enumerate(pair.nodes):
                    won[node.id].append(index == winner)
        return [sum(won[node.id]) / len(won[node.id]) if won[node.id] else None for node in nodes]

    def _comparison(self, one: Node, other: Node) -> _Comparison:
        paths = _path(one), _path(other)
        shared = sum(a is b for a, b in zip(*paths, strict=False))
        assert shared, "the candidates of a search begin with the same prompt"
        common = paths[0][shared - 1]
        texts = ["".join(node.text for node in path[shared:]).strip() for path in paths]
        stages = _stages_after(common, one) | _stages_after(common, other)
        before, between, after = pairwise_question(
            PAIRWISE_CRITERIA[stages.pop()] if len(stages) == 1 else WHOLE_ANSWER_CRITERION
        )
        straight, swapped = (
            self._tokenizer.next_turn(f"{before}{first}{between}{second}{after}")
            for first, second in (texts, reversed(texts))
        )
        # Each node of the path added one segment. The ancestor's own state may be freed already.
        path = KVPath(one.path.segments[:shared])
        return _Comparison((one, other), path, (straight, swapped))

    def _winners(self, pairs: Sequence[_Comparison]) -> Iterator[int | None]:
        """Yields the winner of each pair; None without a verdict."""
        if not pairs:
            return
        paths = [pair.path for pair in pairs for _ in pair.orders]
        questions = [order for pair in pairs for order in pair.orders]
        logits = ask_each(self._context, paths, questions)
        answers: list[int] = mx.argmax(logits, axis=-1).tolist()  # type: ignore[assignment]
        for straight, swapped in zip(answers[::2], answers[1::2], strict=True):
            yield self._winner.get((straight, swapped))


def _path(node: Node | None) -> list[Node]:
    """Returns the nodes from the prompt to `node`."""
    path: list[Node] = []
    while node is not None:
        path.insert(0, node)
        node = node.parent
    return path


def _stages_after(ancestor: Node, node: Node) -> set[Stage]:
    """Returns the stages that the node's path adds to its ancestor's, ended or open."""
    ended = {record.stage for record in node.stages[len(ancestor.stages) :]}
    return ended if node.stage is None else ended | {node.stage}
