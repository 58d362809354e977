"""Cross-entropy of hidden states under the output head, with its gradient, block by block.

The gradient is written out and computed together with the loss, so that logits are computed once
and dropped. Recording them for autograd would keep several arrays of 263 MB for 512 tokens of a
vocabulary of 128256.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from llavacot_mlx.model.linear import plain_weight
from llavacot_mlx.train.data.sample import TokenKind

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class LossSums:
    """Sums over the tokens that have a loss, by kind: index k is that of `TokenKind` k."""

    loss_by_kind: mx.array
    """(6,) float32: sum of the cross-entropies, in nats."""
    count_by_kind: mx.array
    """(6,) float32: number of tokens."""
    correct_by_kind: mx.array
    """(6,) float32: number of tokens that the model ranks first (the argmax is the label)."""

    @classmethod
    def zero(cls) -> LossSums:
        return cls(*(mx.zeros(len(TokenKind)) for _ in range(3)))

    def __add__(self, other: LossSums) -> LossSums:
        return LossSums(*(a + b for a, b in zip(self.arrays, other.arrays, strict=True)))

    @property
    def arrays(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.loss_by_kind, self.count_by_kind, self.correct_by_kind

    @property
    def loss(self) -> mx.array:
        """The sum of the cross-entropies of all kinds."""
        return mx.sum(self.loss_by_kind)

    @property
    def tokens(self) -> mx.array:
        """The number of tokens of all kinds."""
        return mx.sum(self.count_by_kind)


@dataclass(frozen=True)
class HeadGrads:
    """The loss of a block of tokens, and its gradients."""

    sums: LossSums
    hidden_grad: mx.array
    """(tokens, hidden): gradient of the summed loss with respect to the hidden states."""
    head_grads: dict[str, Any]
    """Gradients of the head's trainable parameters, as a tree."""


def loss_of_block(
    head: nn.Module, hidden_states: mx.array, labels: mx.array, token_kinds: mx.array
) -> LossSums:
    """Loss of a block of tokens.

    `hidden_states` is (tokens, hidden); `labels` (tokens,) has the token that follows each, and
    `token_kinds` (tokens,) its `TokenKind`.
    """
    return _Softmax.of(head, hidden_states, labels, token_kinds).sums


def loss_and_grads_of_block(
    head: nn.Module, hidden_states: mx.array, labels: mx.array, token_kinds: mx.array
) -> HeadGrads:
    """Like `loss_of_block`, with gradients.

    The gradient of the logits is softmax(logits) minus the one-hot label; the head's own backward
    pass takes it to the hidden states.
    """
    softmax = _Softmax.of(head, hidden_states, labels, token_kinds)
    trainable = tree_flatten(head.trainable_parameters())
    dtype = hidden_states.dtype
    if not trainable:
        # Normalize after the matrix product, where the array is smallest. The one-hot label's
        # product with the weight is the label's row of the weight.
        _, (grad,) = mx.vjp(head, [hidden_states], [softmax.exponentials.astype(dtype)])
        grad = grad.astype(mx.float32) / softmax.total - plain_weight(head, labels)
        return HeadGrads(softmax.sums, grad.astype(dtype), {})
    logits_grad = softmax.exponentials / softmax.total
    logits_grad = logits_grad.at[mx.arange(len(labels)), labels].add(-1.0).astype(dtype)
    names = [name for name, _ in trainable]

    def logits(hidden_states: mx.array, *parameters: mx.array) -> mx.array:
        head.update(tree_unflatten(list(zip(names, parameters, strict=True))))
        return head(hidden_states)

    operands = [hidden_states, *(array for _, array in trainable)]
    _, (grad, *head_grads) = mx.vjp(logits, operands, [logits_grad])
    head.update(tree_unflatten(trainable))
    grads = tree_unflatten(list(zip(names, head_grads, strict=True)))
    return HeadGrads(softmax.sums, grad, grads)


@dataclass(frozen=True)
class _Softmax:
    """The softmax of a block's logits before normalization, and the loss."""

    sums: LossSums
    exponentials: mx.array
    """(tokens, vocabulary) float32: exp(logits - max logit)."""
    total: mx.array
    """(tokens, 1): the sum of `exponentials`."""

    @classmethod
    def of(
        cls, head: nn.Module, hidden_states: mx.array, labels: mx.array, token_kinds: mx.array
    ) -> _Softmax:
        # Everything is in base 2, because MLX computes powers of 2 in half the time on a CPU. In
        # 16 bits, scaling the hidden states would round them, so there the logits are scaled.
        if hidden_states.dtype == mx.float32:
            logits = head(hidden_states * _LOG2_E)
        else:
            logits = head(hidden_states).astype(mx.float32) * _LOG2_E
        highest = mx.max(logits, axis=-1, keepdims=True)
        exponentials = mx.power(2.0, logits - highest)
        total = mx.sum(exponentials, axis=-1, keepdims=True)
        label_logits = mx.take_along_axis(logits, labels[:, None], axis=-1)
        losses = (mx.log2(total) + highest - label_logits) / _LOG2_E  # (tokens, 1)
        one_hot = token_kinds[:, None] == mx.arange(len(TokenKind))  # (tokens, kinds)
        sums = LossSums(
            mx.sum(one_hot * losses, axis=0),
            mx.sum(one_hot.astype(mx.float32), axis=0),
            mx.sum(one_hot * (label_logits == highest).astype(mx.float32), axis=0),
        )
        return cls(sums, exponentials, total)
