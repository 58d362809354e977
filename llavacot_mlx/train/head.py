"""Cross-entropy of hidden states under an output head, with its gradient, some rows at a time.

The gradient is written out and comes with the loss, so that logits are computed once and dropped;
recording them would keep, for 512 tokens of a vocabulary of 128256, several arrays of 263 MB.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from llavacot_mlx.model.linear import plain_weight

from .sample import Target

_LOG2_E = math.log2(math.e)


@dataclass(frozen=True)
class Sums:
    """Sums over learned tokens, apart by what they are: index k is that of `Target` k."""

    loss_by_kind: mx.array
    """(6,) float32: cross-entropies, in nats."""
    count_by_kind: mx.array
    """(6,) float32"""
    correct_by_kind: mx.array
    """(6,) float32: tokens than which no other was likelier."""

    @classmethod
    def zero(cls) -> Sums:
        return cls(*(mx.zeros(len(Target)) for _ in range(3)))

    def __add__(self, other: Sums) -> Sums:
        return Sums(*(a + b for a, b in zip(self.arrays, other.arrays, strict=True)))

    @property
    def arrays(self) -> tuple[mx.array, mx.array, mx.array]:
        return self.loss_by_kind, self.count_by_kind, self.correct_by_kind

    @property
    def loss(self) -> mx.array:
        return mx.sum(self.loss_by_kind)

    @property
    def learned(self) -> mx.array:
        """How many tokens they are over."""
        return mx.sum(self.count_by_kind)


@dataclass(frozen=True)
class Learned:
    """What a block of rows gives."""

    sums: Sums
    slopes: mx.array
    """Gradient of the loss's sum in the rows, (rows, hidden)."""
    of_head: dict[str, Any]
    """Gradients of the head's trainable parameters, a tree."""

    @property
    def arrays(self) -> list[mx.array]:
        return [*self.sums.arrays, self.slopes, *(a for _, a in tree_flatten(self.of_head))]


def score(head: nn.Module, rows: mx.array, targets: mx.array, kinds: mx.array) -> Sums:
    """`rows` is (rows, hidden), `targets` the token that follows each, `kinds` what it is."""
    return _Scored.of(head, rows, targets, kinds).sums


def learn(head: nn.Module, rows: mx.array, targets: mx.array, kinds: mx.array) -> Learned:
    """Like `score`, with gradients: softmax minus one at the target, brought back by the head."""
    scored = _Scored.of(head, rows, targets, kinds)
    trainable = tree_flatten(head.trainable_parameters())
    if not trainable:
        # Normalised after the product, where there is least to divide, and the target's row of
        # the weight stands for the one.
        _, (slopes,) = mx.vjp(head, [rows], [scored.exponentials.astype(rows.dtype)])
        slopes = slopes.astype(mx.float32) / scored.total - plain_weight(head, targets)
        return Learned(scored.sums, slopes.astype(rows.dtype), {})
    change = scored.exponentials / scored.total
    change = change.at[mx.arange(len(targets)), targets].add(-1.0).astype(rows.dtype)
    names = [name for name, _ in trainable]

    def logits(rows: mx.array, *parameters: mx.array) -> mx.array:
        head.update(tree_unflatten(list(zip(names, parameters, strict=True))))
        return head(rows)

    _, (slopes, *of_head) = mx.vjp(logits, [rows, *(array for _, array in trainable)], [change])
    head.update(tree_unflatten(trainable))
    return Learned(scored.sums, slopes, tree_unflatten(list(zip(names, of_head, strict=True))))


@dataclass(frozen=True)
class _Scored:
    sums: Sums
    exponentials: mx.array
    """(rows, vocabulary) float32, of the logits less the highest."""
    total: mx.array
    """(rows, 1): their sum."""

    @classmethod
    def of(cls, head: nn.Module, rows: mx.array, targets: mx.array, kinds: mx.array) -> _Scored:
        # Everything is to the base 2, whose power takes MLX half as long on a CPU. In 16 bits the
        # rows would be rounded by the change of base; there the logits are multiplied.
        if rows.dtype == mx.float32:
            logits = head(rows * _LOG2_E)
        else:
            logits = head(rows).astype(mx.float32) * _LOG2_E
        highest = mx.max(logits, axis=-1, keepdims=True)
        exponentials = mx.power(2.0, logits - highest)
        total = mx.sum(exponentials, axis=-1, keepdims=True)
        of_target = mx.take_along_axis(logits, targets[:, None], axis=-1)
        losses = (mx.log2(total) + highest - of_target) / _LOG2_E  # (rows, 1)
        members = kinds[:, None] == mx.arange(len(Target))  # (rows, kinds)
        sums = Sums(
            mx.sum(members * losses, axis=0),
            mx.sum(members.astype(mx.float32), axis=0),
            mx.sum(members * (of_target == highest).astype(mx.float32), axis=0),
        )
        return cls(sums, exponentials, total)
