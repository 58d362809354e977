"""The settings of a training as a YAML file: read as a person wrote it, written with comments."""

from __future__ import annotations

import math
import textwrap
from pathlib import Path
from typing import Any

import yaml

from llavacot_mlx.checked import read_yaml
from llavacot_mlx.errors import UserError
from llavacot_mlx.train.settings import About, TrainSettings, settings_object, settings_of

_COMMENT_COLUMN, _WIDTH = 28, 100


def read_settings(file: Path) -> dict[str, Any]:
    """The values in a YAML file of settings, by their names; `settings_from` checks them.

    Raises UserError, which names the file, when it cannot be read or is not a mapping.
    """
    values = read_yaml(file)
    if not isinstance(values, dict):
        raise UserError(f"{file}: expected a line like `learning_rate: 1e-5` for each setting")
    return {str(key): value for key, value in values.items()}


def settings_yaml(settings: TrainSettings) -> str:
    """All settings with their values, a line each, with what each one means as a comment."""
    values = settings_object(settings)
    lines: list[str] = []
    group = ""
    for setting in settings_of():
        about = setting.about
        if about.heading:
            lines += ["", f"# {about.heading}"]
        *outer, name = setting.path
        if outer and outer[0] != group:
            group = outer[0]
            lines.append(f"{group}:")
        value = values[outer[0]][name] if outer else values[name]
        line = f"{'  ' if outer else ''}{name}: {_inline(value)}"
        first, *others = textwrap.wrap(_comment(about), _WIDTH - _COMMENT_COLUMN - 2)
        lines.append(f"{line:<{_COMMENT_COLUMN - 1}} # {first}")
        lines += [f"{'':{_COMMENT_COLUMN}}# {other}" for other in others]
    return "\n".join(lines[1:]) + "\n"


def _comment(about: About) -> str:
    text = about.help
    if about.in_bytes:
        text = f"{text.removesuffix('.')}, in bytes."
    if about.choices:
        text += f" One of {', '.join(about.choices)}."
    return f"{text} By default, {about.default_text}." if about.default_text else text


def _inline(value: Any) -> str:
    """YAML of a value on one line."""
    text = _dump(value, None)
    return _dump(value, '"') if "\n" in text else text


def _dump(value: Any, style: str | None) -> str:
    text = yaml.safe_dump(
        value,
        default_style=style,
        default_flow_style=True,
        sort_keys=False,
        allow_unicode=True,
        width=math.inf,
    )
    return text.removesuffix("\n").removesuffix("\n...")
