"""What a conversion of a checkpoint will write, decided before a byte of it is read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from llavacot_mlx.config import ModelConfig, Quantization, QuantizationMap
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.weights import SourceTensor, quantize_modules

_BYTES = {mx.float32: 4, mx.float16: 2, mx.bfloat16: 2, mx.uint32: 4, mx.uint8: 1}

# Vision and the projector stay in 16 bits, as in mlx-vlm: they are 4% of the weights.
_QUANTIZED_PART = "language_model."


@dataclass(frozen=True)
class PlannedTensor:
    """One tensor of the target."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def nbytes(self) -> int:
        size = _BYTES[self.dtype]
        for length in self.shape:
            size *= length
        return size


@dataclass(frozen=True)
class Step:
    """One source tensor, and what it becomes: itself, or a quantised weight in several parts."""

    source: SourceTensor
    targets: tuple[PlannedTensor, ...]
    quantization: Quantization | None

    @property
    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)


def plan_steps(
    config: ModelConfig,
    sources: Mapping[str, SourceTensor],
    dtype: mx.Dtype | None,
    quantization: Quantization | None,
) -> list[Step]:
    """The steps of a conversion in the order of the source's files.

    `dtype` is the type of unquantised weights, None for each one's own. Raises UserError when the
    quantisation does not fit a weight.
    """
    quantized = _quantized_tree(config, sources, quantization) if quantization else {}
    steps = []
    for source in sorted(sources.values(), key=lambda tensor: str(tensor.entry.file)):
        own = _dtype_of(source)
        kept = dtype if dtype is not None and mx.issubdtype(own, mx.floating) else own
        module = source.name.removesuffix(".weight")
        if quantization and f"{module}.scales" in quantized and source.name.endswith(".weight"):
            parts = (f"{module}.{part}" for part in ("weight", "scales", "biases"))
            targets = tuple(
                PlannedTensor(
                    name,
                    tuple(quantized[name].shape),
                    # Scales have the weight's type in affine mode, and are bytes in the others.
                    kept if quantized[name].dtype == mx.float32 else quantized[name].dtype,
                )
                for name in parts
                if name in quantized
            )
            steps.append(Step(source, targets, quantization))
        else:
            target = PlannedTensor(source.name, source.shape, kept)
            steps.append(Step(source, (target,), None))
    return steps


def _quantized_tree(
    config: ModelConfig, sources: Mapping[str, SourceTensor], quantization: Quantization
) -> dict[str, mx.array]:
    """The parameters, not evaluated, of a model quantised throughout its text part."""
    model = Mllama(config)
    wanted = set()
    for path, module in model.named_modules():
        if not path.startswith(_QUANTIZED_PART) or not hasattr(module, "to_quantized"):
            continue
        width = sources[f"{path}.weight"].shape[-1]
        if width % quantization.group_size:
            fitting = [size for size in (32, 64, 128) if width % size == 0]
            raise UserError(
                f"--q-group-size {quantization.group_size} does not divide the width {width} of "
                f"{path}.weight; sizes that would: {', '.join(map(str, fitting)) or 'none'}"
            )
        wanted.add(f"{path}.scales")
    quantize_modules(model, QuantizationMap(quantization, {}), wanted)
    return dict(tree_flatten(model.parameters()))


def _dtype_of(source: SourceTensor) -> mx.Dtype:
    dtypes = {
        "F32": mx.float32,
        "F16": mx.float16,
        "BF16": mx.bfloat16,
        "U32": mx.uint32,
        "U8": mx.uint8,
    }
    try:
        return dtypes[source.entry.dtype]
    except KeyError:
        raise UserError(
            f"{source.entry.file}: {source.entry.name} is stored as {source.entry.dtype}, which "
            "cannot be converted; start from float32, float16 or bfloat16 weights"
        ) from None


def quantization_error(quantization: Quantization) -> str | None:
    """What is wrong with a quantisation, as MLX itself sees it; None when it can be run."""
    try:
        layer = nn.Linear(quantization.group_size * 2, 8, bias=False)
        layer.to_quantized(quantization.group_size, quantization.bits, quantization.mode)
    except (ValueError, TypeError) as problem:
        return str(problem)
    return None
