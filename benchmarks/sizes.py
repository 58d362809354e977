"""Computes the memory that LLaVA-CoT takes from its shapes: `python -m benchmarks.sizes`.

No weights are needed. The geometry is that of Llama-3.2-11B-Vision, which LLaVA-CoT fine-tunes.
"""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten

from llavacot_mlx.checkpoint.config_json import parse_config
from llavacot_mlx.model.config import ModelConfig
from llavacot_mlx.model.mllama import Mllama

LLAVA_COT = {
    "model_type": "mllama",
    "image_token_index": 128256,
    "text_config": {
        "vocab_size": 128256,
        "hidden_size": 4096,
        "intermediate_size": 14336,
        "num_hidden_layers": 40,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "rms_norm_eps": 1e-5,
        "cross_attention_layers": [3, 8, 13, 18, 23, 28, 33, 38],
        "rope_theta": 500000.0,
        "max_position_embeddings": 131072,
    },
    "vision_config": {
        "hidden_size": 1280,
        "intermediate_size": 5120,
        "num_hidden_layers": 32,
        "num_global_layers": 8,
        "num_attention_heads": 16,
        "num_channels": 3,
        "image_size": 560,
        "patch_size": 14,
        "max_num_tiles": 4,
        "supported_aspect_ratios": [[1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1]],
        "intermediate_layers_indices": [3, 7, 15, 23, 30],
        "norm_eps": 1e-5,
    },
}
ANSWER_TOKENS = 2048  # a long answer; the published setting stops there
PROMPT_TOKENS = 64  # a question with its chat template
CANDIDATES = (1, 2, 4, 8, 16)
BYTES = 2  # a bfloat16 value


def main() -> None:
    config = parse_config(LLAVA_COT, Path("LLaVA-CoT"))
    text = text_cache_bytes(config, ANSWER_TOKENS)
    cache = image_cache_bytes(config) + text
    print(f"{'weights':12}{'on disk':>10}{'+ K/V':>10}")
    for title, bits in (("bfloat16", None), ("8 bits", 8), ("4 bits", 4)):
        size = weight_bytes(config, bits)
        print(f"{title:12}{size / 1e9:7.1f} GB{(size + cache) / 1e9:7.1f} GB")
    print(f"\nK/V of a picture of four tiles: {image_cache_bytes(config) / 1e6:.0f} MB")
    print(f"K/V of {ANSWER_TOKENS} tokens of text: {text / 1e6:.0f} MB")
    print("\nK/V of candidates decoded together, the picture's and the prompt's included")
    print(f"{'own tokens':12}" + "".join(f"{count:>12}" for count in CANDIDATES))
    for tokens in (64, 256, 1024):
        sizes = [search_cache_bytes(config, count, tokens) for count in CANDIDATES]
        row = "".join(f"{size / 1e6:6.0f} MB{size / sizes[0]:4.1f}" for size in sizes)
        print(f"{tokens:<12}{row}")


def weight_bytes(config: ModelConfig, bits: int | None) -> int:
    """Bytes of the weights as `llavacot convert --dtype bfloat16 [-q --q-bits …]` writes them."""
    model = Mllama(config)
    model.set_dtype(mx.bfloat16)
    if bits is not None:
        nn.quantize(model.language_model, group_size=64, bits=bits)
    return sum(parameter.nbytes for _, parameter in tree_flatten(model.parameters()))


def image_cache_bytes(config: ModelConfig) -> int:
    """K/V of one picture that fills all tiles, in the cross-attention layers."""
    tokens = config.vision.max_num_tiles * config.vision.tokens_per_tile
    return tokens * len(config.text.cross_attention_layers) * _pair_bytes(config)


def text_cache_bytes(config: ModelConfig, tokens: int) -> int:
    layers = config.text.num_hidden_layers - len(config.text.cross_attention_layers)
    return tokens * layers * _pair_bytes(config)


def search_cache_bytes(config: ModelConfig, candidates: int, tokens: int) -> int:
    """K/V of candidates that share a picture and a prompt and have `tokens` own tokens each."""
    text = text_cache_bytes(config, PROMPT_TOKENS + candidates * tokens)
    return image_cache_bytes(config) + text


def _pair_bytes(config: ModelConfig) -> int:
    return 2 * config.text.num_key_value_heads * config.text.head_dim * BYTES


if __name__ == "__main__":
    main()
