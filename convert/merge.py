"""A model with an adapter merged into its weights, written one tensor at a time.

Weights that the adapter does not change are copied byte for byte; an update is added in float32.
Quantized layers that change are quantized again with their own settings, unless everything is
dequantized.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import mlx.core as mx

from llavacot_mlx.checkpoint.adapters import Adapter, LowRank
from llavacot_mlx.checkpoint.finite import is_finite
from llavacot_mlx.checkpoint.weight_names import PATCH_EMBEDDING, hub_name
from llavacot_mlx.checkpoint.weights import SourceTensor, read_tensors
from llavacot_mlx.convert.convert import Progress
from llavacot_mlx.convert.model_files import copy_calibration, copy_settings, write_config
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.plan import PlannedTensor
from llavacot_mlx.convert.shards import write_weights
from llavacot_mlx.convert.source import SourceCheckpoint
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import ModelConfig, Quantization

_NORM = "language_model.model.norm.weight"  # never quantized: has the plain weights' type

_Arrays = list[mx.array]


@dataclass
class Survival:
    """How much of an adapter's change outlives the rounding into few bits."""

    _kept: float = 0.0
    _whole: float = 0.0

    def add(self, before: mx.array, wanted: mx.array, after: mx.array) -> None:
        """Counts one weight: unchanged, changed, and as it is after the rounding; in float32."""
        change = wanted - before
        self._kept += mx.sum(change * (after - before)).item()  # type: ignore[assignment]
        self._whole += mx.sum(change * change).item()  # type: ignore[assignment]

    @property
    def share(self) -> float | None:
        """The change that was written, along the change that was meant; None if none was rounded.

        1 is all of it. Rounding errors across the change do not count, nor does their length.
        """
        return self._kept / self._whole if self._whole else None


@dataclass(frozen=True)
class Merging:
    """How a model's weights are to be changed."""

    adapter: Adapter | None = None
    """One that fits the model (`adapters.check_fits`)."""
    dequantize: bool = False
    dtype: mx.Dtype | None = None
    """The type of unquantized weights; None keeps each one's own."""
    survival: Survival = field(default_factory=Survival)
    """Filled while requantized layers are merged."""
    for_hub: bool = False
    """Names and convolution layout of Hugging Face checkpoints, instead of MLX folders."""


@dataclass(frozen=True)
class Merge:
    """A group of source tensors, such as a weight and its scales, and what is computed from it."""

    sources: tuple[SourceTensor, ...]
    targets: tuple[PlannedTensor, ...]
    compute: Callable[[_Arrays], _Arrays]
    """Computes the arrays of `targets` from those of `sources`, before the cast to their types."""

    @property
    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)

    @property
    def source_bytes(self) -> int:
        return sum(source.entry.nbytes for source in self.sources)


def plan_merges(
    config: ModelConfig, sources: Mapping[str, SourceTensor], wanted: Merging
) -> list[Merge]:
    """Plans the merges, in the order of the source's files."""
    planner = _Planner(config, sources, wanted)
    in_order = sorted(sources.values(), key=lambda tensor: str(tensor.entry.file))
    return [merge for source in in_order for merge in planner.merges_of(source)]


class _Planner:
    def __init__(
        self, config: ModelConfig, sources: Mapping[str, SourceTensor], wanted: Merging
    ) -> None:
        self._config, self._sources, self._wanted = config, sources, wanted
        adapter = wanted.adapter
        self._trained = adapter.weights if adapter else {}
        self._updates = adapter.layers if adapter else {}
        self._scale = adapter.config.lora.scale if adapter and adapter.config.lora else 0.0
        self._plain = wanted.dtype or sources[_NORM].dtype

    def merges_of(self, source: SourceTensor) -> list[Merge]:
        """The merge that a tensor starts; empty for scales and biases."""
        module, _, leaf = source.name.rpartition(".")
        quantized = f"{module}.scales" in self._sources
        if quantized and leaf in ("scales", "biases"):
            return []
        if quantized and leaf == "weight":
            return [self._quantized(module)]
        update = self._updates.get(module) if leaf == "weight" else None
        own = source.dtype
        kept = self._wanted.dtype if self._wanted.dtype and mx.issubdtype(own, mx.floating) else own
        name, shape = source.name, source.shape
        compute: Callable[[_Arrays], _Arrays] = list
        if update is not None:
            compute = partial(_update_plain, update, self._scale)
        if self._wanted.for_hub:
            name = hub_name(name)
            if source.name == PATCH_EMBEDDING:
                out, height, width, channels = shape
                shape, compute = (out, channels, height, width), _channels_first
        read = self._trained.get(source.name, source)
        return [Merge((read,), (PlannedTensor(name, shape, kept),), compute)]

    def _quantized(self, module: str) -> Merge:
        assert self._config.quantization is not None
        chosen = self._config.quantization.of(module)
        names = [f"{module}.{part}" for part in ("weight", "scales", "biases")]
        stored = [self._sources[name] for name in names if name in self._sources]
        read = tuple(self._trained.get(source.name, source) for source in stored)
        update = self._updates.get(module)
        if self._wanted.dequantize:
            weight, scales = stored[:2]
            shape = (*weight.shape[:-1], scales.shape[-1] * chosen.group_size)
            planned = PlannedTensor(_name(f"{module}.weight", self._wanted), shape, self._plain)
            return Merge(read, (planned,), partial(_dequantized, chosen, update, self._scale))
        targets = tuple(
            PlannedTensor(_name(source.name, self._wanted), source.shape, source.dtype)
            for source in stored
        )
        if update is None:
            return Merge(read, targets, list)
        return Merge(
            read, targets, partial(_requantized, chosen, update, self._scale, self._wanted.survival)
        )


