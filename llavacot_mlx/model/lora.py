"""Linear layers with a low-rank change beside them: LoRA and DoRA.

mlx-lm has the same two; importing them takes seconds, which `ask` with an adapter would pay before
its first token. Parameter names (`linear`, `lora_a`, `lora_b`, `m`) and meanings are mlx-lm's, so
adapters are called alike.
"""

from __future__ import annotations

import math
from typing import Any

import mlx.core as mx
import mlx.nn as nn


class LoRALinear(nn.Module):
    """y = W x + b + scale · Bᵀ Aᵀ x (arXiv 2106.09685, section 4.1).

    `lora_a` is (inputs, rank), drawn uniformly within ±1/√inputs; `lora_b` is (rank, outputs) and
    zero, so that training starts from the base model. Dropout, where there is any, falls on the
    input of A alone.
    """

    def __init__(self, linear: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__()
        outputs, inputs = dims_of(linear)
        self.linear = linear
        self.scale = scale
        self.dropout = nn.Dropout(dropout)
        bound = 1 / math.sqrt(inputs)
        self.lora_a = mx.random.uniform(-bound, bound, (inputs, rank))
        self.lora_b = mx.zeros((rank, outputs))

    def __call__(self, x: mx.array) -> mx.array:
        change = (self.dropout(x) @ self.lora_a) @ self.lora_b
        return self.linear(x) + (self.scale * change).astype(x.dtype)

    def fused_weight(self) -> mx.array:
        """The weight (outputs, inputs) of the one linear layer that does the same."""
        weight = plain_weight(self.linear)
        return weight + _change(self).astype(weight.dtype)


class DoRALinear(LoRALinear):
    """LoRA whose rows are scaled back to a learned length `m` (arXiv 2402.09353, equation 5).

    y = (W + ΔW) x · m / ‖W + ΔW‖ + b, the norm taken row by row and without a gradient (section
    4.3 there). `m` is (outputs,) and begins as the row norms of W.
    """

    def __init__(self, linear: nn.Module, rank: int, scale: float, dropout: float = 0.0) -> None:
        super().__init__(linear, rank, scale, dropout)
        self.m = mx.linalg.norm(plain_weight(linear).astype(mx.float32), axis=1)
        self._settled: mx.array | None = None  # underscored: follows from the rest, no weight

    def __call__(self, x: mx.array) -> mx.array:
        bias = self.linear.bias if "bias" in self.linear else None
        rows = self.linear(x) if bias is None else self.linear(x) - bias
        change = (self.dropout(x) @ self.lora_a) @ self.lora_b
        rows = (rows + (self.scale * change).astype(x.dtype)) * self._lengths().astype(x.dtype)
        return rows if bias is None else rows + bias

    def fused_weight(self) -> mx.array:
        weight = plain_weight(self.linear)
        changed = weight.astype(mx.float32) + _change(self)
        return (self._lengths()[:, None] * changed).astype(weight.dtype)

    def settle(self) -> None:
        """Works the rows' lengths out once and for all, for a layer that is not trained further.

        They take the whole weight, which at every token would cost more than the product.
        """
        self._settled = self._lengths()
        mx.eval(self._settled)

    def _lengths(self) -> mx.array:
        if self._settled is not None:
            return self._settled
        changed = plain_weight(self.linear).astype(mx.float32) + _change(self)
        return self.m / mx.stop_gradient(mx.linalg.norm(changed, axis=1))


def dims_of(linear: nn.Module) -> tuple[int, int]:
    """(outputs, inputs) of a linear layer, quantised or not."""
    outputs, columns = linear.weight.shape
    if isinstance(linear, nn.QuantizedLinear):
        return outputs, columns * 32 // linear.bits
    return outputs, columns


def plain_weight(linear: nn.Module) -> mx.array:
    """The weight (outputs, inputs), dequantised where it is quantised."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight
    return mx.dequantize(
        linear.weight,
        linear.scales,
        linear.get("biases"),
        group_size=linear.group_size,
        bits=linear.bits,
        mode=linear.mode,
    )


def _change(layer: Any) -> mx.array:
    """ΔW, (outputs, inputs), in float32."""
    return layer.scale * (layer.lora_a @ layer.lora_b).T.astype(mx.float32)
