"""Runs a prompt's images and tokens through the model, once each."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.context import DecodeContext
from llavacot_mlx.generate.decode_state import DecodeState
from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.kv_cache import ImageKV, ImageSpan, KVCache, RewindableCache
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.model.quantized_kv import KV, concatenate_tokens
from llavacot_mlx.model.shared_prefix import KVPath, SharedPrefixCache
from llavacot_mlx.prompt.image_processor import Tiles
from llavacot_mlx.prompt.image_spans import Prompt, VisibleImages, visible_images
from llavacot_mlx.usage import Timings, Usage

if TYPE_CHECKING:
    from llavacot_mlx.generate.shared_decoder import SharedDecoder

TOKENS_PER_PASS = 2048
"""Prompt tokens per forward pass, which bounds the memory of a long prompt."""


@dataclass(frozen=True)
class PrefilledPrompt(DecodeContext):
    """A prefilled prompt: everything that the next token depends on."""

    cache: KVCache
    logits: mx.array
    """Logits after the prompt's last token, (1, vocabulary)."""

    def state(self) -> DecodeState:
        """Returns the state that candidates start from; nothing else may be decoded after this."""
        path = KVPath((self.cache.segment(),)).quantized(self.kv_budget.bits)
        return DecodeState(path, self.logits)

    def single_path_cache(self) -> RewindableCache:
        """Returns the cache in which a single path continues, quantized if the budget says so."""
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
    tokens_per_pass: int = TOKENS_PER_PASS,
    decoder: SharedDecoder | None = None,
) -> PrefilledPrompt:
    """Reads a prompt: encodes each image once, projects its K/V once, runs every token once.

    With `kv_budget.bits`, the images' K/V are quantized from the first token on, and a long
    prompt's after it was read. What follows is decoded by `decoder` if there is one. Raises
    UserError when the prompt exceeds the model's context, or its K/V exceed the budget.
    """
    kv_budget = kv_budget or KVBudget(usage)
    check_length(model, prompt)
    length = len(prompt.token_ids)
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
        image_kv=images.visible_to_last(runs),
        usage=usage,
        kv_budget=kv_budget,
        cache=cache,
        logits=logits,
        decoder=decoder,
    )


def check_length(model: Mllama, prompt: Prompt) -> None:
    """Raises UserError when a prompt exceeds the model's context."""
    length, limit = len(prompt.token_ids), model.config.text.max_position_embeddings
    if length >= limit:
        raise UserError(
            f"the question is too long: {length} tokens, and this model reads at most {limit - 1}"
        )


class PromptImages:
    """The K/V of one prompt's images during its prefill."""

    def __init__(self, image_kv: ImageKV | None, with_absent: ImageKV | None) -> None:
        self._image_kv = image_kv
        self._with_absent = with_absent  # for positions before the first image

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
        kv_budget.reserve("images", model.language_model.image_kv_bytes(tokens, bits))
        real: list[ImageKV] = []
        with_absent: list[ImageKV] = []
        for image in images:
            features = model.image_features(mx.array(image.pixels), image.aspect_ratio_id)
            mx.eval(features)
            usage.images_encoded += 1
            tokens = len(image.pixels) * per_tile
            projected = model.language_model.project_image_kv(features[:, :tokens], (tokens,))
            real.append(projected.quantized(bits))
            mx.eval(real[-1].arrays)
            with_absent.append(real[-1])
            if tokens < features.shape[1]:
                absent = model.language_model.project_image_kv(features[:, tokens:], ())
                with_absent.append(absent.quantized(bits))
        image_kv = _concatenate_images(real)
        has_absent = len(with_absent) > len(real)
        return cls(image_kv, _concatenate_images(with_absent) if has_absent else image_kv)

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
                assert self._image_kv is not None
                seen = self._image_kv.slice_images(run.first, run.last)
                span = ImageSpan(first - start, last - start, seen, after_image=True)
            spans.append(span)
        return spans

    def drop_absent(self) -> None:
        """Frees the K/V of absent tiles, which only positions before the first image need."""
        self._with_absent = None

    def visible_to_last(self, runs: list[VisibleImages]) -> ImageKV | None:
        """Returns the K/V that the prompt's last position, and every new one, attends to."""
        if self._image_kv is None:
            return None
        return self._image_kv.slice_images(runs[-1].first, runs[-1].last)


def _concatenate_images(parts: list[ImageKV]) -> ImageKV:
    """Joins the K/V of several images to one, in the order of the prompt."""
    if len(parts) == 1:
        return parts[0]
    return ImageKV(
        _concatenate_layers([part.keys for part in parts]),
        _concatenate_layers([part.values for part in parts]),
        tuple(length for part in parts for length in part.image_lengths),
    )


def _concatenate_layers(by_image: list[tuple[KV, ...]]) -> tuple[KV, ...]:
    """Concatenates the tokens of all images, layer by layer."""
    return tuple(concatenate_tokens(list(layer)) for layer in zip(*by_image, strict=True))
