"""A conversion from start to end."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from llavacot_mlx.config import Quantization
from llavacot_mlx.convert.plan import PlannedTensor, Step, plan_steps, quantization_error
from llavacot_mlx.convert.settings import copy_settings, write_config
from llavacot_mlx.convert.shards import write_weights
from llavacot_mlx.convert.source import Source
from llavacot_mlx.convert.target import Target, written
from llavacot_mlx.errors import UserError
from llavacot_mlx.weights import named_dtype, read_tensors


@dataclass(frozen=True)
class Progress:
    """How far a conversion is."""

    read_bytes: int
    total_bytes: int
    tensor: str
    """The tensor that was just converted."""


@dataclass(frozen=True)
class Converted:
    """What a conversion wrote."""

    folder: Path
    source_bytes: int
    weight_bytes: int
    dtypes: tuple[str, ...]
    """Types of the unquantised weights, as safetensors calls them."""


def convert(
    source: Path,
    target: Path,
    *,
    dtype: str | None = None,
    quantization: Quantization | None = None,
    force: bool = False,
    progress: Callable[[Progress], None] = lambda _: None,
) -> Converted:
    """Converts the checkpoint folder `source` to the MLX folder `target`.

    `dtype` is "float32", "float16" or "bfloat16" for the weights that are not quantised, or None
    to keep each one's own. The folder appears when it is whole: until then everything is written
    to a hidden sibling, which is removed if anything goes wrong.

    Raises UserError when the source is no whole Mllama, a weight is not finite, the quantisation
    does not fit, the target exists and `force` is not set, or the disk is full.
    """
    wanted = Target(target, "--mlx-path", force)
    wanted.check_replaceable(source)
    checkpoint = Source.open(source)
    config = checkpoint.config
    if quantization is not None:
        if config.quantization is not None:
            raise UserError(f"{source} is quantised already: start from the full-precision weights")
        if problem := quantization_error(quantization):
            raise UserError(f"this quantisation cannot be run: {problem}")
    kept = None if dtype is None else named_dtype(dtype)
    steps = plan_steps(config, checkpoint.tensors, kept, quantization)
    size = sum(step.nbytes for step in steps)
    reporter = _Reporter(steps, progress)
    with written(wanted, source, size=size) as partial:
        copy_settings(source, partial)
        write_config(source, partial, config, dtype, quantization)
        write_weights(partial, steps, lambda shard: _arrays(shard, reporter))
    return Converted(target, reporter.total, size, _plain_dtypes(steps))


class _Reporter:
    def __init__(self, steps: list[Step], progress: Callable[[Progress], None]) -> None:
        self.total = sum(step.source.entry.nbytes for step in steps)
        self._done = 0
        self._progress = progress

    def report(self, step: Step) -> None:
        self._done += step.source.entry.nbytes
        self._progress(Progress(self._done, self.total, step.source.name))


def _arrays(steps: list[Step], reporter: _Reporter) -> Iterator[mx.array]:
    """The arrays that the steps plan, in order, each computed when it is asked for."""
    for step in steps:
        (array,) = read_tensors([step.source]).values()
        parts = _converted(array, step)
        mx.eval(parts)
        _check_finite(array, parts, step)
        yield from parts
        reporter.report(step)


def _converted(array: mx.array, step: Step) -> list[mx.array]:
    floats = [t.dtype for t in step.targets if mx.issubdtype(t.dtype, mx.floating)]
    if floats:
        array = array.astype(floats[0])
    if step.quantization is None:
        return [array]
    chosen = step.quantization
    return list(mx.quantize(array, chosen.group_size, chosen.bits, chosen.mode))


def _check_finite(source: mx.array, parts: list[mx.array], step: Step) -> None:
    if not mx.issubdtype(source.dtype, mx.floating):
        return
    name, file = step.source.entry.name, step.source.entry.file
    if not mx.all(mx.isfinite(source)).item():
        raise UserError(f"{file}: {name} holds NaN or infinite values; this checkpoint is damaged")
    for part, planned in zip(parts, step.targets, strict=True):
        if mx.issubdtype(planned.dtype, mx.floating) and not mx.all(mx.isfinite(part)).item():
            raise UserError(f"{file}: {name} holds values too large for the type: use bfloat16")


def _plain_dtypes(steps: list[Step]) -> tuple[str, ...]:
    plain: set[PlannedTensor] = {step.targets[0] for step in steps if step.quantization is None}
    return tuple(sorted({str(planned.dtype).removeprefix("mlx.core.") for planned in plain}))
