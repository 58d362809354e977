"""Asks the model several questions in one batch, each on top of its own path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx

from llavacot_mlx.generate.context import DecodeContext
from llavacot_mlx.generate.device import on_generation_stream
from llavacot_mlx.model.kv_cache import span_of_all
from llavacot_mlx.model.shared_prefix import KVPath, SharedPrefixCache

MOST_TOKENS = 2048
"""Tokens in one forward pass, which bounds its memory; a single longer question is allowed."""


def ask_each(
    context: DecodeContext, paths: Sequence[KVPath], questions: Sequence[Sequence[int]]
) -> mx.array:
    """Returns the logits after each question, read on top of its path: (questions, vocabulary).

    Each forward pass takes as many questions as fit; the paths are not changed. There must be at
    least one question, and none may be empty.
    """
    model = context.model
    parts = []
    for rows in _together(questions):
        longest = max(len(questions[row]) for row in rows)
        # A shorter question is padded at its end, where no real token attends to it.
        ids = [[*questions[row], *[0] * (longest - len(questions[row]))] for row in rows]
        last = [len(questions[row]) - 1 for row in rows]
        with on_generation_stream():
            batch = SharedPrefixCache([paths[row] for row in rows])
            hidden = model.hidden(mx.array(ids), batch, span_of_all(context.image_kv, longest))
            parts.append(model.logits(hidden[mx.arange(len(rows)), mx.array(last)]))
            mx.eval(parts[-1])
        context.usage.judge_tokens += sum(len(questions[row]) for row in rows)
    return mx.concatenate(parts)


def _together(questions: Sequence[Sequence[int]]) -> Iterator[range]:
    """Groups the questions into forward passes, in their order."""
    start, longest = 0, 0
    for row, question in enumerate(questions):
        longest = max(longest, len(question))
        if row > start and (row + 1 - start) * longest > MOST_TOKENS:
            yield range(start, row)
            start, longest = row, len(question)
    yield range(start, len(questions))
