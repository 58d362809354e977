"""Conversion of adapters to and from the layout of Hugging Face's PEFT.

PEFT names a layer by its path in transformers' model (`base_model.model.` before it), keeps A
as (rank, inputs) and B as (outputs, rank), and stores α instead of scale = α / rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import mlx.core as mx

from llavacot_mlx.checked import KeyRules, PositiveInt, checked, named, read_json, shown
from llavacot_mlx.checkpoint.adapter_config import (
    CONFIG_NAME,
    AdapterConfig,
    Base,
    FineTuneType,
    LoRAParameters,
)
from llavacot_mlx.checkpoint.adapters import (
    Adapter,
    LowRank,
    check_fits,
    read_adapter,
    read_floats,
    save_adapter,
)
from llavacot_mlx.checkpoint.weight_files import PEFT_WEIGHTS_NAME
from llavacot_mlx.checkpoint.weight_names import canonical_name, name_in_memory
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.source import SourceCheckpoint
from llavacot_mlx.errors import UserError

_BEFORE = "base_model.model."
# The last part of a tensor's name, theirs and ours. PEFT itself writes the magnitude's name both
# with and without the last word, depending on its version.
_PARTS = {
    "lora_A.weight": "lora_a",
    "lora_B.weight": "lora_b",
    "lora_magnitude_vector": "m",
    "lora_magnitude_vector.weight": "m",
}

# Beside an adapter of the output head, PEFT saves an unchanged copy of the base's embeddings.
_COPIES = ("lm_head.base_layer.weight", "embed_tokens.weight")

# Settings that are read here, or that do not affect what a trained adapter computes.
_READ = frozenset({
    "auto_mapping", "base_model_name_or_path", "corda_config", "ensure_weight_tying", "eva_config",
    "exclude_modules", "inference_mode", "init_lora_weights", "layers_pattern",
    "layers_to_transform", "loftq_config", "lora_alpha", "lora_dropout", "lora_ga_config",
    "megatron_config", "megatron_core", "peft_type", "peft_version", "qalora_group_size", "r",
    "alpha_pattern", "rank_pattern", "revision", "runtime_config", "target_modules", "task_type",
    "use_dora", "use_rslora",
})  # fmt: skip
# Other initializations also change the base's weights, so the adapter fits no base on disk.
_BEGINNINGS = (True, False, None, "gaussian", "eva", "orthogonal")


def write_peft(folder: Path, output: OutputFolder) -> Path:
    """Writes the adapter in `folder` as a PEFT adapter.

    Raises UserError when the adapter is incomplete or not a LoRA or DoRA, or when the output cannot
    be written; then nothing is left behind.
    """
    output.check_replaceable(folder)
    adapter = read_adapter(folder)
    lora = adapter.config.lora
    if lora is None:
        raise UserError(
            f"{folder} holds whole weights, for which PEFT has no layout: export the model with "
            f"--adapter-path {folder}"
        )
    tensors: dict[str, mx.array] = {}
    for path, layer in adapter.layers.items():
        before = f"{_BEFORE}{_path_in_memory(path)}"
        tensors[f"{before}.lora_A.weight"] = mx.contiguous(layer.a.T)
        tensors[f"{before}.lora_B.weight"] = mx.contiguous(layer.b.T)
        if layer.m is not None:
            tensors[f"{before}.lora_magnitude_vector"] = layer.m
    mx.eval(tensors)
    size = sum(tensor.nbytes for tensor in tensors.values())
    with output.replace(folder, size=size) as partial:
        mx.save_safetensors(str(partial / PEFT_WEIGHTS_NAME), tensors, {"format": "pt"})
        text = json.dumps(_peft_config(adapter, lora), indent=2, ensure_ascii=False)
        (partial / CONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    return output.folder


def read_peft(folder: Path, output: OutputFolder, base: str, base_folder: Path) -> Path:
    """Writes the PEFT adapter in `folder` as an MLX adapter for the model in `base_folder`.

    `base` is the user's name for that model. Raises UserError when the adapter is incomplete, uses
    a feature that is not supported here, or does not fit the model, or when the output cannot be
    written; then nothing is left behind.
    """
    output.check_replaceable(folder, base_folder)
    source = SourceCheckpoint.open(base_folder)
    config = _Config.read(folder / CONFIG_NAME)
    layers = _layers(folder / PEFT_WEIGHTS_NAME, config, source)
    lora = LoRAParameters(
        rank=max(layer.a.shape[1] for layer in layers.values()),
        scale=config.scale_of(""),
        dropout=config.lora_dropout,
        keys=_keys(layers),
    )
    adapter = Adapter(
        AdapterConfig(
            FineTuneType.DORA if config.use_dora else FineTuneType.LORA,
            -1,
            lora,
            Base.of(base, base_folder),
        ),
        {path: _of_rank(layer, lora.rank) for path, layer in layers.items()},
    )
    check_fits(adapter, source.model, folder / PEFT_WEIGHTS_NAME)
    size = sum(tensor.nbytes for tensor in adapter.tensors.values())
    with output.replace(folder, base_folder, size=size) as partial:
        save_adapter(partial, adapter.tensors, adapter.config)
    return output.folder


def base_of(folder: Path) -> str | None:
    """The base model that a PEFT adapter names, an id or a folder; None if it names none."""
    name = read_json(folder / CONFIG_NAME, "").get("base_model_name_or_path")
    return name if isinstance(name, str) and name else None


def _peft_config(adapter: Adapter, lora: LoRAParameters) -> dict[str, Any]:
    alpha = lora.scale * lora.rank
    return {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": adapter.config.base.model,
        "inference_mode": True,
        "r": lora.rank,
        "lora_alpha": int(alpha) if alpha.is_integer() else alpha,
        "lora_dropout": lora.dropout,
        "target_modules": sorted(_path_in_memory(path) for path in adapter.layers),
        "bias": "none",
        "fan_in_fan_out": False,
        "use_rslora": False,
        "use_dora": adapter.config.fine_tune_type is FineTuneType.DORA,
    }


def _path_in_memory(path: str) -> str:
    return name_in_memory(f"{path}.weight").removesuffix(".weight")


@dataclass(frozen=True)
class _Config:
    """The fields of PEFT's `adapter_config.json` that affect the computation."""

    r: PositiveInt
    lora_alpha: float
    rank_pattern: dict[str, PositiveInt] = field(default_factory=dict)
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    use_rslora: bool = False
    use_dora: bool = False
    lora_dropout: float = 0.0

    @classmethod
    def read(cls, file: Path) -> _Config:
        """Raises UserError for an adapter that does more than LoRA or DoRA."""
        value = read_json(file, f"is {file.parent} an adapter folder?")
        if not isinstance(value, dict):
            raise UserError(f"{file}: expected an object, not {shown(value)}")
        if value.get("peft_type") != "LORA":
            raise UserError(
                f"{file}: peft_type is {value.get('peft_type')!r}; only 'LORA' can be read"
            )
        for key, setting in value.items():
            if setting and key not in _READ and not (key == "bias" and setting == "none"):
                raise UserError(
                    f"{file}: {key} is {setting!r}, which an adapter here cannot do; merge the "
                    "adapter with PEFT's merge_and_unload, and convert the result"
                )
        beginning = value.get("init_lora_weights")
        if beginning not in _BEGINNINGS:
            raise UserError(
                f"{file}: init_lora_weights is {beginning!r}, which changed the base too; merge "
                "the adapter with PEFT's merge_and_unload, and convert the result"
            )
        with named(file):
            return checked(cls, value, KeyRules(unknown=None, null_is_missing=True))

    def scale_of(self, module: str) -> float:
        """The scale of a module by PEFT's name for it; the default scale for an empty name."""
        rank = _by_pattern(self.rank_pattern, module, self.r)
        alpha = _by_pattern(self.alpha_pattern, module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


_T = TypeVar("_T")


def _by_pattern(patterns: Mapping[str, _T], module: str, otherwise: _T) -> _T:
    """The value of the first pattern that matches the end of the module's name, as in PEFT."""
    for pattern, value in patterns.items():
        if re.match(rf"(.*\.)?({pattern})$", module):
            return value
    return otherwise


def _layers(file: Path, config: _Config, base: SourceCheckpoint) -> dict[str, LowRank]:
    """The layers by their paths here; scales that differ from the default are multiplied into B."""
    parts: dict[str, dict[str, mx.array]] = {}
    scale = config.scale_of("")
    for name, tensor in read_floats(file).items():
        if name.endswith(_COPIES):
            _check_copy(file, name, tensor, base)
            continue
        module, part = _split(file, name)
        if tensor.ndim != (1 if part == "m" else 2):
            raise UserError(f"{file}: {name} of shape {list(tensor.shape)} is of no linear layer")
        path = canonical_name(f"{module}.weight")
        assert path is not None
        if part == "lora_b" and config.scale_of(module) != scale:
            tensor = tensor * (config.scale_of(module) / scale)
        parts.setdefault(path.removesuffix(".weight"), {})[part] = tensor
    layers = {}
    for path, found in parts.items():
        wanted = {"lora_a", "lora_b", "m"} if config.use_dora else {"lora_a", "lora_b"}
        if found.keys() != wanted:
            raise UserError(
                f"{file}: of the layer {path} there are {', '.join(sorted(found))}; it takes "
                f"{', '.join(sorted(wanted))}"
            )
        a, b = found["lora_a"].T, found["lora_b"].T
        if a.shape[1] != b.shape[0]:
            raise UserError(f"{file}: the ranks of A and B of the layer {path} differ")
        layers[path] = LowRank(a, b, found.get("m"))
    return layers


def _check_copy(file: Path, name: str, tensor: mx.array, base: SourceCheckpoint) -> None:
    """Raises UserError if a copy of a base weight has another number of rows than the base's."""
    ours = canonical_name(name.removeprefix(_BEFORE).replace(".base_layer.", "."))
    assert ours is not None
    if ours not in base.tensors or base.tensors[ours].shape[0] != tensor.shape[0]:
        raise UserError(
            f"{file}: {name} has {tensor.shape[0]} rows, unlike {base.folder}; an adapter here "
            "cannot change the vocabulary"
        )


def _split(file: Path, name: str) -> tuple[str, str]:
    """Splits a tensor's name into PEFT's name of the module and our name of the part."""
    for theirs, ours in _PARTS.items():
        if name.startswith(_BEFORE) and name.endswith(f".{theirs}"):
            return name.removeprefix(_BEFORE).removesuffix(f".{theirs}"), ours
    raise UserError(f"{file}: {name} is not part of a LoRA or DoRA of linear layers")


def _of_rank(layer: LowRank, rank: int) -> LowRank:
    """Pads A and B with zeros to `rank`, which leaves the update the same."""
    missing = rank - layer.a.shape[1]
    if not missing:
        return layer
    return LowRank(
        mx.pad(layer.a, [(0, 0), (0, missing)]), mx.pad(layer.b, [(0, missing), (0, 0)]), layer.m
    )


def _keys(paths: Iterable[str]) -> tuple[str, ...]:
    """The distinct ends of the modules' paths after the layer number."""
    return tuple(sorted({re.split(r"\.layers\.\d+\.", path)[-1] for path in paths}))
