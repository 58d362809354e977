"""Loss and gradients of a batch.

The logits of a row are those that inference computes for the row alone: attention is causal, other
rows have no influence, and padding is on the right, where no token sees it. Three things keep
memory low: logits are computed only for tokens that have a loss, and block by block; attention
keeps no scores; and with `checkpoint` a layer keeps only its input and is computed a second time in
the backward pass (arXiv 1604.06174).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_map

from llavacot_mlx.model.lora import set_dropout_key
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.model.rope import Rotation
from llavacot_mlx.model.text import CrossAttentionLayer
from llavacot_mlx.model.vision import VisionLayer
from llavacot_mlx.train.loss.blocked_attention import attend
from llavacot_mlx.train.loss.cross_entropy import (
    HeadGrads,
    LossSums,
    loss_and_grads_of_block,
    loss_of_block,
)
from llavacot_mlx.train.loss.step_inputs import Inputs, View

Gradients = dict[str, Any]
"""A tree with an array for each trainable parameter."""

_TOKENS_PER_BLOCK = 128
"""Tokens whose logits exist at once: 66 MB in float32 with a vocabulary of 128256."""

_RunLayer = Callable[..., mx.array]
"""Runs a layer: takes the layer, a key for its dropout, the computation, and its operands."""


def loss_sums(model: Mllama, inputs: Inputs) -> LossSums:
    """Loss and correct tokens of a batch, without gradients or dropout. Evaluates the result."""
    hidden_states = _hidden_states(model, inputs, _run_layer, None)
    total = LossSums.zero()
    for block in _blocks(inputs):
        total = total + loss_of_block(
            model.language_model.lm_head,
            hidden_states[block],
            inputs.labels[block],
            inputs.token_kinds[block],
        )
        mx.eval(total.arrays)
    return total


def loss_and_gradients(
    model: Mllama,
    inputs: Inputs,
    checkpoint: bool = False,
    key: mx.array | None = None,
    tokens_per_block: int = _TOKENS_PER_BLOCK,
) -> tuple[LossSums, Gradients]:
    """Loss and correct tokens of a batch, and the gradients of its summed loss.

    `key` seeds dropout; without a key, nothing is dropped. Evaluates everything that it returns.
    """
    trainable = model.trainable_parameters()
    if not inputs.labels.size:
        return LossSums.zero(), tree_map(mx.zeros_like, trainable)
    head = model.language_model.lm_head
    blocks: list[HeadGrads] = []

    def surrogate(parameters: Gradients) -> mx.array:
        """Has the gradient of the loss up to the head; its value means nothing."""
        model.update(parameters)
        run = _run_checkpointed if checkpoint else _run_layer
        hidden_states = _hidden_states(model, inputs, run, key)
        fixed = mx.stop_gradient(hidden_states)
        for block in _blocks(inputs, tokens_per_block):
            labels, token_kinds = inputs.labels[block], inputs.token_kinds[block]
            blocks.append(loss_and_grads_of_block(head, fixed[block], labels, token_kinds))
        grad = mx.concatenate([block.hidden_grad for block in blocks])
        return mx.sum(hidden_states * mx.stop_gradient(grad))

    gradients = mx.grad(surrogate)(trainable)
    model.update(trainable)  # in place of the traced arrays
    set_dropout_key(model, None)

    # Nothing has been computed so far. MLX allocates far ahead of what it computes, so arrays that
    # must not be in memory together are evaluated apart: each block of logits, then the layers from
    # the last to the first. (This rules out compiling the whole step. On a Linux CPU, each fused
    # kernel would also cost 2.5 s of the C++ compiler and gain nothing, because matrix products and
    # powers of two take the time.)
    total, head_grads = LossSums.zero(), None
    for block in blocks:
        total = total + block.sums
        if head_grads is None:
            head_grads = block.head_grads
        else:
            head_grads = tree_map(mx.add, head_grads, block.head_grads)
        mx.eval(block.hidden_grad, total.arrays, head_grads)
    if head_grads:
        gradients["language_model"]["lm_head"] = head_grads
    for layer in reversed(gradients["language_model"]["model"].get("layers", [])):
        mx.eval(layer)
    mx.eval(gradients)
    return total, gradients


def _blocks(inputs: Inputs, size: int = _TOKENS_PER_BLOCK) -> list[slice]:
    count = inputs.labels.size
    return [slice(start, min(start + size, count)) for start in range(0, count, size)]


def _hidden_states(model: Mllama, inputs: Inputs, run: _RunLayer, key: mx.array | None) -> mx.array:
    """(labels, hidden): the normed last hidden states that predict the labels."""
    text = model.language_model.model
    keys = _keys(key)
    features = [
        _image_features(model, image, view, run, keys)
        for image, view in zip(inputs.images, inputs.views, strict=True)
    ]
    hidden_states = text.embed_tokens(inputs.ids)  # (rows, tokens, hidden)
    with_image, tokens = len(features), hidden_states.shape[1]
    rotation = text.rotation(0, tokens)
    for layer in text.layers:
        if not isinstance(layer, CrossAttentionLayer):
            compute = partial(_self_attention, layer, rotation)
            hidden_states = run(layer, next(keys), compute, hidden_states)
        elif features:
            compute = partial(_cross_attention, layer, inputs.views)
            attended = run(layer, next(keys), compute, hidden_states[:with_image], *features)
            # As in inference, rows without an image skip these layers.
            rest = hidden_states[with_image:]
            hidden_states = mx.concatenate([attended, rest]) if len(rest) else attended
    flat = hidden_states.reshape(-1, hidden_states.shape[-1])
    return text.norm(flat[inputs.positions])


def _image_features(
    model: Mllama,
    image: mx.array,
    view: View,
    run: _RunLayer,
    keys: Iterator[mx.array | None],
) -> mx.array:
    """(1, image tokens, hidden)."""
    if not view.aspect_ratio_id:
        return image

    def run_layer(layer: VisionLayer, x: mx.array, real: int) -> mx.array:
        return run(layer, next(keys), partial(_vision, layer, real), x)

    set_dropout_key(model.multi_modal_projector, next(keys))
    return model.image_features(image, view.aspect_ratio_id, run_layer)


def _vision(layer: VisionLayer, real: int, x: mx.array) -> mx.array:
    return layer(x, real, partial(attend, causal=False))


def _self_attention(layer: nn.Module, rotation: Rotation, x: mx.array) -> mx.array:
    return layer(x, rotation, _Causal(), 0)


class _Causal:
    """Stands in for the KV cache, and keeps nothing: one pass has all tokens."""

    offset = 0

    def attend(self, layer: int, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        return attend(queries, keys, values, causal=True)

    def advance(self, tokens: int) -> None:
        pass


def _cross_attention(
    layer: CrossAttentionLayer, views: Sequence[View], x: mx.array, *features: mx.array
) -> mx.array:
    """A cross-attention layer on rows that have an image each; `x` is (images, tokens, hidden)."""
    image_kv = [layer.cross_attn.project(each) for each in features]

    def attend_rows(queries: mx.array) -> mx.array:  # (images, heads, tokens, head_dim)
        return mx.concatenate(
            [
                _attend_row(queries[index : index + 1], *kv, view)
                for index, (kv, view) in enumerate(zip(image_kv, views, strict=True))
            ]
        )

    image_index = mx.array([view.image_index for view in views])[:, None]
    after_image = mx.arange(x.shape[1]) >= image_index  # (images, tokens)
    return layer(x, attend_rows, after_image[..., None])


def _attend_row(queries: mx.array, keys: mx.array, values: mx.array, view: View) -> mx.array:
    """Attention of one row: tokens before the image see all tiles, the others the real ones."""
    index, visible = view.image_index, view.visible
    keys_after, values_after = keys[:, :, :visible], values[:, :, :visible]
    if index == 0 or visible == keys.shape[2]:
        return attend(queries, keys_after, values_after, causal=False)
    before = attend(queries[:, :, :index], keys, values, causal=False)
    after = attend(queries[:, :, index:], keys_after, values_after, causal=False)
    return mx.concatenate([before, after], axis=2)


def _run_layer(
    layer: nn.Module, key: mx.array | None, compute: Callable[..., mx.array], *arrays: mx.array
) -> mx.array:
    set_dropout_key(layer, key)
    return compute(*arrays)


def _run_checkpointed(
    layer: nn.Module, key: mx.array | None, compute: Callable[..., mx.array], *arrays: mx.array
) -> mx.array:
    """Keeps only the operands for the backward pass, which computes the layer again."""

    def recompute(parameters: Gradients, *arrays: mx.array) -> mx.array:
        layer.update(parameters)
        return _run_layer(layer, key, compute, *arrays)

    return mx.checkpoint(recompute)(layer.trainable_parameters(), *arrays)


def _keys(key: mx.array | None) -> Iterator[mx.array | None]:
    """Yields random keys that all derive from the first one; Nones without one."""
    while True:
        own = None
        if key is not None:
            key, own = mx.random.split(key)
        yield own
