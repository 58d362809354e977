"""Changes to a `config.json` that `settings.write_config` wrote, for weights that are plain."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from llavacot_mlx.checked import read_json
from llavacot_mlx.model.config import ModelConfig


def drop_quantization(folder: Path) -> None:
    """For weights that were dequantised."""
    values = read_json(folder / "config.json", "")
    _drop(values, "quantization", "quantization_config")
    _write(folder, values)


def finish_for_hub(folder: Path, config: ModelConfig) -> None:
    """For transformers: the older spelling, which was written, is read by versions 4 and 5 alike.

    What they would take from their defaults is spelt out, and what MLX folders add is left out.
    """
    values = read_json(folder / "config.json", "")
    _drop(values, "quantization", "quantization_config", "generation_config", "image_token_id")
    values["architectures"] = ["MllamaForConditionalGeneration"]
    values["image_token_index"] = config.image_token_id
    values["tie_word_embeddings"] = False
    text, vision = values["text_config"], values["vision_config"]
    text["tie_word_embeddings"] = False
    _drop(vision, "skip_vision")
    vision["vision_output_dim"] = config.vision.output_size
    _write(folder, values)


def _drop(values: dict[str, Any], *keys: str) -> None:
    for key in keys:
        values.pop(key, None)


def _write(folder: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(text + "\n", encoding="utf-8")
