"""Decodes a single path: a prefilled prompt in, token ids out."""

from __future__ import annotations

from collections.abc import Iterator

import mlx.core as mx

from llavacot_mlx.generate.decode_state import CandidateStart
from llavacot_mlx.generate.device import on_generation_stream
from llavacot_mlx.generate.prefill import PrefilledPrompt
from llavacot_mlx.generate.sampling import sample, token_keys
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.generate.shared_decoder import SharedDecoder
from llavacot_mlx.generate.waiting import Waiting
from llavacot_mlx.model.kv_cache import span_of_all

_CLEAR_CACHE_INTERVAL = 256
"""Number of decoded tokens after which MLX's buffer cache is cleared."""


def decode(
    prompt: PrefilledPrompt,
    sampling: Sampling,
    seed: int,
    stop_ids: frozenset[int],
    max_tokens: int,
) -> Iterator[int | Waiting]:
    """Yields at most `max_tokens` next tokens, including the stop token.

    The next token is queued before one is yielded, so that displaying a token costs no time.
    `prompt` cannot be used again. With `prompt.decoder` the path is decoded together with those of
    other prompts, and Waiting is yielded before each token; the tokens are the same.
    """
    if prompt.decoder is not None:
        yield from _decode_together(prompt, prompt.decoder, sampling, seed, stop_ids, max_tokens)
        return
    model = prompt.model
    with on_generation_stream():
        cache = prompt.single_path_cache()
        token = sample(prompt.logits, sampling, token_keys(seed, ["0"], 0))
        mx.async_eval(token)
    for position in range(max_tokens):
        next_token = None
        if position + 1 < max_tokens:
            with on_generation_stream():
                hidden = model.hidden(token[:, None], cache, span_of_all(prompt.image_kv, 1))
                logits = model.logits(hidden[:, -1])
                next_token = sample(logits, sampling, token_keys(seed, ["0"], position + 1))
                mx.async_eval(next_token)
        token_id = int(token.item())  # type: ignore[arg-type]
        prompt.usage.decoded_tokens += 1
        yield token_id
        if token_id in stop_ids or next_token is None:
            return
        token = next_token
        if (position + 1) % _CLEAR_CACHE_INTERVAL == 0:
            mx.clear_cache()


def _decode_together(
    prompt: PrefilledPrompt,
    decoder: SharedDecoder,
    sampling: Sampling,
    seed: int,
    stop_ids: frozenset[int],
    max_tokens: int,
) -> Iterator[int | Waiting]:
    start = CandidateStart(prompt.state(), "0", max_tokens)
    prompt.cache.clear()
    group = decoder.join(prompt, [start], sampling, seed, continues=False)
    del start  # the decoder copies its K/V and then frees them
    try:
        for _ in range(max_tokens):
            yield from group.wait()
            (sampled,) = group.take()
            yield sampled.token_id
            if sampled.token_id in stop_ids:
                return
    finally:
        decoder.leave(group)
