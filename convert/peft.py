"""Conversion of adapters to and from the layout of Hugging Face's PEFT.

PEFT names a layer by its path in transformers' model (`base_model.model.` before it), keeps A
as (rank, inputs) and B as (outputs, rank), and stores α instead of scale = α / rank.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import mlx.core as mx

from llavacot_mlx.checked import (
    KeyRules,
    PositiveInt,
    brief,
    checked,
    named,
    quoted,
    read_json,
    shown,
)
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
from llavacot_mlx.checkpoint.weights import read_tensors
from llavacot_mlx.convert.merge import dequantize_stored
from llavacot_mlx.convert.module_patterns import ModulePatterns
from llavacot_mlx.convert.output_folder import OutputFolder
from llavacot_mlx.convert.source import SourceCheckpoint
from llavacot_mlx.errors import UserError

_BEFORE = "base_model.model."
# The last part of a tensor's name, theirs and ours. PEFT itself writes the magnitude's name both
# with and without the last word, depending on its version.
_PARTS = {"lora_A": "lora_a", "lora_B": "lora_b", "lora_magnitude_vector": "m"}
# Between them stands the adapter's name where a training's state was saved as it was in memory.
_NAME = re.compile(
    r"(?:base_model\.model\.)?(.+)\.(lora_A|lora_B|lora_magnitude_vector)(?:\.(?!weight$)(\w+))?"
    r"(?:\.weight)?"
)

# Beside an adapter of the output head, PEFT saves an unchanged copy of the base's embeddings.
_COPIES = ("lm_head.base_layer.weight", "lm_head.weight", "embed_tokens.weight")
_TOLERANCE = 0.1  # of a copy's length, against a base in few bits

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
    file = folder / PEFT_WEIGHTS_NAME
    with named(folder / CONFIG_NAME):
        config.check_patterns()
    layers = _layers(file, config, source)
    lora = LoRAParameters(
        rank=max(layer.a.shape[1] for layer in layers.values()),
        scale=config.scale_of(""),
        dropout=config.lora_dropout,
        keys=keys_of(layers),
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
    check_foreign_fits(adapter, source, file)
    size = sum(tensor.nbytes for tensor in adapter.tensors.values())
    with output.replace(folder, base_folder, size=size) as partial:
        save_adapter(partial, adapter.tensors, adapter.config)
    return output.folder


def base_of(folder: Path) -> str | None:
    """The base that another program's adapter names, an id or a folder; None if it names none."""
    config = read_json(folder / CONFIG_NAME)
    if not isinstance(config, dict):
        return None
    name = config.get("base_model_name_or_path") or config.get("model")  # PEFT's, mlx-lm's
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
                f"{file}: peft_type is {quoted(value.get('peft_type'))}; only 'LORA' can be read"
            )
        for key, setting in value.items():
            if setting and key not in _READ and not (key == "bias" and setting == "none"):
                raise UserError(
                    f"{file}: {brief(key)} is {quoted(setting)}, which an adapter here cannot do; "
                    "merge the adapter with PEFT's merge_and_unload, and convert the result"
                )
        beginning = value.get("init_lora_weights")
        if beginning not in _BEGINNINGS:
            raise UserError(
                f"{file}: init_lora_weights is {quoted(beginning)}, which changed the base too; "
                "merge the adapter with PEFT's merge_and_unload, and convert the result"
            )
        with named(file):
            return checked(cls, value, KeyRules(unknown=None, null_is_missing=True))

    def check_patterns(self) -> None:
        """Raises UserError for a pattern of modules that is not read here."""
        _ = self._ranks, self._alphas

    @cached_property
    def _ranks(self) -> ModulePatterns[int]:
        return ModulePatterns(self.rank_pattern)

    @cached_property
    def _alphas(self) -> ModulePatterns[float]:
        return ModulePatterns(self.alpha_pattern)

    def scale_of(self, module: str) -> float:
        """The scale of a module by PEFT's name for it; the default scale for an empty name."""
        rank = self._ranks.value_for(module, self.r)
        alpha = self._alphas.value_for(module, self.lora_alpha)
        return alpha / math.sqrt(rank) if self.use_rslora else alpha / rank


