"""Verification of a converted folder against its source.

Every name, shape and type is compared with the model's own tree, and some rows of every tensor are
read back: copies must be equal, and quantized weights must be as close as their format allows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.safetensors import TensorEntry
from llavacot_mlx.checkpoint.weights import (
    SourceTensor,
    check_tree,
    quantize_modules,
    source_tensors,
)
from llavacot_mlx.convert.blocks import Block, BlockReader, array_of, in_type
from llavacot_mlx.convert.plan import TensorStep
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization
from llavacot_mlx.model.mllama import Mllama

_BYTES = 2**17
"""Bytes of each source tensor that are compared; at least one row."""
_POSITIONS = 5
"""Positions, from the start of a tensor to its end, that successive tensors are compared at."""

# The largest value of a format in units of its scale, and half of its widest step; of 8-bit
# floats the steps grow with the values. OCP Microscaling Formats (MX) 1.0, sections 5.3.1 to 5.3.3.
_FOUR_BITS_TOP, _FOUR_BITS_STEP = 6.0, 1.0
_EIGHT_BITS_TOP, _EIGHT_BITS_STEP, _EIGHT_BITS_LEAST = 448.0, 2.0**-4, 2.0**-10
# The tolerance of a scale: a relative part, and the smallest steps of float16 near zero.
_ROUNDING = {
    mx.float32: (2.0**-22, 0.0),
    mx.bfloat16: (2.0**-8, 0.0),
    mx.float16: (2.0**-10, 2.0**-24),
}


@dataclass(frozen=True)
class Verified:
    """What was compared and found correct."""

    tensors: int
    """Tensors of the source."""
    values: int
    """Values of those tensors that were read back."""


def compare_with_source(folder: Path, steps: Sequence[TensorStep]) -> Verified:
    """Compares a converted folder with its source. Raises UserError at the first difference."""
    config = load_config(folder)
    written = source_tensors(folder)
    model = Mllama(config)
    if config.quantization is not None:
        quantize_modules(model, config.quantization, written)
    check_tree(model, written, folder)
    values = 0
    with BlockReader() as source, BlockReader() as target:
        for index, step in enumerate(steps):
            block = _some_rows(step, index)
            expected = array_of(block, source.read(block))
            parts = [_rows(target, written[t.name], block) for t in step.targets]
            if not _agrees(expected, parts, step):
                name = step.source.name
                raise UserError(
                    f"{written[name].entry.file}: {name} is not what the source says: was the disk "
                    "or the memory at fault? Run this again"
                )
            values += expected.size
    return Verified(len(steps), values)


def _some_rows(step: TensorStep, index: int) -> Block:
    """A few rows of a step's source, whose position in the tensor depends on `index`."""
    entry = step.source.entry
    if step.source.transpose or not entry.shape or entry.nbytes <= _BYTES:
        return Block(step, 0, entry.nbytes, None)
    row = entry.nbytes // entry.shape[0]
    rows = max(1, _BYTES // row)
    first = (entry.shape[0] - rows) * (index % _POSITIONS) // (_POSITIONS - 1)
    return Block(step, first * row, (first + rows) * row, rows)


def _rows(target: BlockReader, tensor: SourceTensor, block: Block) -> mx.array:
    """The rows of a written tensor that correspond to a block of the source."""
    entry = tensor.entry
    if block.rows is None:
        return _read(target, entry, 0, entry.nbytes, entry.shape)
    source_row = block.step.source.entry.nbytes // block.step.source.entry.shape[0]
    row = entry.nbytes // entry.shape[0]
    first = block.start // source_row
    shape = (block.rows, *entry.shape[1:])
    return _read(target, entry, first * row, (first + block.rows) * row, shape)


def _read(
    target: BlockReader, entry: TensorEntry, start: int, stop: int, shape: tuple[int, ...]
) -> mx.array:
    return in_type(target.read_bytes(entry, start, stop), entry.dtype).reshape(shape)


def _agrees(source: mx.array, parts: Sequence[mx.array], step: TensorStep) -> bool:
    if step.quantization is None:
        (copy,) = parts
        return bool(mx.array_equal(source.astype(copy.dtype), copy).item())
    # The source was cast to the type of the scales before it was quantized.
    kept = parts[1].dtype if mx.issubdtype(parts[1].dtype, mx.floating) else source.dtype
    weights = source.astype(kept).astype(mx.float32)
    found, allowed = _unpacked(parts, weights, step.quantization)
    return bool(mx.all(mx.abs(found - weights) <= allowed).item())


def _unpacked(
    parts: Sequence[mx.array], weights: mx.array, quantization: Quantization
) -> tuple[mx.array, mx.array]:
    """The dequantized rows, and the tolerance of each value."""
    group_size, bits, mode = quantization.group_size, quantization.bits, quantization.mode
    if mode == "affine":
        packed, scales, biases = parts
        # Half a step; and a whole one at the end of a group's range that MLX moves, to have zero
        # among its values. Scale and bias are themselves rounded.
        relative, least = _ROUNDING[scales.dtype]
        scales, biases = scales.astype(mx.float32), biases.astype(mx.float32)
        found = mx.dequantize(packed, scales, biases, group_size, bits, mode)
        steps, steps_wide = mx.abs(scales), 2**bits
        whole = 1.5 * steps + relative * (mx.abs(biases) + steps_wide * steps) + least * steps_wide
        return found, mx.repeat(whole, group_size, axis=-1)
    packed, scales = parts
    found = mx.dequantize(packed, scales, None, group_size, bits, mode, dtype=mx.float32)
    units = mx.repeat(_scale_values(scales, mode), group_size, axis=-1)
    sizes = mx.abs(weights)
    if bits == 4:
        top, near = _FOUR_BITS_TOP * units, _FOUR_BITS_STEP * units
    else:
        top = _EIGHT_BITS_TOP * units
        near = mx.maximum(_EIGHT_BITS_STEP * sizes, _EIGHT_BITS_LEAST * units)
    # Values beyond the largest one are clipped to it.
    return found, mx.maximum(near, sizes - top) * (1 + 2.0**-7)


def _scale_values(scales: mx.array, mode: str) -> mx.array:
    """The scales as numbers; their bytes are powers of two or 8-bit floats."""
    if mode == "nvfp4":
        return mx.from_fp8(scales, dtype=mx.float32)
    return mx.power(2.0, scales.astype(mx.float32) - 127)
