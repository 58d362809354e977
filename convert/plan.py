"""The plan of a conversion: what becomes of each tensor, decided from the headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import mlx.core as mx
from mlx.utils import tree_flatten

from llavacot_mlx.checkpoint.dtypes import mlx_dtype, named_dtype
from llavacot_mlx.checkpoint.weights import SourceTensor, quantize_modules
from llavacot_mlx.convert.recipes import Choice, Recipe, matches, uniform
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import ModelConfig, Quantization, QuantizationMap
from llavacot_mlx.model.mllama import Mllama


@dataclass(frozen=True)
class PlannedTensor:
    """A tensor to be written."""

    name: str
    shape: tuple[int, ...]
    dtype: mx.Dtype

    @property
    def nbytes(self) -> int:
        return math.prod(self.shape) * self.dtype.size


@dataclass(frozen=True)
class TensorStep:
    """A source tensor and what it becomes: a copy, or the parts of a quantized weight."""

    source: SourceTensor
    targets: tuple[PlannedTensor, ...]
    quantization: Quantization | None

    @property
    def module(self) -> str:
        return self.source.name.removesuffix(".weight")

    @property
    def nbytes(self) -> int:
        return sum(target.nbytes for target in self.targets)


def plan_steps(
    config: ModelConfig,
    sources: Mapping[str, SourceTensor],
    dtype: mx.Dtype | None,
    quantization: Quantization | Recipe | None,
) -> list[TensorStep]:
    """Plans the steps of a conversion, in the order of the source's files.

    `dtype` is the type of unquantized weights, or None to keep each one's own; a recipe may
    override it. A `Quantization` applies to the whole text model. Raises UserError when the
    quantization does not fit a weight.
    """
    chosen: dict[str, Quantization] = {}
    plain: dict[str, mx.Dtype] = {}
    if isinstance(quantization, Quantization):
        chosen, plain = _apply_recipe(uniform(quantization), config, sources)
        _check_widths(chosen, sources, "--q-group-size")
    elif quantization is not None:
        chosen, plain = _apply_recipe(quantization, config, sources)
        _check_widths(chosen, sources, f"{quantization.name}: group_size")
    quantized = _quantized_tree(config, chosen)
    steps = []
    for source in sorted(sources.values(), key=lambda tensor: str(tensor.entry.file)):
        own = _dtype_of(source)
        wanted = plain.get(source.name, dtype)
        kept = wanted if wanted is not None and mx.issubdtype(own, mx.floating) else own
        module = source.name.removesuffix(".weight")
        if module in chosen and source.name.endswith(".weight"):
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
            steps.append(TensorStep(source, targets, chosen[module]))
        else:
            target = PlannedTensor(source.name, source.shape, kept)
            steps.append(TensorStep(source, (target,), None))
    return steps


def quantization_map(steps: Sequence[TensorStep]) -> QuantizationMap | None:
    """The quantization for `config.json`; the one that covers most weights is the default."""
    chosen = [(step, step.quantization) for step in steps if step.quantization is not None]
    totals: dict[Quantization, int] = {}
    for step, each in chosen:
        totals[each] = totals.get(each, 0) + math.prod(step.source.shape)
    default = max(totals, key=lambda each: totals[each], default=None)
    if default is None:
        return None
    return QuantizationMap(default, {step.module: each for step, each in chosen if each != default})


def bits_per_weight(steps: Sequence[TensorStep]) -> float:
    """Average bits per weight, with the scales and biases of the groups."""
    weights = sum(math.prod(step.source.shape) for step in steps)
    return 8 * sum(step.nbytes for step in steps) / weights


def _apply_recipe(
    recipe: Recipe, config: ModelConfig, sources: Mapping[str, SourceTensor]
) -> tuple[dict[str, Quantization], dict[str, mx.Dtype]]:
    """The quantization of each module, and the type of each other tensor that the recipe names."""
    layers = config.text.num_hidden_layers
    packable = {
        path for path, module in Mllama(config).named_modules() if hasattr(module, "to_quantized")
    }
    chosen: dict[str, Quantization] = {}
    plain: dict[str, mx.Dtype] = {}
    modules = {name: name.removesuffix(".weight").removesuffix(".bias") for name in sources}
    choice: Choice | None
    for pattern, choice in recipe.rules:
        named = [name for name, module in modules.items() if matches(pattern, module, layers)]
        if isinstance(choice, Quantization):
            named = [name for name in named if modules[name] in packable]
            if choice.error:
                raise UserError(
                    f"{recipe.name}: {pattern}: this quantization cannot be run: {choice.error}"
                )
        if not named:
            raise UserError(f"{recipe.name}: the pattern {pattern} is for no weight of this model")
    for name, module in modules.items():
        choice = recipe.choice_for(module, layers)
        if isinstance(choice, str):
            plain[name] = named_dtype(choice)
        elif choice is not None and module in packable and name.endswith(".weight"):
            chosen[module] = choice
    return chosen, plain


def _check_widths(
    chosen: Mapping[str, Quantization], sources: Mapping[str, SourceTensor], setting: str
) -> None:
    """Raises UserError if a group size does not divide a row; `setting` names the setting."""
    for module, quantization in chosen.items():
        source, size = sources[f"{module}.weight"], quantization.group_size
        width = source.shape[-1]
        if width % size:
            sizes = (32, 64, 128) if quantization.mode == "affine" else ()
            fitting = ", ".join(str(each) for each in sizes if width % each == 0)
            raise UserError(
                f"{setting} {size} does not divide the width {width} of {source.name}; sizes that "
                f"would: {fitting or 'none'}"
            )


def _quantized_tree(config: ModelConfig, chosen: Mapping[str, Quantization]) -> dict[str, mx.array]:
    """The unevaluated parameters of a model with the chosen modules quantized."""
    if not chosen:
        return {}
    model = Mllama(config)
    default = next(iter(chosen.values()))
    quantize_modules(model, QuantizationMap(default, chosen), {f"{path}.scales" for path in chosen})
    return dict(tree_flatten(model.parameters()))


def _dtype_of(source: SourceTensor) -> mx.Dtype:
    try:
        return mlx_dtype(source.entry.dtype)
    except KeyError:
        raise UserError(
            f"{source.entry.file}: {source.entry.name} is stored as {source.entry.dtype}, which "
            "cannot be converted; start from float32, float16 or bfloat16 weights"
        ) from None
