"""The model's configuration, read from `config.json` in either spelling.

transformers 5 writes `vision_config.attention_heads` and `text_config.rope_parameters`; older files
write `num_attention_heads`, `rope_theta` and `rope_scaling`. A key that is missing or unknown is an
error that names it: a default picked in silence gives fluent nonsense.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .checked import read_json
from .errors import UserError
from .model.config import (
    Llama3Scaling,
    ModelConfig,
    Quantization,
    QuantizationMap,
    TextConfig,
    VisionConfig,
)

# Keys that transformers writes into every configuration and that change nothing in a forward pass:
# bookkeeping, training settings, and the generation settings of old versions. mlx-vlm adds
# generation_config, a copy of that file, and once added skip_vision, which the tensors say as well.
_WITHOUT_EFFECT = frozenset({
    "_attn_implementation_autoset", "_name_or_path", "add_cross_attention", "architectures",
    "bad_words_ids", "begin_suppress_tokens", "bos_token_id", "chunk_size_feed_forward",
    "cross_attention_hidden_size", "decoder_start_token_id", "diversity_penalty", "do_sample",
    "dropout", "dtype", "early_stopping", "encoder_no_repeat_ngram_size", "eos_token_id",
    "exponential_decay_length_penalty", "finetuning_task", "forced_bos_token_id",
    "forced_eos_token_id", "generation_config", "id2label", "initializer_range", "is_decoder",
    "is_encoder_decoder", "label2id", "length_penalty", "max_length", "min_length", "model_type",
    "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences",
    "output_attentions", "output_hidden_states", "output_scores", "pad_token_id", "prefix",
    "problem_type", "pruned_heads", "remove_invalid_values", "repetition_penalty",
    "return_dict", "return_dict_in_generate", "sep_token_id", "skip_vision", "suppress_tokens",
    "task_specific_params", "temperature", "tf_legacy_loss", "tie_encoder_decoder",
    "tie_word_embeddings", "tokenizer_class", "top_k", "top_p", "torch_dtype", "torchscript",
    "transformers_version", "typical_p", "use_bfloat16", "use_cache",
})  # fmt: skip

_MOST_LAYERS = 1000  # a slip of the pen beyond it would build modules for minutes


class _Section:
    """One object of config.json, read key by key; what was not read is named at the end."""

    def __init__(self, file: Path, prefix: str, values: Any) -> None:
        if not isinstance(values, dict):
            raise UserError(f"{file}: {prefix.rstrip('.') or 'the file'} is not a JSON object")
        self.file, self.prefix, self.values = file, prefix, values
        self.read: set[str] = set()

    def error(self, key: str, problem: str) -> UserError:
        return UserError(f"{self.file}: {self.prefix}{key} {problem}")

    def has(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, *spellings: str) -> Any:
        """The value under any of the spellings; where several are there, they must agree."""
        self.read.update(spellings)
        present = [key for key in spellings if self.has(key)]
        for key in present:
            if self.values[key] != self.values[present[0]]:
                raise self.error(key, f"is {self.values[key]!r}, but {present[0]} says otherwise")
        if present:
            return self.values[present[0]]
        raise self.error(" or ".join(spellings), "is missing, and the result depends on it")

    def integer(self, *spellings: str, most: int = 2**31 - 1) -> int:
        value = self.get(*spellings)
        if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= most:
            raise self.error(
                spellings[0], f"must be a whole number from 1 to {most}, not {value!r}"
            )
        return value

    def number(self, *spellings: str) -> float:
        value = self.get(*spellings)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not 0 < value < float("inf"):
            raise self.error(spellings[0], f"must be a positive number, not {value!r}")
        return float(value)

    def indices(self, key: str, below: int) -> tuple[int, ...]:
        value = self.get(key)
        if not isinstance(value, list) or not all(
            isinstance(index, int) and 0 <= index < below for index in value
        ):
            raise self.error(key, f"must be a list of layer numbers below {below}, not {value!r}")
        return tuple(value)

    def only(self, key: str, value: Any) -> None:
        """A key that may be left out, but has one value that this program can run."""
        self.read.add(key)
        if self.has(key) and self.values[key] != value:
            raise self.error(key, f"is {self.values[key]!r}; only {value!r} can be run")

    def finish(self, ignored: Iterable[str] = _WITHOUT_EFFECT) -> None:
        unknown = sorted(set(self.values) - self.read - set(ignored))
        if unknown:
            raise self.error(
                unknown[0], "is not known to this program, so its effect would be lost"
            )


def load_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json`.

    Raises UserError when the file is missing or no JSON, describes another architecture, or holds
    a key whose meaning is missing, unknown or impossible.
    """
    file = folder / "config.json"
    return parse_config(read_json(file, f"is {folder} a model folder?"), file)


