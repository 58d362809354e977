"""Runs a prompt's images and tokens through the model, once each."""

from __future__ import annotations

import time
from dataclasses import dataclass

import mlx.core as mx

from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.batch_decode import DecodeState
from llavacot_mlx.generate.context import DecodeContext
from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.kv_cache import ImageKV, ImageSpan, KVCache, SelfAttentionCache
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.model.quantized_kv import KV, joined
from llavacot_mlx.model.shared_prefix import KVPath, SharedPrefixCache
from llavacot_mlx.prompt.image_processor import Tiles
from llavacot_mlx.prompt.image_spans import Prompt, VisibleImages, visible_images
from llavacot_mlx.usage import Timings, Usage

_TOKENS_PER_PASS = 2048
"""Prompt tokens per forward pass, which bounds the memory of a long prompt."""


@dataclass(frozen=True)
class PrefilledPrompt(DecodeContext):
    """A prompt that was read, with everything that the next token depends on."""

    cache: KVCache
    logits: mx.array
    """Logits after the prompt's last token, (1, vocabulary)."""

    def state(self) -> DecodeState:
        """Returns the state that candidates start from; nothing else may be decoded after this."""
        branch = KVPath((self.cache.segment(),)).quantized(self.kv_budget.bits)
        return DecodeState(branch, self.logits)

    def single_path_cache(self) -> SelfAttentionCache:
        """Returns the cache that a single path continues in, quantized if the limits say so."""
        path = self.state().path
        if not path.segments[0].is_quantized:
            return self.cache
        self.kv_budget.reserve("prefixes", path.segments[0].nbytes)
        return SharedPrefixCache([path], self.kv_budget)


def prefill(
    model: Mllama,
    prompt: Prompt,
    usage: Usage,
    timings: Timings,
    kv_budget: KVBudget | None = None,
    tokens_per_pass: int = _TOKENS_PER_PASS,
) -> PrefilledPrompt:
    """Reads a prompt: encodes each image once, projects its K/V once, runs every token once.

    With `kv_budget.bits`, the images' K/V are quantized from the first token on, and a long
    prompt's after it was read. Raises UserError when the prompt exceeds the model's context, or its
    K/V exceed the budget.
    """
    kv_budget = kv_budget or KVBudget(usage)
    length, limit = len(prompt.token_ids), model.config.text.max_position_embeddings
    if length >= limit:
        raise UserError(
            f"the question is too long: {length} tokens, and this model reads at most {limit - 1}"
        )
    runs = visible_images(prompt.token_ids, model.config.image_token_id)
    started = time.perf_counter()
    images = PromptImages.encode(model, prompt.images, usage, kv_budget)
    timings.vision_s += time.perf_counter() - started

    started = time.perf_counter()
    cache = model.language_model.new_cache(kv_budget)
    # Positions before the first image need the absent tiles, which the first pass drops.
    first_pass = max(tokens_per_pass, runs[0].stop if runs and runs[0].first == runs[0].last else 0)
    start = 0
    while start < length:
        stop = min(start + (first_pass if start == 0 else tokens_per_pass), length)
        ids = mx.array([prompt.token_ids[start:stop]])
        hidden = model.hidden(ids, cache, images.spans(runs, start, stop))
        if stop < length:
            mx.eval(cache.state())
        else:
            logits = model.logits(hidden[:, -1])
            mx.eval(logits, cache.state())
        usage.prefilled_tokens += stop - start
        images.drop_absent()
        start = stop
    timings.prefill_s += time.perf_counter() - started
    return PrefilledPrompt(
        model=model,
        image_kv=images.seen_last(runs),
        usage=usage,
        kv_budget=kv_budget,
        cache=cache,
        logits=logits,
    )


class PromptImages:
    """The K/V of one prompt's images during its prefill."""

    def __init__(self, memory: ImageKV | None, with_absent: ImageKV | None) -> None:
        self._memory = memory
        self._with_absent = with_absent  # what positions before the first image attend to

    @classmethod
    def encode(
        cls,
        model: Mllama,
        images: tuple[Tiles, ...],
        usage: Usage,
        kv_budget: KVBudget,
    ) -> PromptImages:
        """Runs the vision tower once per image. Raises UserError beyond the budget."""
        if not images:
            return cls(None, None)
        per_tile = model.config.vision.tokens_per_tile
        bits = kv_budget.bits
        tokens = per_tile * sum(len(image.pixels) for image in images)
        kv_budget.reserve("images", model.language_model.memory_bytes(tokens, bits))
        real, absent, whole = [], [], []
        for image in images:
            features = model.image_features(mx.array(image.pixels), image.aspect_ratio_id)
            mx.eval(features)
            usage.images_encoded += 1
            tokens = len(image.pixels) * per_tile
            kept = model.language_model.project_image_kv(features[:, :tokens], (tokens,)).quantized(
                bits
            )
            mx.eval(kept.arrays)
            real.append(kept)
            if tokens < features.shape[1]:
                rest = model.language_model.project_image_kv(features[:, tokens:], ())
                absent.append(rest.quantized(bits))
                whole += [real[-1], absent[-1]]
            else:
                whole.append(real[-1])
        memory = _joined(real)
        return cls(memory, _joined(whole) if absent else memory)

    def spans(self, runs: list[VisibleImages], start: int, stop: int) -> list[ImageSpan]:
        """Returns the image spans of positions `start` to `stop`, counted from `start`."""
        spans = []
        for run in runs:
            first, last = max(run.start, start), min(run.stop, stop)
            if first >= last:
                continue
            if run.first == run.last:
                assert self._with_absent is not None
                span = ImageSpan(first - start, last - start, self._with_absent, after_image=False)
            else:
                assert self._memory is not None
                seen = self._memory.slice_images(run.first, run.last)
                span = ImageSpan(first - start, last - start, seen, after_image=True)
            spans.append(span)
        return spans

    def drop_absent(self) -> None:
        self._with_absent = None

    def seen_last(self, runs: list[VisibleImages]) -> ImageKV | None:
        """Returns the K/V that the prompt's last position, and every new one, attends to."""
        if self._memory is None:
            return None
        return self._memory.slice_images(runs[-1].first, runs[-1].last)


def _joined(memories: list[ImageKV]) -> ImageKV:
    if len(memories) == 1:
        return memories[0]
    return ImageKV(
        _concatenated([memory.keys for memory in memories]),
        _concatenated([memory.values for memory in memories]),
        tuple(length for memory in memories for length in memory.image_lengths),
    )


def _concatenated(by_memory: list[tuple[KV, ...]]) -> tuple[KV, ...]:
    """Joins the tokens layer by layer."""
    return tuple(joined(list(layer)) for layer in zip(*by_memory, strict=True))
