"""Asks the model several questions in one batch, each on top of its own path."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import mlx.core as mx

from llavacot_mlx.generate.context import DecodeContext
from llavacot_mlx.generate.device import on_generation_stream
from llavacot_mlx.model.kv_cache import span_of_all
from llavacot_mlx.model.shared_prefix import KVPath, SharedPrefixCache

_TOKENS_PER_PASS = 2048
"""Maximum number of tokens in one forward pass, which bounds its memory."""


def ask_each(
    context: DecodeContext,
    paths: Sequence[KVPath],
    questions: Sequence[Sequence[int]],
    tokens_per_pass: int = _TOKENS_PER_PASS,
) -> mx.array:
    """Returns the logits after each question, read on top of its path: (questions, vocabulary).

    Each forward pass takes as many questions as fit into `tokens_per_pass`, and at least one; the
    paths are not changed. There must be at least one question, and none may be empty.
    """
    model = context.model
    parts = []
    for group in _group_by_tokens(questions, tokens_per_pass):
        batch = questions[group]
        longest = max(map(len, batch))
        # A shorter question is padded at its end, where no real token attends to it.
        ids = [[*question, *[0] * (longest - len(question))] for question in batch]
        last = [len(question) - 1 for question in batch]
        with on_generation_stream():
            cache = SharedPrefixCache(paths[group])
            hidden = model.hidden(mx.array(ids), cache, span_of_all(context.image_kv, longest))
            parts.append(model.logits(hidden[mx.arange(len(batch)), mx.array(last)]))
            mx.eval(parts[-1])
        context.usage.judge_tokens += sum(map(len, batch))
    return mx.concatenate(parts)


def _group_by_tokens(questions: Sequence[Sequence[int]], tokens_per_pass: int) -> Iterator[slice]:
    """Groups consecutive questions into forward passes, with padding counted as tokens."""
    start, longest = 0, 0
    for index, question in enumerate(questions):
        longest = max(longest, len(question))
        if index > start and (index + 1 - start) * longest > tokens_per_pass:
            yield slice(start, index)
            start, longest = index, len(question)
    yield slice(start, len(questions))
