"""What a model weighs and what it needs to answer, worked out from its headers."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llavacot_mlx.checkpoint.dtypes import FLOATS
from llavacot_mlx.checkpoint.weights import SourceTensor, runtime_dtype
from llavacot_mlx.model.config import ModelConfig
from llavacot_mlx.model.quantized_kv import kv_bytes

_PROMPT_TOKENS = 64  # a question, and what stands around it
# A part is where a tensor's name first says so.
_PARTS = (
    ("embedding", "language_model.model.embed_tokens."),
    ("output head", "language_model.lm_head."),
    ("vision tower", "vision_tower."),
    ("projector", "multi_modal_projector."),
)


@dataclass(frozen=True)
class Part:
    """Some of a model's weights."""

    name: str
    weights: int
    """How many there are; scales and biases of groups are none."""
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights


@dataclass(frozen=True)
class Memory:
    """Bytes that answering takes; what the vision tower works with is an estimate."""

    weights: int
    picture: int
    """K/V of the picture, shared by all candidates."""
    text: int
    """K/V of the question and of every candidate's whole answer."""
    working: int

    @property
    def total(self) -> int:
        return self.weights + self.picture + self.text + self.working


def parts_of(config: ModelConfig, tensors: Mapping[str, SourceTensor]) -> tuple[Part, ...]:
    """The parts of a model in the order of an answer, the largest rest being its text layers."""
    counts: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        found = counts.setdefault(_part_of(name, config), [0, 0])
        found[0] += _weights_in(name, tensor, config, tensors)
        found[1] += tensor.entry.nbytes
    order = ("vision tower", "projector", "embedding", "text layers", "cross-attention layers")
    return tuple(Part(name, *counts[name]) for name in (*order, "output head") if name in counts)


def memory_for(
    config: ModelConfig,
    tensors: Mapping[str, SourceTensor],
    tiles: int,
    candidates: int,
    max_tokens: int,
) -> Memory:
    """What one question about a picture of so many tiles takes, on this device."""
    dtype, text, vision = runtime_dtype("auto", tensors), config.text, config.vision
    weights = sum(
        math.prod(tensor.shape) * dtype.size
        if tensor.entry.dtype in FLOATS
        else tensor.entry.nbytes
        for tensor in tensors.values()
    )
    per_token = 2 * text.num_key_value_heads * text.head_dim
    cross = len(text.cross_attention_layers)
    patches = (vision.image_size // vision.patch_size) ** 2 + 1
    picture = kv_bytes(cross * per_token * tiles * patches, text.head_dim, dtype, None)
    tokens = _PROMPT_TOKENS + candidates * max_tokens
    layers = text.num_hidden_layers - cross
    answers = kv_bytes(layers * per_token * tokens, text.head_dim, dtype, None)
    # Absent tiles are encoded, too. A row is there a few times over, and widest in the MLP.
    rows = vision.max_num_tiles * (-(-patches // 8) * 8)
    width = 8 * vision.hidden_size + 2 * vision.intermediate_size + vision.output_size
    return Memory(weights, picture, answers, rows * width * dtype.size)


def _part_of(name: str, config: ModelConfig) -> str:
    for part, prefix in _PARTS:
        if name.startswith(prefix):
            return part
    layer = name.removeprefix("language_model.model.layers.").partition(".")[0]
    is_cross = layer.isdigit() and int(layer) in config.text.cross_attention_layers
    return "cross-attention layers" if is_cross else "text layers"


def _weights_in(
    name: str, tensor: SourceTensor, config: ModelConfig, tensors: Mapping[str, SourceTensor]
) -> int:
    module, _, kind = name.rpartition(".")
    if kind in ("scales", "biases"):
        return 0
    size = math.prod(tensor.shape)
    if f"{module}.scales" in tensors and kind == "weight" and config.quantization is not None:
        return size * 32 // config.quantization.of(module).bits
    return size
