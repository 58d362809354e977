"""The model's configuration, read from `config.json` in either spelling.

transformers 5 writes `vision_config.attention_heads` and `text_config.rope_parameters`; older files
write `num_attention_heads`, `rope_theta` and `rope_scaling`. A key that is missing or unknown is an
error that names it: a wrong default would give fluent nonsense without a warning.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

from llavacot_mlx.checked import (
    Aliases,
    KeyRules,
    OneOf,
    PositiveFloat,
    PositiveInt,
    Range,
    brief,
    checked,
    known_keys,
    named,
    quoted,
    read_json,
    shown,
)
from llavacot_mlx.checkpoint.config_keys import without_effectless_keys
from llavacot_mlx.checkpoint.safetensors import list_tensors
from llavacot_mlx.checkpoint.weight_names import EMBEDDING, HEAD, canonical_name
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import (
    Llama3Scaling,
    ModelConfig,
    Quantization,
    QuantizationMap,
    TextConfig,
    VisionConfig,
)

_MAX_LAYERS = 1000  # a typo beyond it would build modules for minutes


_RULES = KeyRules(
    unknown="; its effect would be lost",
    missing=", and the result depends on it",
    null_is_missing=True,
)
_LayerCount = Annotated[int, Range(min=1, max=_MAX_LAYERS)]


@dataclass(frozen=True)
class _Text:
    vocab_size: PositiveInt
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: _LayerCount
    num_attention_heads: PositiveInt
    num_key_value_heads: PositiveInt
    rms_norm_eps: PositiveFloat
    cross_attention_layers: tuple[int, ...]
    max_position_embeddings: PositiveInt
    rope_parameters: dict[str, Any] | None = None
    rope_theta: PositiveFloat | None = None
    rope_scaling: dict[str, Any] | None = None
    rope_traditional: Annotated[bool, OneOf(False)] = False
    hidden_act: Annotated[str, OneOf("silu")] = "silu"
    head_dim: int | None = None


@dataclass(frozen=True)
class _Vision:
    hidden_size: PositiveInt
    intermediate_size: PositiveInt
    num_hidden_layers: _LayerCount
    num_global_layers: _LayerCount
    num_attention_heads: Annotated[PositiveInt, Aliases("attention_heads", "num_attention_heads")]
    num_channels: Annotated[int, OneOf(3)]
    image_size: PositiveInt
    patch_size: PositiveInt
    max_num_tiles: PositiveInt
    supported_aspect_ratios: tuple[Any, ...]
    intermediate_layers_indices: tuple[int, ...]
    norm_eps: PositiveFloat
    hidden_act: Annotated[str, OneOf("gelu")] = "gelu"
    vision_output_dim: int | None = None
    max_aspect_ratio_id: int | None = None


@dataclass(frozen=True)
class _ConfigFile:
    text_config: _Text
    vision_config: _Vision
    image_token_id: Annotated[int, Aliases("image_token_index", "image_token_id")]
    quantization: Any = None
    quantization_config: Any = None


_KNOWN = {
    "": known_keys(_ConfigFile),
    "text_config": known_keys(_Text),
    "vision_config": known_keys(_Vision),
}


@dataclass(frozen=True)
class _RopeType:
    rope_type: Annotated[str, Aliases("rope_type", "type"), OneOf("default", "llama3")]


@dataclass(frozen=True)
class _DefaultRope(_RopeType):
    rope_theta: PositiveFloat | None = None
    partial_rotary_factor: Annotated[float, OneOf(1.0)] = 1.0


@dataclass(frozen=True)
class _Llama3Rope(_DefaultRope):
    factor: PositiveFloat = field(kw_only=True)
    low_freq_factor: PositiveFloat = field(kw_only=True)
    high_freq_factor: PositiveFloat = field(kw_only=True)
    original_max_position_embeddings: PositiveInt = field(kw_only=True)


@dataclass(frozen=True)
class _Quantization:
    group_size: PositiveInt
    bits: PositiveInt
    mode: str = "affine"


def load_config(folder: Path) -> ModelConfig:
    """Reads `folder/config.json`.

    Raises UserError when the file is missing or not JSON, describes another architecture, lacks a
    key, or holds an unknown key or an impossible value.
    """
    file = folder / "config.json"
    return parse_config(read_json(file, f"is {folder} a model folder?"), file)


def parse_config(values: Any, file: Path) -> ModelConfig:
    """Validates the parsed JSON `values` of a configuration; `file` is named in errors."""
    with named(file):
        if isinstance(values, dict) and values.get("model_type") != "mllama":
            raise UserError(
                f"the model is of type {quoted(values.get('model_type'))}; this program "
                "runs 'mllama' (Llama 3.2 Vision and LLaVA-CoT)"
            )
        if isinstance(values, dict):
            values = without_effectless_keys(values, _KNOWN)
        found = checked(_ConfigFile, values, _RULES)
        text, vision = _text_config(found.text_config), _vision_config(found.vision_config)
        image_token_id = found.image_token_id
        if not text.vocab_size <= image_token_id < text.embedding_rows:
            raise UserError(
                f"the vocabulary was resized: {_rows(file.parent)}the config says "
                f"{text.vocab_size}, but image_token_index: {image_token_id} has to be one of "
                f"{text.vocab_size} to {text.vocab_size + 7}; start from a checkpoint whose "
                "vocabulary was not resized"
            )
        return ModelConfig(text, vision, image_token_id, _quantization(found))


def _rows(folder: Path) -> str:
    """The rows of embedding and head, as far as the weights beside config.json tell."""
    try:
        found = {canonical_name(name): entry for name, entry in list_tensors(folder).items()}
    except UserError:
        return ""
    embedding, head = (found.get(name) for name in (EMBEDDING, HEAD))
    if embedding is None or head is None or not embedding.shape or not head.shape:
        return ""
    return f"the embedding has {embedding.shape[0]} rows, the head {head.shape[0]}; "


def _text_config(text: _Text) -> TextConfig:
    theta, scaling = _rope(text)
    config = TextConfig(
        vocab_size=text.vocab_size,
        hidden_size=text.hidden_size,
        intermediate_size=text.intermediate_size,
        num_hidden_layers=text.num_hidden_layers,
        num_attention_heads=text.num_attention_heads,
        num_key_value_heads=text.num_key_value_heads,
        rms_norm_eps=text.rms_norm_eps,
        cross_attention_layers=text.cross_attention_layers,
        rope_theta=theta,
        rope_scaling=scaling,
        max_position_embeddings=text.max_position_embeddings,
    )
    _check_indices("text_config.cross_attention_layers", config.cross_attention_layers, config)
    _check_divides("text_config.num_attention_heads", text.num_attention_heads, text.hidden_size)
    _check_divides(
        "text_config.num_key_value_heads", text.num_key_value_heads, text.num_attention_heads
    )
    _check_same("text_config.head_dim", text.head_dim, config.head_dim)
    return config


def _rope(text: _Text) -> tuple[float, Llama3Scaling | None]:
    """RoPE's base and scaling, from either spelling. If both are given, they must agree."""
    theta, old_scaling = text.rope_theta, None
    if text.rope_scaling is not None:
        old_theta, old_scaling = _rope_object(text.rope_scaling, "text_config.rope_scaling")
        _check_same("text_config.rope_scaling.rope_theta", old_theta, theta)
    if text.rope_parameters is None:
        if theta is None:
            raise UserError(f"text_config.rope_theta or rope_parameters is missing{_RULES.missing}")
        return theta, old_scaling
    new_theta, scaling = _rope_object(text.rope_parameters, "text_config.rope_parameters")
    if new_theta is None:
        raise UserError(f"text_config.rope_parameters.rope_theta is missing{_RULES.missing}")
    _check_same("text_config.rope_theta", theta, new_theta)
    if text.rope_scaling is not None and old_scaling != scaling:
        raise UserError("text_config.rope_scaling is not what rope_parameters says")
    return new_theta, scaling


