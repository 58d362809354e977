"""What stands in the `adapter_config.json` of an adapter folder."""

from __future__ import annotations

import enum
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .atomic import write_file
from .checked import read_json
from .errors import UserError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapters.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether a folder is meant to be an adapter, ours or PEFT's, and no model."""
    return (folder / CONFIG_NAME).is_file() and not (folder / "config.json").exists()


class FineTuneType(enum.StrEnum):
    LORA = "lora"
    DORA = "dora"
    FULL = "full"


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on."""

    model: str
    """A folder, or an id on the hub."""
    hash: str
    """`fingerprints.base_hash` of it."""
    lineage: str
    """`fingerprints.lineage_hash` of it."""

    @classmethod
    def of(cls, model: str, folder: Path) -> Base:
        """The base that a person calls `model`, whose files are in `folder`.

        Raises UserError when the folder's weights cannot be read.
        """
        from .fingerprints import base_hash, lineage_hash  # with NumPy, which --help does without

        name = str(folder.resolve()) if Path(model).expanduser().is_dir() else model
        return cls(name, base_hash(folder), lineage_hash(folder))


@dataclass(frozen=True)
class LoRAParameters:
    """The low-rank adapters, by mlx-lm's keys."""

    rank: int
    scale: float
    """Multiplied in as it is: PEFT's alpha / rank."""
    dropout: float
    keys: tuple[str, ...]
    """The adapted modules by the ends of their paths, such as `self_attn.q_proj`. For people: which
    modules they are exactly, the names of the tensors say."""


@dataclass(frozen=True)
class AdapterConfig:
    """How an adapter was made, and for which base."""

    fine_tune_type: FineTuneType
    num_layers: int
    """How many of the last text layers were adapted; -1 for all."""
    lora: LoRAParameters | None
    """None when the weights themselves were trained ("full")."""
    base: Base

    def to_json(self) -> str:
        """The text of the file: mlx-lm's keys, and three on the base."""
        value: dict[str, Any] = {
            "fine_tune_type": self.fine_tune_type.value,
            "num_layers": self.num_layers,
        }
        if self.lora is not None:
            value["lora_parameters"] = {
                "rank": self.lora.rank,
                "scale": self.lora.scale,
                "dropout": self.lora.dropout,
                "keys": list(self.lora.keys),
            }
        value["base_model"] = self.base.model
        value["base_model_hash"] = self.base.hash
        value["base_model_lineage"] = self.base.lineage
        return json.dumps(value, indent=2, ensure_ascii=False) + "\n"

    def write(self, folder: Path) -> None:
        """Writes the file into an adapter folder, whole or not at all."""
        write_file(folder / CONFIG_NAME, self.to_json().encode())

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """Reads the file of an adapter folder. Keys beside ours are a trainer's, and left alone.

        Raises UserError when the folder is no adapter of ours, naming what is missing or wrong.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; an adapter is one with {WEIGHTS_NAME}")
        file = folder / CONFIG_NAME
        value = read_json(file, f"is {folder} an adapter folder?")
        if not isinstance(value, dict):
            raise UserError(f"{file}: not a JSON object")
        if "peft_type" in value:
            raise UserError(
                f"{folder} is an adapter of PEFT; make one for MLX of it: llavacot convert {folder}"
            )
        kind = _get(file, value, "fine_tune_type", str)
        if kind not in list(FineTuneType):
            raise UserError(f"{file}: fine_tune_type is {kind!r}; it must be lora, dora or full")
        base = Base(
            _get(file, value, "base_model", str),
            _get(file, value, "base_model_hash", str),
            _get(file, value, "base_model_lineage", str),
        )
        layers = _get(file, value, "num_layers", int)
        lora = None if kind == FineTuneType.FULL else _lora_parameters(file, value)
        return cls(FineTuneType(kind), layers, lora, base)

    def check_base(self, adapter: Path, folder: Path) -> str | None:
        """Whether the adapter fits the model in `folder`; a note when it fits nearly.

        It fits where it was trained, and on a version of the same checkpoint in other bits, which
        the note then says. Raises UserError, naming the base that it wants, for any other model.
        `adapter` is the folder to name.
        """
        from .fingerprints import base_hash, lineage_hash

        if base_hash(folder) == self.base.hash:
            return None
        if lineage_hash(folder) == self.base.lineage:
            return (
                f"{adapter} was trained on {self.base.model}; {folder} is a version of the same "
                "checkpoint in other bits"
            )
        raise UserError(
            f"{adapter} is an adapter for {self.base.model}, and {folder} is another model: "
            f"give --model {self.base.model}"
        )


def _lora_parameters(file: Path, value: dict[str, Any]) -> LoRAParameters:
    lora = _get(file, value, "lora_parameters", dict)
    rank = _get(file, lora, "rank", int)
    scale, dropout = (float(_get(file, lora, key, (int, float))) for key in ("scale", "dropout"))
    keys = _get(file, lora, "keys", list)
    if rank < 1 or not math.isfinite(scale) or not 0 <= dropout < 1:
        raise UserError(
            f"{file}: rank {rank}, scale {scale:g} and dropout {dropout:g} make no adapter: rank "
            "must be 1 or more, scale finite, dropout from 0 to below 1"
        )
    if not all(isinstance(key, str) for key in keys):
        raise UserError(f"{file}: lora_parameters.keys must be texts, such as self_attn.q_proj")
    return LoRAParameters(rank, scale, dropout, tuple(keys))


def _get(
    file: Path, value: dict[str, Any], key: str, kind: type[Any] | tuple[type[Any], ...]
) -> Any:
    if key not in value:
        raise UserError(f"{file}: {key} is missing; was this adapter made by llavacot?")
    if not isinstance(value[key], kind) or isinstance(value[key], bool):
        raise UserError(f"{file}: {key} is {value[key]!r}, which is no {_said(kind)}")
    return value[key]


def _said(kind: type[Any] | tuple[type[Any], ...]) -> str:
    words = {str: "text", int: "whole number", dict: "object", list: "list"}
    return "number" if isinstance(kind, tuple) else words[kind]
