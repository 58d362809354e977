"""Saves and reads the weights of an adapter folder, and applies them to a model in memory.

The folder has mlx-lm's layout: `adapters.safetensors` and `adapter_config.json`. Tensors are named
`<module's path>.lora_a`, `.lora_b` and, for DoRA, `.m`. The path is our canonical one, such as
`language_model.model.layers.0.self_attn.q_proj`. After full fine-tuning, the tensors are the
trained weights under their own names.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from llavacot_mlx.atomic import replace_file
from llavacot_mlx.checked import brief
from llavacot_mlx.checkpoint.adapter_config import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    AdapterConfig,
    FineTuneType,
)
from llavacot_mlx.checkpoint.dtypes import FLOATS
from llavacot_mlx.checkpoint.finite import is_finite
from llavacot_mlx.checkpoint.safetensors import TensorEntry, read_header
from llavacot_mlx.checkpoint.weights import SourceTensor, read_tensors
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.linear import dims_of
from llavacot_mlx.model.lora import DoRALinear, LoRALinear
from llavacot_mlx.model.mllama import Mllama


@dataclass(frozen=True)
class LowRank:
    """The update of a linear layer: ΔW = scale · (A B)ᵀ, and for DoRA the norms of the new rows."""

    a: mx.array
    """(inputs, rank)"""
    b: mx.array
    """(rank, outputs)"""
    m: mx.array | None
    """(outputs,), for DoRA only."""


@dataclass(frozen=True)
class Adapter:
    """An adapter in memory."""

    config: AdapterConfig
    layers: Mapping[str, LowRank] = field(default_factory=dict)
    """The low-rank updates by module path; empty after full fine-tuning."""
    weights: Mapping[str, SourceTensor] = field(default_factory=dict)
    """After full fine-tuning, the trained weights by our names, still on disk: they may be as large
    as the model."""

    @property
    def tensors(self) -> dict[str, mx.array]:
        """The tensors of the low-rank updates, by their names in the file."""
        tensors: dict[str, mx.array] = {}
        for path, layer in self.layers.items():
            tensors |= {f"{path}.lora_a": layer.a, f"{path}.lora_b": layer.b}
            if layer.m is not None:
                tensors[f"{path}.m"] = layer.m
        return tensors


def save_adapter(folder: Path, tensors: Mapping[str, mx.array], config: AdapterConfig) -> None:
    """Writes an adapter folder; creates the folder, or replaces an older adapter in it.

    An interruption leaves the older adapter, the new one, or a folder without
    `adapter_config.json`, which is not recognized as an adapter. Raises UserError when the folder
    cannot be written.
    """
    text = config.to_json().encode()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        known = folder / CONFIG_NAME
        if known.exists() and known.read_bytes() != text:
            known.unlink()  # an old configuration must never stand beside new weights
    except OSError as problem:
        raise UserError(f"{folder} cannot be written: {problem.strerror or problem}") from None
    file = folder / WEIGHTS_NAME
    with replace_file(file) as partial:
        try:
            mx.save_safetensors(str(partial), dict(tensors), {"format": "mlx"})
        except RuntimeError as problem:
            raise UserError(f"{file} cannot be written: {problem}") from None
    config.write(folder)


def read_adapter(folder: Path) -> Adapter:
    """Reads an adapter folder.

    Raises UserError when a file is missing or damaged, a value of a low-rank update is not finite,
    or the tensors do not match the configuration.
    """
    config = AdapterConfig.read(folder)
    file = folder / WEIGHTS_NAME
    if config.lora is None:
        entries = _float_entries(file)
        return Adapter(config, weights={n: SourceTensor(n, e, False) for n, e in entries.items()})
    layers = _layers(read_floats(file), config.lora.rank, config.fine_tune_type, file)
    return Adapter(config, layers=layers)


def _layers(
    tensors: Mapping[str, mx.array], rank: int, kind: FineTuneType, file: Path
) -> dict[str, LowRank]:
    """Groups the tensors of a file by module."""
    parts = {"lora_a": 2, "lora_b": 2}
    if kind is FineTuneType.DORA:
        parts["m"] = 1
    for name, tensor in tensors.items():
        part = name.rpartition(".")[2]
        if part not in parts or tensor.ndim != parts[part]:
            raise UserError(
                f"{file}: {brief(name)} of shape {list(tensor.shape)} is not part of a "
                f"{kind.value} adapter"
            )
    layers = {}
    for path in sorted({name.rpartition(".")[0] for name in tensors}):
        for part in parts:
            if f"{path}.{part}" not in tensors:
                raise UserError(f"{file}: {brief(path)}.{part} is missing")
        layer = LowRank(
            tensors[f"{path}.lora_a"], tensors[f"{path}.lora_b"], tensors.get(f"{path}.m")
        )
        if not layer.a.shape[1] == layer.b.shape[0] == rank:
            raise UserError(
                f"{file}: {brief(path)} has rank {layer.a.shape[1]} in lora_a and "
                f"{layer.b.shape[0]} in lora_b; {CONFIG_NAME} says {rank}"
            )
        layers[path] = layer
    return layers


def read_floats(file: Path) -> dict[str, mx.array]:
    """Reads the tensors of a small safetensors file.

    Raises UserError when it is missing, damaged or empty, or holds values that are not finite.
    """
    _float_entries(file)
    try:
        tensors: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]
    except RuntimeError as problem:
        raise UserError(f"{file} cannot be read: {problem}") from None
    for name, tensor in tensors.items():
        _check_finite(file, name, tensor)
    return tensors


def _float_entries(file: Path) -> dict[str, TensorEntry]:
    header = read_header(file)
    if not header:
        raise UserError(f"{file}: there are no tensors in it")
    for name, entry in header.items():
        if entry.dtype not in FLOATS:
            raise UserError(
                f"{file}: {brief(name)} is stored as {entry.dtype}, which no adapter is"
            )
    return header


def _check_finite(file: Path, name: str, tensor: mx.array) -> None:
    if not is_finite(tensor).item():
        raise UserError(f"{file}: {brief(name)} holds NaN or infinite values; train it again")


def load_adapter(model: Mllama, folder: Path, base: Path) -> AdapterConfig:
    """Applies the adapter in `folder` to a model that was loaded from the folder `base`.

    The adapted linear layers are wrapped in LoRALinear or DoRALinear, so that a quantized base
    stays quantized. All parameters are frozen, and the model is in evaluation mode; the adapter's
    tensors have the type of the model's activations. Returns the adapter's configuration.

    Raises UserError when the adapter is incomplete, was trained on another base, or holds a tensor
    that matches nothing in the model.
    """
    AdapterConfig.read(folder).check_base(folder, base)
    adapter = read_adapter(folder)
    check_fits(adapter, model, folder / WEIGHTS_NAME)
    dtype = model.language_model.model.norm.weight.dtype
    if adapter.config.lora is None:
        for name, weight in adapter.weights.items():  # one by one: they may be as large as the base
            (array,) = read_tensors([weight]).values()
            _check_finite(weight.entry.file, name, array)
            array = array.astype(dtype)
            mx.eval(array)
            model.load_weights([(name, array)], strict=False)
    else:
        linears = dict(model.named_modules())
        for path, low_rank in adapter.layers.items():
            layer = _wrapped(linears[path], low_rank, adapter.config, dtype)
            model.update_modules(tree_unflatten([(path, layer)]))
    model.freeze()
    model.eval()
    return adapter.config


def _wrapped(
    linear: nn.Module, low_rank: LowRank, config: AdapterConfig, dtype: mx.Dtype
) -> LoRALinear:
    assert config.lora is not None
    kind = LoRALinear if low_rank.m is None else DoRALinear
    layer = kind(linear, config.lora.rank, config.lora.scale, config.lora.dropout)
    layer.lora_a, layer.lora_b = low_rank.a.astype(mx.float32), low_rank.b.astype(mx.float32)
    if isinstance(layer, DoRALinear):
        assert low_rank.m is not None
        layer.m = low_rank.m.astype(mx.float32)
        layer.freeze_norms()  # computed in float32, as in a fused model
    layer.lora_a, layer.lora_b = low_rank.a.astype(dtype), low_rank.b.astype(dtype)
    mx.eval(layer.parameters())
    return layer


def check_fits(adapter: Adapter, model: Mllama, file: Path) -> None:
    """Raises UserError when a tensor of the adapter matches nothing in the model.

    Only shapes are compared, so the model need not have its weights. `file` is named in errors.
    """
    parameters = {name: tuple(array.shape) for name, array in tree_flatten(model.parameters())}
    modules = dict(model.named_modules())
    for name, weight in adapter.weights.items():
        if name not in parameters:
            raise UserError(f"{file}: {brief(name)} belongs to no part of this model")
        _check_shape(file, name, weight.shape, parameters[name])
    for path, layer in adapter.layers.items():
        linear = modules.get(path)
        if not isinstance(linear, nn.Linear | nn.QuantizedLinear):
            raise UserError(f"{file}: {brief(path)} is not a linear layer of this model")
        outputs, inputs = dims_of(linear)
        _check_shape(file, f"{path}.lora_a", layer.a.shape, (inputs, layer.a.shape[1]))
        _check_shape(file, f"{path}.lora_b", layer.b.shape, (layer.b.shape[0], outputs))
        if layer.m is not None:
            _check_shape(file, f"{path}.m", layer.m.shape, (outputs,))


def _check_shape(file: Path, name: str, shape: Sequence[int], wanted: Sequence[int]) -> None:
    if tuple(shape) != tuple(wanted):
        raise UserError(
            f"{file}: {brief(name)} has the shape {list(shape)}; this model asks for {list(wanted)}"
        )
