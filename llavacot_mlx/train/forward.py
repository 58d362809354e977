"""Loss and gradients of a batch.

A row's logits are those that inference computes for it alone: causal, whatever stands beside it,
and blind to padding, which is on the right. Three things keep memory low: logits exist only where
a token is learned, and there some rows at a time; attention keeps no scores; and with `checkpoint`
a layer keeps its input alone and is computed a second time on the way back (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from llavacot_mlx.model.lora import drop_by
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.model.rope import Rotation
from llavacot_mlx.model.text import CrossAttentionLayer
from llavacot_mlx.model.vision import VisionLayer

from .attention import attend
from .head import Learned, Sums, learn, score
from .inputs import Inputs, View

Gradients = dict[str, Any]
"""A tree with an array for each trainable parameter."""

_LEARNED_AT_ONCE = 128
"""Tokens whose logits exist at once: 66 MB in float32 with a vocabulary of 128256."""

_Run = Callable[..., mx.array]
"""Has a layer do some work: the layer, a key for its dropout, the work, and what it is done on."""


def sums(model: Mllama, inputs: Inputs) -> Sums:
    """Loss and hits of a batch, without gradients and without dropout. It is evaluated."""
    rows = _learned_rows(model, inputs, _run, None)
    total = Sums.zero()
    for block in _blocks(inputs):
        total = total + score(
            model.language_model.lm_head, rows[block], inputs.targets[block], inputs.kinds[block]
        )
        mx.eval(total.arrays)
    return total


def loss_and_gradients(
    model: Mllama, inputs: Inputs, checkpoint: bool = False, key: mx.array | None = None
) -> tuple[Sums, Gradients]:
    """Loss and hits of a batch, and gradients of the loss's sum over its learned tokens.

    Dropout follows from `key`; without one there is none. Everything is evaluated.
    """
    trainable = model.trainable_parameters()
    if not inputs.targets.size:
        return Sums.zero(), tree_map(mx.zeros_like, trainable)
    head = model.language_model.lm_head
    learned: list[Learned] = []

    def surrogate(parameters: Gradients) -> mx.array:
        """Has the loss's gradient up to the head, and no meaning beside that."""
        model.update(parameters)
        rows = _learned_rows(model, inputs, _run_twice if checkpoint else _run, key)
        fixed = mx.stop_gradient(rows)
        for block in _blocks(inputs):
            learned.append(learn(head, fixed[block], inputs.targets[block], inputs.kinds[block]))
        slopes = mx.concatenate([block.slopes for block in learned])
        return mx.sum(rows * mx.stop_gradient(slopes))

    gradients = mx.grad(surrogate)(trainable)
    model.update(trainable)  # instead of what was traced
    drop_by(model, None)

    # Nothing was computed so far. MLX allocates far ahead of what it computes, so what must not be
    # in memory together is evaluated apart: each block of logits, then layers from the last back.
    # (A step compiled as a whole could not be; and on a Linux CPU each fused kernel costs 2.5 s of
    # the C++ compiler, for nothing: products and powers of two take the time, and stay as long.)
    total, of_head = Sums.zero(), None
    for block in learned:
        total = total + block.sums
        of_head = block.of_head if of_head is None else tree_map(mx.add, of_head, block.of_head)
        mx.eval(block.slopes, total.arrays, of_head)
    if of_head:
        gradients["language_model"]["lm_head"] = of_head
    for layer in reversed(gradients["language_model"]["model"].get("layers", [])):
        mx.eval(layer)
    mx.eval(gradients)
    return total, gradients


def _blocks(inputs: Inputs) -> list[slice]:
    count = inputs.targets.size
    return [
        slice(start, min(start + _LEARNED_AT_ONCE, count))
        for start in range(0, count, _LEARNED_AT_ONCE)
    ]


