"""Computes the size of a model and the memory that an answer takes, from the headers alone."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

from llavacot_mlx.checkpoint.dtypes import FLOATS
from llavacot_mlx.checkpoint.weights import SourceTensor, runtime_dtype
from llavacot_mlx.model.config import ModelConfig
from llavacot_mlx.model.quantized_kv import kv_bytes

_PROMPT_TOKENS = 64  # a question and its chat template
# Parts by the prefixes of their tensors' names.
_PARTS = (
    ("embedding", "language_model.model.embed_tokens."),
    ("output head", "language_model.lm_head."),
    ("vision tower", "vision_tower."),
    ("projector", "multi_modal_projector."),
)


@dataclass(frozen=True)
class Part:
    """A part of a model, such as its vision tower."""

    name: str
    weights: int
    """Number of weights; scales and biases of groups are not counted."""
    nbytes: int

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.nbytes / self.weights


@dataclass(frozen=True)
class Memory:
    """Bytes that answering takes."""

    weights: int
    picture: int
    """K/V of the image, shared by all candidates."""
    text: int
    """K/V of the question and of every candidate's whole answer."""
    working: int
    """Estimated activations of the vision tower."""

    @property
    def total(self) -> int:
        return self.weights + self.picture + self.text + self.working


def parts_of(config: ModelConfig, tensors: Mapping[str, SourceTensor]) -> tuple[Part, ...]:
    """The parts of a model, in the order in which they compute an answer."""
    counts: dict[str, list[int]] = {}
    for name, tensor in tensors.items():
        found = counts.setdefault(_part_of(name, config), [0, 0])
        found[0] += _weights_in(name, tensor, config, tensors)
        found[1] += tensor.entry.nbytes
    order = ("vision tower", "projector", "embedding", "text layers", "cross-attention layers")
    return tuple(Part(name, *counts[name]) for name in (*order, "output head") if name in counts)


def estimate_memory(
    config: ModelConfig,
    tensors: Mapping[str, SourceTensor],
    tiles: int,
    candidates: int,
    max_tokens: int,
) -> Memory:
    """Estimates the memory that one question about an image of `tiles` tiles takes on this device.

    `max_tokens` is the length of each of the `candidates` answers.
    """
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
    # Absent tiles are encoded, too. Several arrays hold each patch, and the MLP's are the widest.
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