def parse_config(values: Any, file: Path) -> ModelConfig:
    """The configuration in the parsed JSON `values`; `file` is named in errors."""
    top = _Section(file, "", values)
    model_type = values.get("model_type")
    if model_type != "mllama":
        raise UserError(
            f"{file}: the model is of type {model_type!r}; this program runs 'mllama' "
            "(Llama 3.2 Vision and LLaVA-CoT)"
        )
    text = _text_config(_Section(file, "text_config.", top.get("text_config")))
    vision_section = _Section(file, "vision_config.", top.get("vision_config"))
    vision = _vision_config(vision_section)
    image_token_id = top.integer("image_token_index", "image_token_id")
    if not text.vocab_size <= image_token_id < text.vocab_size + 8:
        raise top.error(
            "image_token_index",
            f"is {image_token_id}; the rows for it are {text.vocab_size} to {text.vocab_size + 7}",
        )
    quantization = _quantization(top)
    top.finish()
    return ModelConfig(text, vision, image_token_id, quantization)


def _text_config(section: _Section) -> TextConfig:
    theta, scaling = _rope(section)
    layers = section.integer("num_hidden_layers", most=_MOST_LAYERS)
    config = TextConfig(
        vocab_size=section.integer("vocab_size"),
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_hidden_layers=layers,
        num_attention_heads=section.integer("num_attention_heads"),
        num_key_value_heads=section.integer("num_key_value_heads"),
        rms_norm_eps=section.number("rms_norm_eps"),
        cross_attention_layers=section.indices("cross_attention_layers", layers),
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=section.integer("max_position_embeddings"),
    )
    section.only("hidden_act", "silu")
    if config.hidden_size % config.num_attention_heads:
        raise section.error("num_attention_heads", f"does not divide {config.hidden_size}")
    if config.num_attention_heads % config.num_key_value_heads:
        raise section.error(
            "num_key_value_heads", f"does not divide {config.num_attention_heads} heads"
        )
    section.only("head_dim", config.head_dim)
    section.finish()
    return config


def _rope(section: _Section) -> tuple[float, Llama3Scaling | None]:
    """RoPE's base and scaling in either spelling; where both are there, they must agree."""
    section.read |= {"rope_parameters", "rope_theta", "rope_scaling", "rope_traditional"}
    section.only("rope_traditional", False)
    old_scaling = None
    if section.has("rope_scaling"):
        old_scaling = _rope_scaling(_nested(section, "rope_scaling"))
    if not section.has("rope_parameters"):
        return section.number("rope_theta", "rope_parameters"), old_scaling
    rope = _nested(section, "rope_parameters")
    theta, scaling = rope.number("rope_theta"), _rope_scaling(rope)
    if section.has("rope_theta") and section.number("rope_theta") != theta:
        raise section.error("rope_theta", f"is not rope_parameters.rope_theta, which is {theta}")
    if section.has("rope_scaling") and old_scaling != scaling:
        raise section.error("rope_scaling", "is not what rope_parameters says")
    return theta, scaling


