"""The files of a model folder beside its weights: settings that are copied, and config.json."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from llavacot_mlx.checked import read_json
from llavacot_mlx.checkpoint.folder_files import files_in
from llavacot_mlx.checkpoint.weight_files import INDEX_NAME
from llavacot_mlx.model.config import Llama3Scaling, ModelConfig, Quantization, QuantizationMap
from llavacot_mlx.search.calibration import FILE_NAME as CALIBRATION_NAME

# Tokenizer, chat template, picture and generation settings, licence; never code.
_ENDINGS = frozenset({".json", ".jinja", ".txt", ".model", ".md"})
_WRITTEN_ANEW = ("config.json", INDEX_NAME, "README.md")
_OF_THE_WEIGHTS = (CALIBRATION_NAME,)  # true of the source's weights alone
_NAMES = ("LICENSE", "NOTICE", "USE_POLICY")


def copy_settings(source: Path, target: Path) -> None:
    """Copies everything that a later command needs, apart from weights and `config.json`.

    A calibration was measured with the source's weights: `copy_calibration` is for the same ones.
    """
    for file in files_in(source):
        wanted = file.suffix in _ENDINGS or file.name.startswith(_NAMES)
        if wanted and file.name not in (*_WRITTEN_ANEW, *_OF_THE_WEIGHTS):
            shutil.copyfile(file, target / file.name)


def copy_calibration(source: Path, target: Path) -> None:
    """Copies the calibration of a model to a folder with the same weights, if there is one."""
    if (source / CALIBRATION_NAME).is_file():
        shutil.copyfile(source / CALIBRATION_NAME, target / CALIBRATION_NAME)


def write_config(
    source: Path,
    target: Path,
    config: ModelConfig,
    dtype: str | None,
    quantization: QuantizationMap | None,
) -> None:
    """Writes `config.json` in the older spelling.

    Both spellings mean the same to this program and to transformers, but mlx-vlm (0.7.10) reads
    only the older one, and takes other heads and another RoPE from the newer without a word.
    """
    values = read_json(source / "config.json", "")
    text, vision = values["text_config"], values["vision_config"]
    text.pop("rope_parameters", None)
    text["rope_theta"] = config.text.rope_theta
    text["rope_scaling"] = _rope_scaling(config.text.rope_scaling)
    vision.pop("attention_heads", None)
    vision["num_attention_heads"] = config.vision.num_attention_heads
    if dtype is not None:
        for section in (values, text, vision):
            section.pop("dtype", None)
            section["torch_dtype"] = dtype
    if quantization is not None:
        described = _described(quantization.default) | {
            module: _described(each) for module, each in quantization.overrides.items()
        }
        values["quantization"] = described
        values["quantization_config"] = described
    _write(target, values)


def has_chat_template(folder: Path) -> bool:
    """Whether transformers would find a chat template in a model's folder."""
    if any((folder / name).exists() for name in ("chat_template.jinja", "chat_template.json")):
        return True
    settings = folder / "tokenizer_config.json"
    value = read_json(settings) if settings.exists() else None
    return isinstance(value, dict) and bool(value.get("chat_template"))


def drop_quantization(folder: Path) -> None:
    """Removes the quantization from `config.json`, for weights that were dequantized."""
    values = read_json(folder / "config.json", "")
    _drop(values, "quantization", "quantization_config")
    _write(folder, values)


def finish_for_hub(folder: Path, config: ModelConfig) -> None:
    """Completes the `config.json` that `write_config` wrote, for transformers.

    Versions 4 and 5 read the older spelling. Values that transformers would take from its defaults
    are written out, and keys that only MLX folders have are removed.
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


def _described(quantization: Quantization) -> dict[str, Any]:
    return {
        "group_size": quantization.group_size,
        "bits": quantization.bits,
        "mode": quantization.mode,
    }


def _rope_scaling(scaling: Llama3Scaling | None) -> dict[str, Any] | None:
    if scaling is None:
        return None
    return {
        "rope_type": "llama3",
        "factor": scaling.factor,
        "low_freq_factor": scaling.low_freq_factor,
        "high_freq_factor": scaling.high_freq_factor,
        "original_max_position_embeddings": scaling.original_max_position_embeddings,
    }


def _drop(values: dict[str, Any], *keys: str) -> None:
    for key in keys:
        values.pop(key, None)


def _write(folder: Path, values: dict[str, Any]) -> None:
    text = json.dumps(values, indent=2, ensure_ascii=False)
    (folder / "config.json").write_text(f"{text}\n", encoding="utf-8")
