"""Reads and writes `adapter_config.json`, which describes the adapter in a folder."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from llavacot_mlx.atomic import write_file
from llavacot_mlx.checked import KeyRules, Range, checked, named, read_json
from llavacot_mlx.errors import UserError

CONFIG_NAME = "adapter_config.json"
WEIGHTS_NAME = "adapters.safetensors"


def is_adapter(folder: Path) -> bool:
    """Whether a folder holds an adapter, ours or PEFT's, rather than a model."""
    return (folder / CONFIG_NAME).is_file() and not (folder / "config.json").exists()


def adapter_program(config: Any) -> str | None:
    """The program that made an adapter, by the content of its `adapter_config.json`.

    None for an adapter of ours, and for what is no adapter of a known program.
    """
    if not isinstance(config, dict):
        return None
    if "peft_type" in config:
        return "PEFT"
    if "rank" in config and "alpha" in config:
        return "mlx-vlm"
    ours = ("base_model", "base_model_hash", "base_model_lineage")
    if "fine_tune_type" in config and not any(key in config for key in ours):
        return "mlx-lm" if "model" in config or "iters" in config else "mlx-lm or mlx-vlm"
    return None


def program_of(folder: Path) -> str | None:
    """`adapter_program` of an adapter's folder."""
    return adapter_program(read_json(folder / CONFIG_NAME))


class FineTuneType(enum.StrEnum):
    LORA = "lora"
    DORA = "dora"
    FULL = "full"


@dataclass(frozen=True)
class Base:
    """The model that an adapter was trained on."""

    model: str
    """A folder, or a hub id."""
    hash: str
    """Its `fingerprints.base_hash`."""
    lineage: str
    """Its `fingerprints.lineage_hash`."""

    @classmethod
    def of(cls, model: str, folder: Path) -> Base:
        """The base with the name `model`, whose files are in `folder`.

        Raises UserError when the folder's weights cannot be read.
        """
        from llavacot_mlx.checkpoint.fingerprints import (  # imports NumPy, which --help must not
            base_hash,
            lineage_hash,
        )

        name = str(folder.resolve()) if Path(model).expanduser().is_dir() else model
        return cls(name, base_hash(folder), lineage_hash(folder))


@dataclass(frozen=True)
class LoRAParameters:
    """The parameters of the low-rank adapters, with mlx-lm's keys."""

    rank: Annotated[int, Range(min=1)]
    scale: float
    """The factor of A B: PEFT's alpha / rank."""
    dropout: Annotated[float, Range(min=0, below=1)]
    keys: tuple[str, ...]
    """The adapted modules, by the ends of their paths, such as `self_attn.q_proj`. This is for
    people; the names of the tensors say exactly which modules are adapted."""


_RULES = KeyRules(unknown=None, missing="; was this adapter made by llavacot?", defaults=False)


@dataclass(frozen=True)
class _AdapterFile:
    """The keys that are read from the file."""

    fine_tune_type: FineTuneType
    num_layers: int
    lora_parameters: LoRAParameters | None
    base_model: str
    base_model_hash: str
    base_model_lineage: str


@dataclass(frozen=True)
class AdapterConfig:
    """How an adapter was trained, and on which base."""

    fine_tune_type: FineTuneType
    num_layers: int
    """Number of text layers that were adapted, counted from the last; -1 for all."""
    lora: LoRAParameters | None
    """None when the weights themselves were trained ("full")."""
    base: Base

    def to_json(self) -> str:
        """The text of the file: mlx-lm's keys, and three keys about the base."""
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
        """Writes the file into an adapter folder, atomically."""
        write_file(folder / CONFIG_NAME, self.to_json().encode())

    @classmethod
    def read(cls, folder: Path) -> AdapterConfig:
        """Reads the file from an adapter folder, and ignores the keys that other trainers add.

        Raises UserError, which names what is missing or wrong, if it is not an adapter of ours.
        """
        if not folder.is_dir():
            raise UserError(f"{folder}: no such folder; an adapter is one with {WEIGHTS_NAME}")
        file = folder / CONFIG_NAME
        value = read_json(file, f"is {folder} an adapter folder?")
        if (program := adapter_program(value)) not in (None, "PEFT"):
            raise UserError(
                f"{folder} is an adapter of {program}; make one of ours of it: llavacot convert "
                f"{folder} --model BASE"
            )
        if isinstance(value, dict) and "peft_type" in value:
            raise UserError(
                f"{folder} is an adapter of PEFT; convert it to MLX: llavacot convert {folder}"
            )
        if isinstance(value, dict) and value.get("fine_tune_type") == FineTuneType.FULL:
            value = {**value, "lora_parameters": None}
        with named(file):
            found = checked(_AdapterFile, value, _RULES)
            if found.fine_tune_type is not FineTuneType.FULL and found.lora_parameters is None:
                raise UserError(f"lora_parameters is missing{_RULES.missing}")
        base = Base(found.base_model, found.base_model_hash, found.base_model_lineage)
        return cls(found.fine_tune_type, found.num_layers, found.lora_parameters, base)

    def check_base(self, adapter: Path, folder: Path) -> str | None:
        """Checks that the model in `folder` is the adapter's base; returns a note or None.

        A version of the same checkpoint in other bits is accepted with a note. Raises UserError,
        which names the right base, for any other model. `adapter` is the adapter's folder, for
        messages.
        """
        from llavacot_mlx.checkpoint.fingerprints import base_hash, lineage_hash

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
