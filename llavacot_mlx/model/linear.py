"""Linear layers, plain or quantized, with the faster product on each device."""

from __future__ import annotations

from typing import cast

import mlx.core as mx
import mlx.nn as nn

from llavacot_mlx.model.kernels import kernels


class Linear(nn.Linear):
    """x Wᵀ + b, for weights (out, in).

    A decode step multiplies one position, as a vector where that is faster
    (`Kernels.vector_products`).
    """

    def __init__(self, inputs: int, outputs: int, bias: bool = False) -> None:
        super().__init__(inputs, outputs, bias)

    def __call__(self, x: mx.array) -> mx.array:
        if "bias" not in self and x.size == x.shape[-1] and kernels().vector_products:
            return (self.weight @ x.reshape(-1)).reshape(*x.shape[:-1], -1)
        return super().__call__(x)

    def to_quantized(
        self,
        group_size: int | None = None,
        bits: int | None = None,
        mode: str = "affine",
        quantize_input: bool = False,
    ) -> QuantizedLinear:
        """Makes the layer by which `mlx.nn.quantize` replaces this one.

        Raises ValueError for quantized inputs.
        """
        if quantize_input:
            raise ValueError("inputs are not quantized here")
        return QuantizedLinear.from_linear(self, group_size, bits, mode)


class QuantizedLinear(nn.QuantizedLinear):
    """x Wᵀ + b for a quantized, frozen W.

    Many positions are multiplied by dequantized weights where that is faster
    (`Kernels.dequantized_from`). The dequantized weights are not kept for the backward pass, or
    training would hold the whole model in full precision.
    """

    def __call__(self, x: mx.array) -> mx.array:
        start = kernels().dequantized_from
        if start is None or x.size < start * x.shape[-1]:
            return super().__call__(x)
        y = self._dequantized_product(x)
        return y + self.bias if "bias" in self else y

    def _dequantized_product(self, x: mx.array) -> mx.array:
        @mx.custom_function
        def product(x: mx.array) -> mx.array:
            return x @ self._weight_for(x).T

        def gradient(x: mx.array, cotangent: mx.array, _: mx.array) -> mx.array:
            return cotangent @ self._weight_for(cotangent)

        product.vjp(gradient)
        return cast("mx.array", product(x))

    def _weight_for(self, factor: mx.array) -> mx.array:
        """Returns the dequantized weight, made to depend on its factor.

        Otherwise MLX would evaluate the weights of all layers first, since they depend on nothing.
        """
        packed = cast("mx.array", mx.depends(self.weight, factor))
        return _dequantize(self, packed, self.scales, self.get("biases")).astype(factor.dtype)


def dims_of(linear: nn.Module) -> tuple[int, int]:
    """Returns (outputs, inputs) of a linear layer, quantized or not."""
    outputs, columns = linear.weight.shape
    if isinstance(linear, nn.QuantizedLinear):
        return outputs, columns * 32 // linear.bits
    return outputs, columns


def plain_weight(linear: nn.Module, rows: mx.array | None = None) -> mx.array:
    """Returns the weight (outputs, inputs), dequantized if need be; `rows` selects outputs."""
    if not isinstance(linear, nn.QuantizedLinear):
        return linear.weight if rows is None else linear.weight[rows]
    weight, scales, biases = linear.weight, linear.scales, linear.get("biases")
    if rows is not None:
        weight, scales = weight[rows], scales[rows]
        biases = None if biases is None else biases[rows]  # some modes have no biases
    return _dequantize(linear, weight, scales, biases)


def _dequantize(
    linear: nn.QuantizedLinear, weight: mx.array, scales: mx.array, biases: mx.array | None
) -> mx.array:
    return mx.dequantize(
        weight, scales, biases, group_size=linear.group_size, bits=linear.bits, mode=linear.mode
    )