def _rope_object(values: dict[str, Any], path: str) -> tuple[float | None, Llama3Scaling | None]:
    if checked(_RopeType, values, replace(_RULES, unknown=None), path).rope_type == "default":
        return checked(_DefaultRope, values, _RULES, path).rope_theta, None
    rope = checked(_Llama3Rope, values, _RULES, path)
    scaling = Llama3Scaling(
        factor=rope.factor,
        low_freq_factor=rope.low_freq_factor,
        high_freq_factor=rope.high_freq_factor,
        original_max_position_embeddings=rope.original_max_position_embeddings,
    )
    return rope.rope_theta, scaling


def _vision_config(vision: _Vision) -> VisionConfig:
    config = VisionConfig(
        hidden_size=vision.hidden_size,
        intermediate_size=vision.intermediate_size,
        num_hidden_layers=vision.num_hidden_layers,
        num_global_layers=vision.num_global_layers,
        num_attention_heads=vision.num_attention_heads,
        num_channels=vision.num_channels,
        image_size=vision.image_size,
        patch_size=vision.patch_size,
        max_num_tiles=vision.max_num_tiles,
        num_aspect_ratios=_aspect_ratios(vision),
        intermediate_layers_indices=vision.intermediate_layers_indices,
        norm_eps=vision.norm_eps,
    )
    _check_indices(
        "vision_config.intermediate_layers_indices", config.intermediate_layers_indices, config
    )
    _check_same("vision_config.vision_output_dim", vision.vision_output_dim, config.output_size)
    _check_same(
        "vision_config.max_aspect_ratio_id", vision.max_aspect_ratio_id, config.num_aspect_ratios
    )
    _check_divides("vision_config.attention_heads", vision.num_attention_heads, vision.hidden_size)
    _check_divides("vision_config.patch_size", vision.patch_size, vision.image_size)
    return config


