"""Asks the model whether the stage that it just wrote is right."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.search.context import SearchContext
from llavacot_mlx.search.judges.batched_question import ask_each
from llavacot_mlx.search.judges.prompts import SELF_QUESTIONS
from llavacot_mlx.search.node import Node


class SelfJudge:
    """Scores a stage by the probability of "yes" against "no" to whether it is right.

    The question is read on top of the candidate's path and the same image K/V.
    """

    def __init__(self, context: SearchContext) -> None:
        self._context, self._tokenizer = context, context.tokenizer
        self._yes_no_ids = mx.array([self._tokenizer.encode(word)[0] for word in ("yes", "no")])

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        """Scores all candidates in one batch; None where no stage was opened."""
        judged = [(node, node.stage) for node in nodes if node.stage is not None]
        if not judged:
            return [None for _ in nodes]
        paths = [node.path for node, _ in judged]
        questions = [self._question(node, stage) for node, stage in judged]
        logits = ask_each(self._context, paths, questions)
        probabilities = mx.softmax(logits[:, self._yes_no_ids].astype(mx.float32), axis=-1)[:, 0]
        scores = {node.id: probabilities[index].item() for index, (node, _) in enumerate(judged)}
        return [scores.get(node.id) for node in nodes]  # type: ignore[misc]

    def _question(self, node: Node, stage: Stage) -> list[int]:
        question = self._tokenizer.next_turn(SELF_QUESTIONS[stage])
        # A candidate that wrote a whole answer has ended its turn already.
        return question[1:] if node.token_ids[-1] in self._tokenizer.stop_ids else question
