"""Decodes a single path: a prefilled prompt in, token ids out."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterator, Sequence

import mlx.core as mx

from llavacot_mlx.generate.decode_state import CandidateStart
from llavacot_mlx.generate.device import on_generation_stream
from llavacot_mlx.generate.ngram_draft import NgramDraft, PassCost
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
    draft: NgramDraft | None = None,
) -> Iterator[int | Waiting]:
    """Yields at most `max_tokens` next tokens, including the stop token.

    Drafted tokens are verified together in one forward pass, and those are kept that would have
    been sampled anyway: randomness is keyed by position, so the tokens are the same as without a
    draft. Where nothing is drafted, the next token is queued before one is yielded, so that
    displaying a token costs no time. `prompt` cannot be used again.

    With `prompt.decoder` the path is decoded together with those of other prompts, without drafts,
    and Waiting is yielded before each token; the tokens are the same.
    """
    if prompt.decoder is not None:
        yield from _decode_together(prompt, prompt.decoder, sampling, seed, stop_ids, max_tokens)
        return
    usage = prompt.usage
    path = _SinglePath(prompt, sampling, seed, PassCost() if draft is None else draft.cost)
    token = path.first_token()
    written = 0
    while True:
        ahead = None
        if written + 1 < max_tokens and (draft is None or not draft.next_tokens(1)):
            ahead = path.next_token(token)
        known = [path.read(token)]  # tokens that are certain, of which the last has no K/V yet
        while known:
            token_id, *known = known
            usage.decoded_tokens += 1
            written += 1
            yield token_id
            if token_id in stop_ids or written == max_tokens:
                return
            if written % _CLEAR_CACHE_INTERVAL == 0:
                mx.clear_cache()
            if draft is not None:
                draft.push(token_id)
                if not known and ahead is None:
                    # A drafted token never makes the cache grow, nor exceeds the limit of tokens.
                    drafted = draft.next_tokens(min(path.room, max_tokens - written - 1))
                    usage.drafted_tokens += len(drafted)
                    if drafted:
                        known = path.verify(token_id, drafted)
                        usage.accepted_tokens += len(known) - 1
        token = path.next_token(mx.array([token_id])) if ahead is None else ahead


class _SinglePath:
    """Runs the forward passes of one path."""

    def __init__(
        self, prompt: PrefilledPrompt, sampling: Sampling, seed: int, cost: PassCost
    ) -> None:
        self._prompt, self._sampling, self._seed, self._cost = prompt, sampling, seed, cost
        with on_generation_stream():
            self._cache = prompt.single_path_cache()
        self._position = 0  # of the next token to sample, from the answer's first on
        # When each token was queued that nobody has read yet; None for one of the prompt's pass.
        self._queued: deque[float | None] = deque()
        self._ready = 0.0  # when the last pass ended that somebody waited for

    @property
    def room(self) -> int:
        """Number of tokens that can be drafted without growing the cache's buffers."""
        return max(0, self._cache.room - 1)

    def first_token(self) -> mx.array:
        """Samples the token after the prompt: (1,)."""
        with on_generation_stream():
            token = self._sample(self._prompt.logits)
            mx.async_eval(token)
        self._queued.append(None)
        return token

    def next_token(self, token: mx.array) -> mx.array:
        """Queues the pass that reads `token`, (1,), and samples the next one."""
        self._queued.append(time.perf_counter())
        with on_generation_stream():
            following = self._run(token)
            mx.async_eval(following)
        return following

    def read(self, token: mx.array) -> int:
        """Waits for a token, and measures the pass that sampled it."""
        token_id = int(token.item())  # type: ignore[arg-type]
        ready = time.perf_counter()
        queued = self._queued.popleft()
        if queued is not None:
            # A pass that was queued early began when the one before it ended.
            self._cost.measure(1, ready - max(queued, self._ready))
        self._ready = ready
        return token_id

    def verify(self, token_id: int, drafted: Sequence[int]) -> list[int]:
        """Reads a token and a draft of what follows; returns what follows indeed.

        That is the draft as far as it is right, and one more token.
        """
        queued = time.perf_counter()
        with on_generation_stream():
            sampled: list[int] = self._run(mx.array([token_id, *drafted])).tolist()  # type: ignore[assignment]
        right = 0
        while right < len(drafted) and drafted[right] == sampled[right]:
            right += 1
        wrong = len(drafted) - right
        self._cache.rewind(wrong)
        self._position -= wrong
        self._ready = time.perf_counter()
        self._cost.measure(len(sampled), self._ready - queued)
        return sampled[: right + 1]

    def _run(self, tokens: mx.array) -> mx.array:
        """Reads tokens in one forward pass, and samples what follows each of them: (tokens,)."""
        prompt, count = self._prompt, tokens.size
        prompt.usage.forward_passes += 1
        hidden = prompt.model.hidden(tokens[None], self._cache, span_of_all(prompt.image_kv, count))
        return self._sample(prompt.model.logits(hidden[0]))

    def _sample(self, logits: mx.array) -> mx.array:
        """Samples a token for each row of consecutive positions' logits."""
        positions = range(self._position, self._position + logits.shape[0])
        self._position = positions.stop
        keys = mx.concatenate([token_keys(self._seed, ["0"], position) for position in positions])
        return sample(logits, self._sampling, keys)


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
