"""A random tiny model made in memory, and prompts for it."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten

from llavacot_mlx.model.config import Llama3Scaling, ModelConfig, TextConfig, VisionConfig
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_processor import Tiles
from llavacot_mlx.prompt.image_spans import Prompt

IMAGE_TOKEN_ID = 100
CONFIG = ModelConfig(
    TextConfig(
        vocab_size=100,
        hidden_size=48,
        intermediate_size=60,
        num_hidden_layers=4,
        num_attention_heads=6,
        num_key_value_heads=2,
        rms_norm_eps=1e-4,
        cross_attention_layers=(0, 2),
        rope_theta=500.0,
        rope_scaling=Llama3Scaling(8.0, 1.0, 4.0, 64),
        max_position_embeddings=700,
    ),
    VisionConfig(
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=2,
        num_global_layers=1,
        num_attention_heads=3,
        num_channels=3,
        image_size=8,
        patch_size=4,
        max_num_tiles=2,
        num_aspect_ratios=3,
        intermediate_layers_indices=(1, 0),
        norm_eps=1e-4,
    ),
    image_token_id=IMAGE_TOKEN_ID,
    quantization=None,
)


def random_model() -> Mllama:
    """A random model made in memory, without a folder or a tokenizer; its gates are open."""
    made = Mllama(CONFIG)
    keys = iter(mx.random.split(mx.random.key(1), 200))
    # Picture and place decide about the next token, and not the last token alone.
    gains = {"cross_attn.o_proj": 0.5, "self_attn.o_proj": 2, "q_proj": 1.7, "k_proj": 1.7}

    def value(name: str, shape: tuple[int, ...]) -> mx.array:
        noise = mx.random.normal(shape, key=next(keys))
        if "gate" in name.rpartition(".")[2]:
            return 0.7 + 0.1 * noise
        if "norm" in name:
            return 1 + 0.2 * noise
        if len(shape) == 1 or "embed" in name:
            return noise
        gain = next((gain for part, gain in gains.items() if part in name), 1)
        return gain * noise / (noise.size // shape[0]) ** 0.5

    parameters = tree_flatten(made.parameters())
    made.load_weights([(name, value(name, array.shape)) for name, array in parameters])
    made.eval()
    return made


def tiles(count: int, seed: int = 0) -> Tiles:
    """A picture of one or two tiles."""
    pixels = np.random.default_rng(seed).standard_normal((count, 8, 8, 3)).astype(np.float32)
    return Tiles(pixels, rows=1, columns=count, aspect_ratio_id=count)


def words(count: int, seed: int = 0) -> list[int]:
    return np.random.default_rng(seed).integers(0, 100, count).tolist()


def prompt(*parts: list[int] | Tiles) -> Prompt:
    """A prompt of words and pictures, in order."""
    ids = [token for part in parts for token in ([100] if isinstance(part, Tiles) else part)]
    return Prompt(tuple(ids), tuple(part for part in parts if isinstance(part, Tiles)))
