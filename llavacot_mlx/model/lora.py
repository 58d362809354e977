"""Linear layers with a low-rank update: LoRA and DoRA.

mlx-lm has the same two, but importing them takes seconds, which `ask` with an adapter would spend
before its first token. Parameter names (`linear`, `lora_a`, `lora_b`, `m`) and their meanings are
mlx-lm's, so adapters are interchangeable.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from llavacot_mlx.model.linear import dims_of, plain_weight


class LoRALinear(nn.Module):
    """y = W x + b + scale · Bᵀ Aᵀ x (arXiv 2106.09685, section 4.1).

    `lora_a` is (inputs, rank), drawn uniformly within ±1/√inputs from `key`; `lora_b` is (rank,
    outputs) and zero, so that training starts from the base model.

    Dropout applies to the input of A, and only while a key is set: see `set_dropout_key`.
    """

    def __init__(
        self,
        linear: nn.Module,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        key: mx.array | None = None,
    ) -> None:
        super().__init__()
        outputs, inputs = dims_of(linear)
        self.linear = linear
        self.scale = scale
        bound = 1 / math.sqrt(inputs)
        self.lora_a = mx.random.uniform(-bound, bound, (inputs, rank), key=key)
        self.lora_b = mx.zeros((rank, outputs))
        self._dropout = dropout
        self._dropout_key: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        y = self.linear(x)
        return mx.addmm(y, self._low_rank(x), self.lora_b.astype(y.dtype))

    def _low_rank(self, x: mx.array) -> mx.array:
        """scale · Aᵀ x, (…, rank). The scale is applied here, where there is least to multiply."""
        if self._dropout and self._dropout_key is not None:
            kept = 1 - self._dropout
            x = x * (mx.random.bernoulli(kept, x.shape, self._dropout_key) / kept).astype(x.dtype)
        return self.scale * (x @ self.lora_a.astype(x.dtype))


class DoRALinear(LoRALinear):
    """LoRA whose weight rows are rescaled to a learned norm `m` (arXiv 2402.09353, equation 5).

    y = (W + ΔW) x · m / ‖W + ΔW‖ + b, with the norm of each row, through which no gradient flows
    (section 4.3 there). `m` is (outputs,) and starts as the row norms of W.
    """

    def __init__(
        self,
        linear: nn.Module,
        rank: int,
        scale: float,
        dropout: float = 0.0,
        key: mx.array | None = None,
    ) -> None:
        super().__init__(linear, rank, scale, dropout, key)
        self.m = mx.linalg.norm(plain_weight(linear).astype(mx.float32), axis=1)
        self._squares = (
            self.m * self.m
        )  # derived values; the underscore keeps them from being parameters
        self._frozen_scales: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        bias = self.linear.bias if "bias" in self.linear else None
        y = self.linear(x) if bias is None else self.linear(x) - bias
        y = mx.addmm(y, self._low_rank(x), self.lora_b.astype(y.dtype))
        y = y * self._row_scales().astype(y.dtype)
        return y if bias is None else y + bias

    def freeze_norms(self) -> None:
        """Fixes the row norms, for a layer that is not trained any further.

        Computing them for every token would cost more than the product itself.
        """
        self._frozen_scales = self._row_scales()
        mx.eval(self._frozen_scales)

    def _row_scales(self) -> mx.array:
        """m / ‖W + ΔW‖, (outputs,).

        ‖W + ΔW‖² = ‖W‖² + 2 W·ΔW + ‖ΔW‖², and ΔW has a low rank, so that neither ΔW nor, where it
        is quantized, W has to be materialized.
        """
        if self._frozen_scales is not None:
            return self._frozen_scales
        a, b = mx.stop_gradient(self.lora_a), mx.stop_gradient(self.lora_b)  # (in, r), (r, out)
        w_a = self.linear(a.T)  # (r, out): W applied to each column of A
        if "bias" in self.linear:
            w_a = w_a - self.linear.bias
        products = mx.sum(w_a.astype(mx.float32) * b, axis=0)
        squares = mx.sum(((a.T @ a) @ b) * b, axis=0)
        lengths = mx.sqrt(self._squares + 2 * self.scale * products + self.scale**2 * squares)
        return self.m / mx.stop_gradient(lengths)


def set_dropout_key(module: nn.Module, key: mx.array | None) -> None:
    """Sets the key of dropout in every LoRA layer of `module`; None turns dropout off.

    The same key draws the same mask, which the recomputation of gradient checkpointing and a
    resumed run both need: a global random state would have moved on.
    """
    layers = [layer for _, layer in module.named_modules() if isinstance(layer, LoRALinear)]
    for index, layer in enumerate(layers):
        layer._dropout_key = None if key is None else mx.random.split(key, len(layers))[index]
