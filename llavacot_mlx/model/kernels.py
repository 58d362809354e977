"""Decides in one place what differs between a CPU and a GPU.

Each field of `Kernels` is one decision, with the reason for it. The device decides by default; a
test runs the other device's path with `use`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import mlx.core as mx


@dataclass(frozen=True)
class Kernels:
    """The choices that depend on the device."""

    compiled_activations: bool
    """Activations run as one kernel of `mx.compile`. On the Linux CPU that calls the C++ compiler
    for every kernel, which costs seconds before the first token."""
    fused_rope: bool
    """`mx.fast.rope` rotates. On the CPU it is a dozen small operations for every layer's queries
    and again for its keys, more than the rotation itself, so there all layers share the cosines."""
    fused_attention: bool
    """`mx.fast.scaled_dot_product_attention` takes all queries at once. On the CPU it would hold
    the scores of all heads (2.6 GB for an image of four tiles), so there queries go in blocks."""
    attention_scores_bytes: int
    """Attention scores held at once where no fused kernel keeps them out of memory."""
    vector_products: bool
    """A single position is multiplied as a vector. MLX hands a matrix of one row to the BLAS as a
    product of matrices, which repacks the weights first; as a vector it reads them once, half as
    fast again (two Xeon cores with OpenBLAS)."""
    dequantized_from: int | None
    """Positions from which quantized weights are dequantized for the product; None for never. On
    the CPU, MLX's product with quantized weights takes each row by itself; the BLAS is about 30
    times as fast on 512 rows (two EPYC cores with OpenBLAS). The number exceeds the candidates of
    a usual search, so that the last bits of a candidate's logits do not depend on how many there
    are."""
    partial_sort: bool
    """Nucleus sampling sorts only the part of the vocabulary around the border. MLX sorts a row of
    128256 in 20 ms on an x86 CPU."""
    float32_weights: bool
    """`dtype="auto"` means float32: 16-bit arithmetic is slow on a CPU."""
    training_scores_bytes: int
    """Attention scores that a training step holds at once. Some megabytes stay in a CPU's cache:
    twice as fast as 100 MB at a time."""


CPU = Kernels(
    compiled_activations=False,
    fused_rope=False,
    fused_attention=False,
    attention_scores_bytes=16 * 2**20,
    vector_products=True,
    dequantized_from=32,
    partial_sort=True,
    float32_weights=True,
    training_scores_bytes=4 * 2**20,
)
GPU = Kernels(
    compiled_activations=True,
    fused_rope=True,
    fused_attention=True,
    attention_scores_bytes=16 * 2**20,
    vector_products=False,
    dequantized_from=None,
    partial_sort=False,
    float32_weights=False,
    training_scores_bytes=64 * 2**20,
)

# One for the whole process: the threads that a block starts make the same choices.
_chosen: Kernels | None = None


def kernels() -> Kernels:
    """Returns the choices in force: those of the default device, unless `use` sets others."""
    if _chosen is not None:
        return _chosen
    return CPU if mx.default_device().type == mx.DeviceType.cpu else GPU


@contextmanager
def use(chosen: Kernels) -> Iterator[None]:
    """Runs the block with these choices, whatever the device."""
    global _chosen
    before, _chosen = _chosen, chosen
    try:
        yield
    finally:
        _chosen = before