def _layers(file: Path, config: _Config, base: SourceCheckpoint) -> dict[str, LowRank]:
    """The layers by their paths here; scales that differ from the default are multiplied into B."""
    parts: dict[str, dict[str, mx.array]] = {}
    scale = config.scale_of("")
    adapters: set[str] = set()
    for name, tensor in read_floats(file).items():
        if name.endswith(_COPIES):
            _check_copy(file, name, tensor, base)
            continue
        module, part, adapter = _split(file, name)
        adapters.add(adapter)
        if len(adapters) > 1:
            raise UserError(
                f"{file}: there are several adapters in it ({', '.join(sorted(adapters))}); save "
                "each in a folder of its own"
            )
        if tensor.ndim != (1 if part == "m" else 2):
            raise UserError(f"{file}: {name} of shape {list(tensor.shape)} is of no linear layer")
        path = full_path(module)
        if part == "lora_b" and (own := config.scale_of(module)) != scale:
            tensor = tensor * (own / scale)
        parts.setdefault(path, {})[part] = tensor
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
    """Raises UserError if a copy of a base weight is not what the base has."""
    module = name.removeprefix(_BEFORE).replace(".base_layer.", ".").removesuffix(".weight")
    ours = f"{full_path(module)}.weight"
    if ours not in base.tensors or base.tensors[ours].shape[0] != tensor.shape[0]:
        raise UserError(
            f"{file}: {name} has {tensor.shape[0]} rows, unlike {base.folder}; an adapter here "
            "cannot change the vocabulary"
        )
    if not _is_copy(tensor, ours, base):
        raise UserError(
            f"{file}: {name} was trained as well, which an adapter here cannot hold; merge the "
            "adapter with PEFT's merge_and_unload, and convert the result"
        )


def _is_copy(tensor: mx.array, ours: str, base: SourceCheckpoint) -> bool:
    """Whether a tensor is a base weight but for the rounding of either."""
    module = ours.removesuffix(".weight")
    wanted = [base.tensors[n] for p in _STORED if (n := f"{module}.{p}") in base.tensors]
    arrays = list(read_tensors(wanted).values())
    if len(arrays) == 1:
        (stored,) = arrays
        if stored.shape != tensor.shape:
            return False
        same = stored.astype(tensor.dtype) == tensor
        return bool(mx.all(same | (tensor.astype(stored.dtype) == stored)).item())
    assert base.config.quantization is not None
    stored = dequantize_stored(base.config.quantization.of(module), arrays)
    if stored.shape != tensor.shape:
        return False
    copy = tensor.astype(mx.float32)
    allowed = _TOLERANCE * mx.linalg.norm(copy)
    return bool((mx.linalg.norm(stored - copy) <= allowed).item())


_STORED = ("weight", "scales", "biases")


def full_path(module: str) -> str:
    """Our path of a module by its name in another program's model.

    A text-only class has the text model's layers at its root.
    """
    name = f"{module}.weight"
    if name.startswith(("layers.", "norm.", "embed_tokens.")):
        name = f"model.{name}"
    if name.startswith(("model.layers.", "model.norm.", "model.embed_tokens.")):
        name = f"language_model.{name}"
    path = canonical_name(name)
    assert path is not None
    return path.removesuffix(".weight")


def check_foreign_fits(adapter: Adapter, base: SourceCheckpoint, file: Path) -> None:
    """`check_fits` of an adapter that another program trained, with the probable reason."""
    modules = {path for path, _ in base.model.named_modules()}
    strange = [path for path in adapter.layers if path not in modules]
    if strange and len(strange) < len(adapter.layers):
        raise UserError(
            f"{file}: of its {len(adapter.layers)} layers, {len(strange)} are not in "
            f"{base.folder}, such as {strange[0]}: it was trained on another model, probably a "
            "text-only Llama, whose layers are counted without cross-attention"
        )
    check_fits(adapter, base.model, file)


def _split(file: Path, name: str) -> tuple[str, str, str]:
    """Splits a tensor's name into the module, our name of the part, and the adapter's name."""
    if match := _NAME.fullmatch(name):
        module, part, adapter = match.groups()
        return module, _PARTS[part], adapter or "default"
    raise UserError(f"{file}: {name} is no part of a LoRA or DoRA of linear layers")


def _of_rank(layer: LowRank, rank: int) -> LowRank:
    """Pads A and B with zeros to `rank`, which leaves the update the same."""
    missing = rank - layer.a.shape[1]
    if not missing:
        return layer
    return LowRank(
        mx.pad(layer.a, [(0, 0), (0, missing)]), mx.pad(layer.b, [(0, missing), (0, 0)]), layer.m
    )


def keys_of(paths: Iterable[str]) -> tuple[str, ...]:
    """The distinct ends of the modules' paths after the layer number."""
    return tuple(sorted({re.split(r"\.layers\.\d+\.", path)[-1] for path in paths}))
