"""Prefill and decoding: token ids in, token ids out."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import mlx.core as mx

from .branches import Branch, BranchBatch
from .cache import SelfAttentionCache, Sight, TextCache, VisionMemory, sight_of_all
from .candidates import Ready
from .device import on_generation_stream
from .errors import UserError
from .kv_meter import KVMeter
from .model.mllama import Mllama
from .model.quantized_kv import KV, joined
from .pictures import Tiles
from .prompt import OpenImages, Prompt, open_images
from .sampling import sample, token_keys
from .sampling_params import Sampling
from .usage import Timings, Usage

_PREFILL_ROWS = 2048
"""Rows of a prompt in one forward pass, which bounds the memory of a long one."""
_CLEAR_EVERY = 256
"""Decoded tokens after which MLX's buffer cache is emptied."""


@dataclass
class Context:
    """A prompt that was read: everything that the next token depends on."""

    cache: TextCache
    memory: VisionMemory | None
    """K/V of the images that the next token sees."""
    logits: mx.array
    """(1, vocabulary), of the last token read."""
    kv_bits: int | None = None
    """Bits in which K/V of the images are kept, and of a long prompt; None for all bits."""
    meter: KVMeter | None = None

    def ready(self) -> Ready:
        """The prompt as what candidates begin from; nothing else may be decoded from here."""
        return Ready(Branch((self.cache.segment(),)).in_bits(self.kv_bits), self.logits)

    def growing(self) -> SelfAttentionCache:
        """The text's K/V as the cache that a single path goes on in."""
        branch = self.ready().branch
        if not branch.segments[0].quantized:
            return self.cache
        if self.meter is not None:
            self.meter.hold("prefixes", branch.segments[0].nbytes)
        return BranchBatch([branch], self.meter)


def prefill(
    model: Mllama,
    prompt: Prompt,
    usage: Usage,
    timings: Timings,
    kv_bits: int | None = None,
    meter: KVMeter | None = None,
) -> Context:
    """Reads a prompt: encodes each image once, projects its K/V once, runs every token once.

    With `kv_bits`, the images' K/V are kept in so many bits from the first token on, and a long
    prompt's once it was read. Raises UserError when the prompt does not fit the model's context.
    """
    length, limit = len(prompt.token_ids), model.config.text.max_position_embeddings
    if length >= limit:
        raise UserError(
            f"the question is too long: {length} tokens, and this model reads at most {limit - 1}"
        )
    runs = open_images(prompt.token_ids, model.config.image_token_id)
    started = time.perf_counter()
    images = _Images.encode(model, prompt.pictures, usage, kv_bits, meter)
    timings.vision_s += time.perf_counter() - started

    started = time.perf_counter()
    cache = model.language_model.new_cache(meter)
    # Rows before the first image need the absent tiles, which are dropped after the first pass.
    first_pass = max(_PREFILL_ROWS, runs[0].stop if runs and runs[0].first == runs[0].last else 0)
    start = 0
    while start < length:
        stop = min(start + (first_pass if start == 0 else _PREFILL_ROWS), length)
        ids = mx.array([prompt.token_ids[start:stop]])
        hidden = model.hidden(ids, cache, images.sights(runs, start, stop))
        if stop < length:
            mx.eval(cache.state())
        else:
            logits = model.logits(hidden[:, -1])
            mx.eval(logits, cache.state())
        usage.prefilled_tokens += stop - start
        images.drop_absent()
        start = stop
    timings.prefill_s += time.perf_counter() - started
    return Context(cache, images.seen_last(runs), logits, kv_bits, meter)


def decode(
    model: Mllama,
    context: Context,
    sampling: Sampling,
    seed: int,
    stop_ids: frozenset[int],
    max_tokens: int,
    usage: Usage,
) -> Iterator[int]:
    """Yields the next tokens, a stop token included, at most `max_tokens`.

    The computation of the following token is queued before one is handed out, so that showing it
    costs no time. `context` is used up.
    """
    with on_generation_stream():
        cache = context.growing()
        token = sample(context.logits, sampling, token_keys(seed, ["0"], 0))
        mx.async_eval(token)
    for position in range(max_tokens):
        following = None
        if position + 1 < max_tokens:
            with on_generation_stream():
                hidden = model.hidden(token[:, None], cache, sight_of_all(context.memory, 1))
                logits = model.logits(hidden[:, -1])
                following = sample(logits, sampling, token_keys(seed, ["0"], position + 1))
                mx.async_eval(following)
        token_id = int(token.item())  # type: ignore[arg-type]
        usage.decoded_tokens += 1
        yield token_id
        if token_id in stop_ids or following is None:
            return
        token = following
        if (position + 1) % _CLEAR_EVERY == 0:
            mx.clear_cache()


class _Images:
    """The images of one prompt during its prefill."""

    def __init__(self, memory: VisionMemory | None, with_absent: VisionMemory | None) -> None:
        self._memory = memory
        self._with_absent = with_absent  # what a row before the first image attends to

    @classmethod
    def encode(
        cls,
        model: Mllama,
        pictures: tuple[Tiles, ...],
        usage: Usage,
        kv_bits: int | None,
        meter: KVMeter | None,
    ) -> _Images:
        if not pictures:
            return cls(None, None)
        per_tile = model.config.vision.tokens_per_tile
        if meter is not None:
            tokens = per_tile * sum(len(picture.pixels) for picture in pictures)
            meter.hold("images", model.language_model.memory_bytes(tokens, kv_bits))
        real, absent, whole = [], [], []
        for picture in pictures:
            features = model.image_features(mx.array(picture.pixels), picture.aspect_ratio_id)
            mx.eval(features)
            usage.images_encoded += 1
            tokens = len(picture.pixels) * per_tile
            kept = model.language_model.remember(features[:, :tokens], (tokens,)).in_bits(kv_bits)
            mx.eval(kept.arrays)
            real.append(kept)
            if tokens < features.shape[1]:
                rest = model.language_model.remember(features[:, tokens:], ())
                absent.append(rest.in_bits(kv_bits))
                whole += [real[-1], absent[-1]]
            else:
                whole.append(real[-1])
        memory = _joined(real)
        return cls(memory, _joined(whole) if absent else memory)

    def sights(self, runs: list[OpenImages], start: int, stop: int) -> list[Sight]:
        """What rows `start` to `stop` of the prompt see, counted from `start`."""
        sights = []
        for run in runs:
            first, last = max(run.start, start), min(run.stop, stop)
            if first >= last:
                continue
            if run.first == run.last:
                assert self._with_absent is not None
                sight = Sight(first - start, last - start, self._with_absent, open=False)
            else:
                assert self._memory is not None
                seen = self._memory.of_images(run.first, run.last)
                sight = Sight(first - start, last - start, seen, open=True)
            sights.append(sight)
        return sights

    def drop_absent(self) -> None:
        self._with_absent = None

    def seen_last(self, runs: list[OpenImages]) -> VisionMemory | None:
        """What the last row of the prompt sees, and with it every row to come."""
        if self._memory is None:
            return None
        return self._memory.of_images(runs[-1].first, runs[-1].last)


def _joined(memories: list[VisionMemory]) -> VisionMemory:
    if len(memories) == 1:
        return memories[0]
    return VisionMemory(
        _concatenated([memory.keys for memory in memories]),
        _concatenated([memory.values for memory in memories]),
        tuple(length for memory in memories for length in memory.image_lengths),
    )


def _concatenated(by_memory: list[tuple[KV, ...]]) -> tuple[KV, ...]:
    """Joins the tokens layer by layer."""
    return tuple(joined(list(layer)) for layer in zip(*by_memory, strict=True))
