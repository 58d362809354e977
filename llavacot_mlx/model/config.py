"""The shape of the network: sizes, layers, RoPE and quantization, as plain data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

_AFFINE = {"bits": (2, 3, 4, 5, 6, 8), "group_size": (32, 64, 128)}
_FIXED = {
    "mxfp4": {"bits": 4, "group_size": 32},
    "mxfp8": {"bits": 8, "group_size": 32},
    "nvfp4": {"bits": 4, "group_size": 16},
}


@dataclass(frozen=True)
class Llama3Scaling:
    """Frequencies of RoPE stretched for long contexts, as Llama 3.1 and later do."""

    factor: float
    low_freq_factor: float
    high_freq_factor: float
    original_max_position_embeddings: int


@dataclass(frozen=True)
class TextConfig:
    vocab_size: int
    """Rows of the output head; the embedding has eight more, the first of them for `<|image|>`."""
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    rms_norm_eps: float
    cross_attention_layers: tuple[int, ...]
    rope_theta: float
    rope_scaling: Llama3Scaling | None
    max_position_embeddings: int

    @property
    def embedding_rows(self) -> int:
        """Rows of the embedding; every token id is below."""
        return self.vocab_size + 8

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads


@dataclass(frozen=True)
class VisionConfig:
    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_global_layers: int
    num_attention_heads: int
    num_channels: int
    image_size: int
    """Height and width of a tile, in pixels."""
    patch_size: int
    max_num_tiles: int
    num_aspect_ratios: int
    """Tile arrangements that have an embedding; row 0 of the embeddings means no image."""
    intermediate_layers_indices: tuple[int, ...]
    norm_eps: float

    @property
    def head_dim(self) -> int:
        return self.hidden_size // self.num_attention_heads

    @property
    def tokens_per_tile(self) -> int:
        """Patches of a tile and the class token."""
        return (self.image_size // self.patch_size) ** 2 + 1

    @property
    def output_size(self) -> int:
        return self.hidden_size * (1 + len(self.intermediate_layers_indices))


@dataclass(frozen=True)
class Quantization:
    """How a weight is quantized: MLX's `group_size`, `bits` and `mode`."""

    group_size: int
    bits: int
    mode: str = "affine"

    @property
    def error(self) -> str | None:
        """Why MLX cannot run it, such as `bits must be 2, 3, 4, 5, 6 or 8, not 7`; None if it can.

        Stated here, so that the command line can check it without MLX.
        """
        if self.mode == "affine":
            allowed = _AFFINE
        elif self.mode in _FIXED:
            allowed = {name: (value,) for name, value in _FIXED[self.mode].items()}
        else:
            return f"mode must be {_one_of(('affine', *_FIXED))}, not {self.mode}"
        for name, values in allowed.items():
            given = getattr(self, name)
            if given not in values:
                of_mode = "" if self.mode == "affine" else f" of {self.mode}"
                return f"{name.replace('_', ' ')}{of_mode} must be {_one_of(values)}, not {given}"
        return None


def _one_of(values: Sequence[object]) -> str:
    *first, last = map(str, values)
    return f"{', '.join(first)} or {last}" if first else last


@dataclass(frozen=True)
class QuantizationMap:
    """The quantization of a folder: one default, and what differs by module."""

    default: Quantization
    overrides: Mapping[str, Quantization]

    def of(self, module: str) -> Quantization:
        return self.overrides.get(module, self.default)


@dataclass(frozen=True)
class ModelConfig:
    text: TextConfig
    vision: VisionConfig
    image_token_id: int
    quantization: QuantizationMap | None
