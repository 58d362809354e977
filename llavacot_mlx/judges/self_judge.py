"""The model asked whether the stage that it just wrote is right."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from llavacot_mlx.cache import VisionMemory
from llavacot_mlx.candidates import ask
from llavacot_mlx.judges.questions import IS_IT_RIGHT
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.search import Node
from llavacot_mlx.stages import Stage
from llavacot_mlx.tokenizer import Tokenizer
from llavacot_mlx.trace import Usage


class SelfJudge:
    """The probability of "yes" against "no", on top of the path and the same image K/V."""

    def __init__(
        self, model: Mllama, tokenizer: Tokenizer, memory: VisionMemory | None, usage: Usage
    ) -> None:
        self._model, self._tokenizer, self._memory = model, tokenizer, memory
        self._usage = usage
        self._verdicts = mx.array([tokenizer.encode(word)[0] for word in ("yes", "no")])

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        """One forward pass for all candidates of a stage; None where no stage was opened."""
        scores: dict[int, float] = {}
        for stage in Stage:
            asked = [node for node in nodes if node.stage is stage]
            if asked:
                question = self._tokenizer.next_turn(IS_IT_RIGHT[stage])
                branches = [node.branch for node in asked]
                logits = ask(self._model, self._memory, branches, question, self._usage)
                chances = mx.softmax(logits[:, self._verdicts].astype(mx.float32), axis=-1)
                for row, node in enumerate(asked):
                    scores[node.id] = chances[row, 0].item()  # type: ignore[assignment]
        return [scores.get(node.id) for node in nodes]