def _aspect_ratios(vision: _Vision) -> int:
    """The number of tile arrangements that have an embedding.

    transformers' image processor numbers the arrangements by itself (see
    `image_processor.tile_arrangements`), so a shorter list would leave some images without an
    embedding.
    """
    count, tiles = len(vision.supported_aspect_ratios), vision.max_num_tiles
    # One row of tiles alone makes as many arrangements as there are tiles.
    if count < tiles or count < sum(tiles // rows for rows in range(1, tiles + 1)):
        raise UserError(
            f"vision_config.supported_aspect_ratios leaves out arrangements of up to {tiles} tiles"
        )
    return count


def _quantization(found: _ConfigFile) -> QuantizationMap | None:
    values = found.quantization or found.quantization_config
    if values is None:
        return None
    if not isinstance(values, dict) or "quant_method" in values:
        method = values.get("quant_method") if isinstance(values, dict) else values
        raise UserError(
            f"quantization_config says {quoted(method)}, which MLX cannot read: start from the "
            "unquantized checkpoint"
        )
    shared = {key: value for key, value in values.items() if not isinstance(value, dict | bool)}
    overrides = {
        module: _one_quantization(value, f"quantization.{brief(module)}")
        for module, value in values.items()
        if isinstance(value, dict)
    }
    return QuantizationMap(_one_quantization(shared, "quantization"), overrides)


def _one_quantization(values: dict[str, Any], path: str) -> Quantization:
    found = checked(_Quantization, values, _RULES, path)
    return Quantization(found.group_size, found.bits, found.mode)


def _check_indices(key: str, indices: tuple[int, ...], config: TextConfig | VisionConfig) -> None:
    layers = config.num_hidden_layers
    if not all(0 <= index < layers for index in indices):
        raise UserError(f"{key}: expected layer numbers below {layers}, not {shown(indices)}")


def _check_divides(key: str, divisor: int, value: int) -> None:
    if value % divisor:
        raise UserError(f"{key}: {divisor} does not divide {value}")


def _check_same(key: str, value: float | None, expected: float | None) -> None:
    """Checks a redundant key: it may be missing, but must not contradict the other keys."""
    if value is not None and value != expected:
        raise UserError(f"{key} is {value}; by the other keys it is {expected}")