def _nested(section: _Section, key: str) -> _Section:
    return _Section(section.file, f"{section.prefix}{key}.", section.values[key])


def _rope_scaling(rope: _Section) -> Llama3Scaling | None:
    kind = rope.get("rope_type", "type")
    if kind == "default":
        scaling = None
    elif kind == "llama3":
        scaling = Llama3Scaling(
            factor=rope.number("factor"),
            low_freq_factor=rope.number("low_freq_factor"),
            high_freq_factor=rope.number("high_freq_factor"),
            original_max_position_embeddings=rope.integer("original_max_position_embeddings"),
        )
    else:
        raise rope.error("rope_type", f"is {kind!r}; 'default' and 'llama3' can be run")
    rope.only("partial_rotary_factor", 1.0)
    rope.finish(ignored=())
    return scaling


def _vision_config(section: _Section) -> VisionConfig:
    layers = section.integer("num_hidden_layers", most=_MOST_LAYERS)
    tiles = section.integer("max_num_tiles")
    config = VisionConfig(
        hidden_size=section.integer("hidden_size"),
        intermediate_size=section.integer("intermediate_size"),
        num_hidden_layers=layers,
        num_global_layers=section.integer("num_global_layers", most=_MOST_LAYERS),
        num_attention_heads=section.integer("attention_heads", "num_attention_heads"),
        num_channels=section.integer("num_channels"),
        image_size=section.integer("image_size"),
        patch_size=section.integer("patch_size"),
        max_num_tiles=tiles,
        num_aspect_ratios=_aspect_ratios(section, tiles),
        intermediate_layers_indices=section.indices("intermediate_layers_indices", layers),
        norm_eps=section.number("norm_eps"),
    )
    section.only("hidden_act", "gelu")
    section.only("num_channels", 3)
    section.only("vision_output_dim", config.output_size)
    section.only("max_aspect_ratio_id", config.num_aspect_ratios)
    if config.hidden_size % config.num_attention_heads:
        raise section.error("attention_heads", f"does not divide {config.hidden_size}")
    if config.image_size % config.patch_size:
        raise section.error("patch_size", f"does not divide a tile of {config.image_size} pixels")
    section.finish()
    return config


def _aspect_ratios(section: _Section, tiles: int) -> int:
    """How many arrangements have an embedding.

    transformers' picture processor numbers the arrangements by itself (see
    `pictures.tile_arrangements`), so a shorter list would leave some pictures without a row.
    """
    ratios = section.get("supported_aspect_ratios")
    # One row of tiles alone makes as many arrangements as there are tiles.
    if (
        not isinstance(ratios, list)
        or len(ratios) < tiles
        or len(ratios) < sum(tiles // rows for rows in range(1, tiles + 1))
    ):
        raise section.error(
            "supported_aspect_ratios", f"leaves out arrangements of up to {tiles} tiles"
        )
    return len(ratios)


def _quantization(top: _Section) -> QuantizationMap | None:
    top.read |= {"quantization", "quantization_config"}
    values = top.values.get("quantization") or top.values.get("quantization_config")
    if values is None:
        return None
    if not isinstance(values, dict) or "quant_method" in values:
        method = values.get("quant_method") if isinstance(values, dict) else values
        raise top.error(
            "quantization_config",
            f"says {method!r}, which MLX cannot read: start from the unquantised checkpoint",
        )
    shared = {key: value for key, value in values.items() if not isinstance(value, dict | bool)}
    default = _one_quantization(_Section(top.file, "quantization.", shared))
    overrides = {
        module: _one_quantization(_Section(top.file, f"quantization.{module}.", value))
        for module, value in values.items()
        if isinstance(value, dict)
    }
    return QuantizationMap(default, overrides)


def _one_quantization(section: _Section) -> Quantization:
    mode = section.get("mode") if section.has("mode") else "affine"
    section.read.add("mode")
    quantization = Quantization(section.integer("group_size"), section.integer("bits"), mode)
    section.finish(ignored=())
    return quantization
