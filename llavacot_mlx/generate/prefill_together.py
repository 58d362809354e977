"""Reads several prompts in one forward pass, which a short prompt alone does not fill."""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import mlx.core as mx

from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.prefill import (
    TOKENS_PER_PASS,
    PrefilledPrompt,
    PromptImages,
    check_length,
    prefill,
)
from llavacot_mlx.model.images_by_row import ImagesByRow
from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.kv_cache import ImageKV, ImageSpan
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_spans import Prompt, VisibleImages, visible_images
from llavacot_mlx.usage import Timings, Usage

if TYPE_CHECKING:
    from llavacot_mlx.generate.shared_decoder import SharedDecoder


@dataclass(eq=False)
class PrefillJob:
    """A prompt that waits to be read."""

    prompt: Prompt
    usage: Usage
    timings: Timings
    kv_budget: KVBudget
    result: PrefilledPrompt | UserError | None = None
    is_wanted: bool = True
    """False once nobody waits for it any more."""


def prefill_together(model: Mllama, jobs: Sequence[PrefillJob], decoder: SharedDecoder) -> None:
    """Reads all prompts, and sets each one's result; what follows is decoded by `decoder`.

    Prompts are read in one pass where their images stand at the same positions; shorter ones are
    padded at their end, where no token attends to it. A prompt's seconds are its share of a pass.
    """
    alike: dict[object, list[PrefillJob]] = defaultdict(list)
    for job in jobs:
        runs = visible_images(job.prompt.token_ids, model.config.image_token_id)
        alike[tuple((run.start, run.first, run.last) for run in runs)].append(job)
    for together in alike.values():
        # Sorted by length, little is padded.
        together.sort(key=lambda job: len(job.prompt.token_ids))
        for group in _groups(together):
            if len(group) == 1:
                _prefill_alone(model, group[0], decoder)
            else:
                _prefill_group(model, group, decoder)


def _groups(jobs: list[PrefillJob]) -> list[list[PrefillJob]]:
    """Divides jobs, shortest first, into passes of a bounded number of tokens."""
    groups: list[list[PrefillJob]] = []
    for job in jobs:
        if groups and (len(groups[-1]) + 1) * len(job.prompt.token_ids) <= TOKENS_PER_PASS:
            groups[-1].append(job)
        else:
            groups.append([job])
    return groups


def _prefill_alone(model: Mllama, job: PrefillJob, decoder: SharedDecoder) -> None:
    try:
        job.result = prefill(
            model, job.prompt, job.usage, job.timings, job.kv_budget, decoder=decoder
        )
    except UserError as error:
        job.result = error


@dataclass(frozen=True)
class _Encoded:
    """A prompt whose images were encoded."""

    job: PrefillJob
    images: PromptImages
    runs: list[VisibleImages]

    @property
    def length(self) -> int:
        return len(self.job.prompt.token_ids)


def _prefill_group(model: Mllama, jobs: Sequence[PrefillJob], decoder: SharedDecoder) -> None:
    """Reads prompts whose images stand at the same positions."""
    encoded = []
    for job in jobs:
        try:
            encoded.append(_encode(model, job))
        except UserError as error:
            job.result = error
    if not encoded:
        return
    started = time.perf_counter()
    lengths = [each.length for each in encoded]
    longest = max(lengths)
    ids = [[*each.job.prompt.token_ids, *[0] * (longest - each.length)] for each in encoded]
    cache = model.language_model.new_cache()
    hidden = model.hidden(mx.array(ids), cache, _joint_spans(encoded, longest))
    last = mx.array([length - 1 for length in lengths])
    logits = model.logits(hidden[mx.arange(len(encoded)), last])
    caches = cache.rows(lengths)
    mx.eval(logits, [own.state() for own in caches])
    seconds = (time.perf_counter() - started) / len(encoded)
    for row, (each, own) in enumerate(zip(encoded, caches, strict=True)):
        job = each.job
        job.timings.prefill_s += seconds
        job.usage.prefilled_tokens += each.length
        job.result = PrefilledPrompt(
            model=model,
            image_kv=each.images.visible_to_last(each.runs),
            usage=job.usage,
            kv_budget=job.kv_budget,
            cache=own,
            logits=logits[row : row + 1],
            decoder=decoder,
        )


def _encode(model: Mllama, job: PrefillJob) -> _Encoded:
    """Encodes a prompt's images. Raises UserError for too long a prompt or beyond the budget.

    One image fills the products of the vision tower, so images are not encoded together.
    """
    check_length(model, job.prompt)
    started = time.perf_counter()
    images = PromptImages.encode(model, job.prompt.images, job.usage, job.kv_budget)
    job.timings.vision_s += time.perf_counter() - started
    length = len(job.prompt.token_ids)
    job.kv_budget.reserve("prefixes", model.language_model.text_kv_bytes(length))
    return _Encoded(job, images, visible_images(job.prompt.token_ids, model.config.image_token_id))


def _joint_spans(encoded: Sequence[_Encoded], longest: int) -> list[ImageSpan]:
    """Returns spans over the positions of all prompts, in which each row has its own images."""
    by_prompt = [each.images.spans(each.runs, 0, each.length) for each in encoded]
    spans = []
    for alike in zip(*by_prompt, strict=True):
        first = alike[0]
        is_last = first is by_prompt[0][-1]
        images = [span.image_kv for span in alike]
        spans.append(
            ImageSpan(
                first.start,
                longest if is_last else first.stop,  # padding attends to what stands before it
                ImagesByRow([kv for kv in images if isinstance(kv, ImageKV)]),
                first.after_image,
            )
        )
    return spans
