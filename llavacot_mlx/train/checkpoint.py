"""Saves and loads the checkpoint of a training: one file, replaced atomically.

It holds the trained weights, the optimizer state and the step, so that they always belong together.
It is written under a temporary name, flushed to disk and renamed: an interruption leaves the old
checkpoint or the new one.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import mlx.core as mx

from llavacot_mlx.atomic import replace_file
from llavacot_mlx.checked import checked
from llavacot_mlx.errors import UserError

FILE_NAME = "checkpoint.safetensors"
_WEIGHTS, _OPTIMIZER = "weights.", "optimizer."


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training after a step."""

    step: int
    """Number of steps done."""
    weights: dict[str, mx.array]
    optimizer: dict[str, mx.array]
    """The optimizer state, flattened."""
    origin: dict[str, Any]
    """What each step depends on: data, model and settings."""


def save_checkpoint(folder: Path, checkpoint: Checkpoint) -> None:
    """Writes the checkpoint of `folder`, which replaces the last one.

    Raises UserError when that fails, as on a full disk; the last checkpoint is then kept.
    """
    arrays = {_WEIGHTS + name: array for name, array in checkpoint.weights.items()}
    arrays |= {_OPTIMIZER + name: array for name, array in checkpoint.optimizer.items()}
    metadata = {"step": str(checkpoint.step), "origin": json.dumps(checkpoint.origin)}
    file = folder / FILE_NAME
    with replace_file(file) as partial:
        try:
            mx.save_safetensors(str(partial), arrays, metadata)
        except RuntimeError as problem:
            raise UserError(
                f"{file} cannot be written: {problem}; the checkpoint before it is kept"
            ) from None


def load_checkpoint(folder: Path) -> Checkpoint:
    """Reads the checkpoint of `folder`. Raises UserError when it is missing or damaged."""
    file = folder / FILE_NAME
    if not file.is_file():
        raise UserError(
            f"--resume: {folder} holds no {FILE_NAME}: start without --resume, or name the "
            "--adapter-path of the training to resume"
        )
    try:
        arrays, metadata = cast(
            "tuple[dict[str, mx.array], dict[str, str]]", mx.load(str(file), return_metadata=True)
        )
        step = int(metadata["step"])
        origin = checked(dict[str, Any], json.loads(metadata["origin"]))
    except (RuntimeError, KeyError, ValueError, UserError):
        raise UserError(f"{file} is damaged: a training cannot resume from it") from None
    return Checkpoint(
        step,
        {name[len(_WEIGHTS) :]: a for name, a in arrays.items() if name.startswith(_WEIGHTS)},
        {name[len(_OPTIMIZER) :]: a for name, a in arrays.items() if name.startswith(_OPTIMIZER)},
        origin,
    )


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The differences between two origins, one phrase each."""
    return [
        f"{key} was {_short(before.get(key))} and is {_short(now.get(key))}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key)
    ]


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "…"