def _name(ours: str, wanted: Merging) -> str:
    return hub_name(ours) if wanted.for_hub else ours


def _channels_first(arrays: _Arrays) -> _Arrays:
    return [array.transpose(0, 3, 1, 2) for array in arrays]


def _update_plain(update: LowRank, scale: float, arrays: _Arrays) -> _Arrays:
    (weight,) = arrays
    return [_with_update(weight.astype(mx.float32), update, scale)]


def dequantize_stored(chosen: Quantization, arrays: Sequence[mx.array]) -> mx.array:
    """The plain weight, in float32, of a stored weight, its scales and, in some modes, biases."""
    weight, scales, biases = *arrays[:2], arrays[2] if len(arrays) > 2 else None
    return mx.dequantize(
        weight,
        scales,
        biases,
        group_size=chosen.group_size,
        bits=chosen.bits,
        mode=chosen.mode,
    ).astype(mx.float32)


def _dequantized(
    chosen: Quantization, update: LowRank | None, scale: float, arrays: _Arrays
) -> _Arrays:
    plain = dequantize_stored(chosen, arrays)
    return [plain if update is None else _with_update(plain, update, scale)]


def _requantized(
    chosen: Quantization, update: LowRank, scale: float, survival: Survival, arrays: _Arrays
) -> _Arrays:
    (before,) = _dequantized(chosen, None, scale, arrays)
    wanted = weight = _with_update(before, update, scale)
    if mx.issubdtype(arrays[1].dtype, mx.floating):
        weight = weight.astype(arrays[1].dtype)  # the scales get their type from the weight
    rounded = list(mx.quantize(weight, chosen.group_size, chosen.bits, chosen.mode))
    (after,) = _dequantized(chosen, None, scale, rounded)
    survival.add(before, wanted, after)
    return rounded


def _with_update(weight: mx.array, update: LowRank, scale: float) -> mx.array:
    """The weight (outputs, inputs) with the adapter's update merged into it, in float32."""
    a, b = update.a.astype(mx.float32), update.b.astype(mx.float32)
    weight = weight + scale * (a @ b).T
    if update.m is None:
        return weight
    return (update.m.astype(mx.float32) / mx.linalg.norm(weight, axis=1))[:, None] * weight


@dataclass(frozen=True)
class Written:
    """The folder that was written."""

    folder: Path
    weight_bytes: int
    survived: float | None = None
    """`Survival.share` of the adapter's change."""


def write_merged(
    source: SourceCheckpoint,
    output: OutputFolder,
    inputs: Sequence[Path],
    merging: Merging,
    add_settings: Callable[[Path], None],
    progress: Callable[[Progress], None],
) -> Written:
    """Writes `source` to `output`, its weights changed as `merging` says.

    `inputs` are the folders that are read, and `output` must not contain them. `add_settings` gets
    the unfinished folder, after the settings and `config.json` of the source were written to it.
    Raises UserError when the output cannot be written; then nothing is left behind.
    """
    merges = plan_merges(source.config, source.tensors, merging)
    size = sum(merge.nbytes for merge in merges)
    reporter = _MergeReporter(merges, progress)
    dtype = None if merging.dtype is None else str(merging.dtype).removeprefix("mlx.core.")
    with output.replace(*inputs, size=size) as partial:
        copy_settings(source.folder, partial)
        if merging.adapter is None and merging.dtype is None:  # the same weights
            copy_calibration(source.folder, partial)
        write_config(source.folder, partial, source.config, dtype, None)
        add_settings(partial)
        made_for = "pt" if merging.for_hub else "mlx"
        write_weights(partial, merges, lambda some: _merged(some, reporter), made_for)
    return Written(output.folder, size, merging.survival.share)


class _MergeReporter:
    """Reports the progress of the merges."""

    def __init__(self, merges: Sequence[Merge], progress: Callable[[Progress], None]) -> None:
        self._total = sum(merge.source_bytes for merge in merges)
        self._done = 0
        self._progress = progress

    def report(self, merge: Merge) -> None:
        self._done += merge.source_bytes
        self._progress(Progress(self._done, self._total, merge.targets[0].name))


def _merged(merges: Sequence[Merge], reporter: _MergeReporter) -> Iterator[mx.array]:
    """Yields the planned tensors in order, each computed when it is needed.

    Raises UserError for a tensor that would not be finite.
    """
    for merge in merges:
        read = read_tensors(list(merge.sources))
        arrays = merge.compute([read.pop(source.name) for source in merge.sources])
        for array, planned in zip(arrays, merge.targets, strict=True):
            made = array.astype(planned.dtype)
            mx.eval(made)
            if mx.issubdtype(made.dtype, mx.floating) and not is_finite(made).item():
                raise UserError(
                    f"{merge.sources[0].entry.file}: {planned.name} would hold NaN, or values too "
                    f"large for {str(planned.dtype).removeprefix('mlx.core.')}"
                )
            yield made
        reporter.report(merge)