def _learned_rows(model: Mllama, inputs: Inputs, run: _Run, key: mx.array | None) -> mx.array:
    """The normed last hidden states before the learned tokens, (learned, hidden)."""
    text = model.language_model.model
    keys = _keys(key)
    features = [
        _features(model, image, view, run, keys)
        for image, view in zip(inputs.images, inputs.views, strict=True)
    ]
    rows = text.embed_tokens(inputs.ids)  # (rows, tokens, hidden)
    pictures, tokens = len(features), rows.shape[1]
    rotation = text.rotation(0, tokens)
    for layer in text.layers:
        if not isinstance(layer, CrossAttentionLayer):
            work = partial(_self_attention, layer, rotation)
            rows = run(layer, next(keys), work, rows)
        elif features:
            work = partial(_cross_attention, layer, inputs.views)
            seeing = run(layer, next(keys), work, rows[:pictures], *features)
            # As in inference, these layers are skipped where there is no picture.
            rows = mx.concatenate([seeing, rows[pictures:]]) if pictures < len(rows) else seeing
    return text.norm(rows.reshape(-1, rows.shape[-1])[inputs.places])


def _features(
    model: Mllama, image: mx.array, view: View, run: _Run, keys: Iterator[mx.array | None]
) -> mx.array:
    """(1, all tiles' tokens, hidden)."""
    if not view.aspect_ratio_id:
        return image

    def run_layer(layer: VisionLayer, rows: mx.array, real: int) -> mx.array:
        work = partial(_vision, layer, real)
        return run(layer, next(keys), work, rows)

    drop_by(model.multi_modal_projector, next(keys))
    return model.image_features(image, view.aspect_ratio_id, run_layer)


def _vision(layer: VisionLayer, real: int, rows: mx.array) -> mx.array:
    return layer(rows, real, partial(attend, causal=False))


def _self_attention(layer: nn.Module, rotation: Rotation, rows: mx.array) -> mx.array:
    return layer(rows, rotation, _Causal(), 0)


class _Causal:
    """A cache that keeps nothing: every token is in the pass that it is seen in."""

    offset = 0

    def attend(self, layer: int, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        return attend(queries, keys, values, causal=True)

    def advance(self, tokens: int) -> None:
        pass


def _cross_attention(
    layer: CrossAttentionLayer, views: Sequence[View], rows: mx.array, *features: mx.array
) -> mx.array:
    """Rows with a picture each, (pictures, tokens, hidden)."""
    memories = [layer.cross_attn.project(picture) for picture in features]

    def look(queries: mx.array) -> mx.array:  # (pictures, heads, tokens, head_dim)
        return mx.concatenate(
            [
                _look(queries[index : index + 1], *memory, view)
                for index, (memory, view) in enumerate(zip(memories, views, strict=True))
            ]
        )

    closed = mx.array([view.closed for view in views])[:, None]
    open_rows = mx.arange(rows.shape[1]) >= closed  # (pictures, tokens)
    return layer(rows, look, open_rows[..., None])


def _look(queries: mx.array, keys: mx.array, values: mx.array, view: View) -> mx.array:
    """One row's queries: closed ones see all tiles, the others the real ones."""
    closed, seen = view.closed, view.seen
    if closed == 0 or seen == keys.shape[2]:
        return attend(queries, keys[:, :, :seen], values[:, :, :seen], causal=False)
    of_closed = attend(queries[:, :, :closed], keys, values, causal=False)
    of_open = attend(queries[:, :, closed:], keys[:, :, :seen], values[:, :, :seen], causal=False)
    return mx.concatenate([of_closed, of_open], axis=2)


def _run(
    layer: nn.Module, key: mx.array | None, work: Callable[..., mx.array], *arrays: mx.array
) -> mx.array:
    drop_by(layer, key)
    return work(*arrays)


def _run_twice(
    layer: nn.Module, key: mx.array | None, work: Callable[..., mx.array], *arrays: mx.array
) -> mx.array:
    """Keeps nothing for the way back but what goes in."""

    def again(parameters: Gradients, *arrays: mx.array) -> mx.array:
        layer.update(parameters)
        return _run(layer, key, work, *arrays)

    return mx.checkpoint(again)(layer.trainable_parameters(), *arrays)


def _keys(key: mx.array | None) -> Iterator[mx.array | None]:
    """One key after the other, each of which follows from the first."""
    while True:
        own = None
        if key is not None:
            key, own = mx.random.split(key)
        yield own
