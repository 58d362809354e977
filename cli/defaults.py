"""What a person sets once: `LLAVACOT_MODEL`, and a configuration file of defaults.

    model: ~/models/llava-cot-4bit
    ask:
      max-tokens: 1024
      show: stages

A flag wins over the variable, and the variable over the file.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from llavacot_mlx.checked import named, nearest, read_yaml, shown
from llavacot_mlx.errors import UserError

MODEL_VARIABLE = "LLAVACOT_MODEL"
FILE_VARIABLE = "LLAVACOT_CONFIG"

# lora-train reads a YAML file of its own (-c), and data and eval have commands of their own.
_WITHOUT_DEFAULTS = ("lora-train", "data", "eval")


def default_model() -> tuple[str, str] | None:
    """The model for where none was named, and what set it; None if nothing did."""
    if name := os.environ.get(MODEL_VARIABLE, "").strip():
        return name, MODEL_VARIABLE
    model = _settings().get("model")
    return None if model is None else (model, str(config_file()))


def default_flags(command: str) -> dict[str, Any]:
    """The defaults of a command's flags in the configuration file, by the flags' names.

    Raises UserError, which names the file, if it is no such file.
    """
    return dict(_settings().get(command) or {})


def check_flags(command: str, flags: dict[str, Any], known: list[str]) -> None:
    """Raises UserError, which names the file, for a default of a flag that there is not."""
    for name in flags:
        if name not in known:
            close = nearest(str(name), known)
            hint = f"did you mean {close}?" if close else f"llavacot {command} --help lists them"
            raise UserError(f"{config_file()}: {command}: there is no flag --{name}; {hint}")


def config_file() -> Path:
    """Where the configuration file is, whether it exists or not."""
    if place := os.environ.get(FILE_VARIABLE):
        return Path(place).expanduser()
    base = os.environ.get("XDG_CONFIG_HOME") or "~/.config"
    return Path(base).expanduser() / "llavacot" / "config.yaml"


def _settings() -> dict[str, Any]:
    file = config_file()
    if not file.exists():
        if os.environ.get(FILE_VARIABLE):
            raise UserError(f"{FILE_VARIABLE}: {file} is missing")
        return {}
    values = read_yaml(file)
    if values is None:  # an empty file
        return {}
    with named(file):
        if not isinstance(values, dict):
            raise UserError("expected lines like `model: PATH`, and flags by command")
        return {str(key): _checked(str(key), value) for key, value in values.items()}


def _checked(key: str, value: Any) -> Any:
    if key == "model":
        if not isinstance(value, str) or not value.strip():
            raise UserError(f"model: expected a folder or an id, not {shown(value)}")
        return value.strip()
    if key in _WITHOUT_DEFAULTS:
        raise UserError(f"{key}: has no defaults here; lora-train takes a file of its own (-c)")
    if value is not None and not isinstance(value, dict):
        raise UserError(f"{key}: expected lines like `max-tokens: 1024`, not {shown(value)}")
    return {str(name).replace("_", "-"): each for name, each in (value or {}).items()}
