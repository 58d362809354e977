"""Conversion of adapters that mlx-lm and mlx-vlm trained.

Both keep A as (inputs, rank) and B as (rank, outputs), as we do, but not which base they are for.
mlx-vlm's older layout names them `A` and `B`, and stores α instead of scale = α / rank.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import mlx.core as mx

from llavacot_mlx.checked import KeyRules, PositiveInt, Range, checked, named, read_json
from llavacot_mlx.checkpoint.adapter_config import (
    CONFIG_NAME,
    WEIGHTS_NAME,
    AdapterConfig,
    Base,
    FineTuneType,
    LoRAParameters,
)
from llavacot_mlx.checkpoint.adapters import Adapter, LowRank, read_floats, save_adapter
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.peft import check_foreign_fits, full_path, keys_of
from llavacot_mlx.convert.source import SourceCheckpoint
from llavacot_mlx.errors import UserError

_PARTS = {"A": "lora_a", "B": "lora_b", "lora_a": "lora_a", "lora_b": "lora_b", "m": "m"}
_RULES = KeyRules(unknown=None)
_Dropout = Annotated[float, Range(min=0, below=1)]


@dataclass(frozen=True)
class _Older:
    """mlx-vlm's older layout."""

    rank: PositiveInt
    alpha: float
    dropout: _Dropout = 0.0


@dataclass(frozen=True)
class _Parameters:
    rank: PositiveInt
    scale: float
    dropout: _Dropout = 0.0


@dataclass(frozen=True)
class _Newer:
    fine_tune_type: FineTuneType
    lora_parameters: _Parameters


def read_mlx_adapter(folder: Path, output: OutputFolder, base: str, base_folder: Path) -> Path:
    """Writes the adapter of mlx-lm or mlx-vlm in `folder` as one of ours for `base_folder`.

    `base` is the user's name for that model. Raises UserError when the adapter is incomplete, holds
    whole weights, or does not fit the model, or when the output cannot be written; then nothing is
    left behind.
    """
    output.check_replaceable(folder, base_folder)
    source = SourceCheckpoint.open(base_folder)
    kind, settings = _settings(folder)
    file = folder / WEIGHTS_NAME
    layers = _layers(read_floats(file), file, kind, settings.rank)
    lora = LoRAParameters(settings.rank, settings.scale, settings.dropout, keys_of(layers))
    config = AdapterConfig(kind, -1, lora, Base.of(base, base_folder))
    adapter = Adapter(config, layers)
    check_foreign_fits(adapter, source, file)
    size = sum(tensor.nbytes for tensor in adapter.tensors.values())
    with output.replace(folder, base_folder, size=size) as partial:
        save_adapter(partial, adapter.tensors, config)
    return output.folder


def _settings(folder: Path) -> tuple[FineTuneType, _Parameters]:
    file = folder / CONFIG_NAME
    value = read_json(file)
    with named(file):
        if "rank" in value:
            older = checked(_Older, value, _RULES)
            scale = older.alpha / older.rank
            return FineTuneType.LORA, _Parameters(older.rank, scale, older.dropout)
        if value.get("fine_tune_type") == FineTuneType.FULL:
            raise UserError(
                "holds whole weights (full): save the model itself with the program that trained "
                "it, and convert that"
            )
        newer = checked(_Newer, value, _RULES)
    return newer.fine_tune_type, newer.lora_parameters


def _layers(
    tensors: Mapping[str, mx.array], file: Path, kind: FineTuneType, rank: int
) -> dict[str, LowRank]:
    parts: dict[str, dict[str, mx.array]] = {}
    for name, tensor in tensors.items():
        module, _, part = name.rpartition(".")
        if part not in _PARTS or tensor.ndim != (1 if part == "m" else 2):
            raise UserError(f"{file}: {name} is no part of a LoRA or DoRA of linear layers")
        parts.setdefault(full_path(module), {})[_PARTS[part]] = tensor
    wanted = {"lora_a", "lora_b"} | ({"m"} if kind is FineTuneType.DORA else set())
    layers = {}
    for path, found in parts.items():
        if found.keys() != wanted:
            raise UserError(
                f"{file}: of the layer {path} there are {', '.join(sorted(found))}; it takes "
                f"{', '.join(sorted(wanted))}"
            )
        layer = LowRank(found["lora_a"], found["lora_b"], found.get("m"))
        if not layer.a.shape[1] == layer.b.shape[0] == rank:
            raise UserError(f"{file}: {path} is not of the rank {rank} that {CONFIG_NAME} says")
        layers[path] = layer
    return layers
