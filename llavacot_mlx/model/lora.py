"""Linear layers with a low-rank change beside them: LoRA and DoRA.

mlx-lm has the same two; importing them takes seconds, which `ask` with an adapter would pay before
its first token. Parameter names (`linear`, `lora_a`, `lora_b`, `m`) and meanings are mlx-lm's, so
adapters are called alike.
"""

from __future__ import annotations

import math

import mlx.core as mx
import mlx.nn as nn

from .linear import dims_of, plain_weight


class LoRALinear(nn.Module):
    """y = W x + b + scale · Bᵀ Aᵀ x (arXiv 2106.09685, section 4.1).

    `lora_a` is (inputs, rank), drawn uniformly within ±1/√inputs from `key`; `lora_b` is (rank,
    outputs) and zero, so that training starts from the base model.

    Dropout falls on the input of A alone, and only while a key says how: see `drop_by`.
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
        rows = self.linear(x)
        return mx.addmm(rows, self._low(x), self.lora_b.astype(rows.dtype))

    def _low(self, x: mx.array) -> mx.array:
        """scale · Aᵀ x, (…, rank). The scale falls here, where there is least to multiply."""
        if self._dropout and self._dropout_key is not None:
            kept = 1 - self._dropout
            x = x * (mx.random.bernoulli(kept, x.shape, self._dropout_key) / kept).astype(x.dtype)
        return self.scale * (x @ self.lora_a.astype(x.dtype))


class DoRALinear(LoRALinear):
    """LoRA whose rows are scaled back to a learned length `m` (arXiv 2402.09353, equation 5).

    y = (W + ΔW) x · m / ‖W + ΔW‖ + b, the norm taken row by row and without a gradient (section
    4.3 there). `m` is (outputs,) and begins as the row norms of W.
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
        self._squares = self.m * self.m  # underscored, as below: follow from the rest, no weights
        self._settled: mx.array | None = None

    def __call__(self, x: mx.array) -> mx.array:
        bias = self.linear.bias if "bias" in self.linear else None
        rows = self.linear(x) if bias is None else self.linear(x) - bias
        rows = mx.addmm(rows, self._low(x), self.lora_b.astype(rows.dtype))
        rows = rows * self._lengths().astype(rows.dtype)
        return rows if bias is None else rows + bias

    def settle(self) -> None:
        """Works the rows' lengths out once and for all, for a layer that is not trained further.

        At every token they would cost more than the product with a row.
        """
        self._settled = self._lengths()
        mx.eval(self._settled)

    def _lengths(self) -> mx.array:
        """m / ‖W + ΔW‖, (outputs,).

        ‖W + ΔW‖² = ‖W‖² + 2 W·ΔW + ‖ΔW‖², and ΔW has a low rank, so that neither ΔW nor, where it
        is quantised, W has to be written out.
        """
        if self._settled is not None:
            return self._settled
        a, b = mx.stop_gradient(self.lora_a), mx.stop_gradient(self.lora_b)  # (in, r), (r, out)
        rows = self.linear(a.T)  # (r, out): W applied to each column of A
        if "bias" in self.linear:
            rows = rows - self.linear.bias
        products = mx.sum(rows.astype(mx.float32) * b, axis=0)
        squares = mx.sum(((a.T @ a) @ b) * b, axis=0)
        lengths = mx.sqrt(self._squares + 2 * self.scale * products + self.scale**2 * squares)
        return self.m / mx.stop_gradient(lengths)


def drop_by(module: nn.Module, key: mx.array | None) -> None:
    """Has the LoRA layers within `module` drop out as follows from `key`; not at all for None.

    The same key drops the same again, which the second forward pass of gradient checkpointing and
    a resumed run both need; a global random state would have moved on.
    """
    layers = [layer for _, layer in module.named_modules() if isinstance(layer, LoRALinear)]
    for index, layer in enumerate(layers):
        layer._dropout_key = None if key is None else mx.random.split(key, len(layers))[index]
