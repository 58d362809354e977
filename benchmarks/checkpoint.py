"""Makes a random checkpoint and a picture of the real geometry, to measure without real weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from PIL import Image

from llavacot_mlx.checked import read_json
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.demo import model_path
from llavacot_mlx.model.mllama import Mllama

TILE, TILES = 560, 4
"""Side of a tile in pixels, and tiles per picture, as in the 11B: 6404 image tokens."""


def write_checkpoint(folder: Path, vocabulary: int) -> None:
    """Writes a Mllama of 10 text layers (2 of them cross-attention) of width 512.

    The picture's geometry is the 11B's; the vision tower has as many heads as the 11B's (16) but
    two layers. The tokenizer is the demo model's, its vocabulary filled up to `vocabulary` ids. No
    special token is ever ranked first, so that a run decodes the full number of tokens.
    """
    folder.mkdir(parents=True)
    demo = model_path()
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(demo / name, folder / name)
    _write_json(
        folder / "tokenizer.json",
        filled_tokenizer(read_json(demo / "tokenizer.json", ""), vocabulary),
    )
    pictures = read_json(demo / "preprocessor_config.json", "")
    pictures |= {"size": {"height": TILE, "width": TILE}, "max_image_tiles": TILES}
    _write_json(folder / "preprocessor_config.json", pictures)
    _write_json(folder / "config.json", _config(vocabulary))

    mx.random.seed(0)
    weights = {
        name: _random(name, tuple(parameter.shape))
        for name, parameter in tree_flatten(Mllama(load_config(folder)).parameters())
    }
    head = weights["language_model.lm_head.weight"]
    special = [token["id"] for token in read_json(folder / "tokenizer.json", "")["added_tokens"]]
    head[mx.array([token_id for token_id in special if token_id < vocabulary])] = 0
    mx.save_safetensors(str(folder / "model.safetensors"), weights, metadata={"format": "mlx"})


def write_picture(file: Path, tiles: int) -> None:
    """Writes a picture of noise that is cut into `tiles` tiles: 1, 2 or 4."""
    columns, rows = {1: (1, 1), 2: (2, 1), 4: (2, 2)}[tiles]
    shape = (rows * TILE, columns * TILE, 3)
    noise = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    Image.fromarray(noise).save(file)


def _config(vocabulary: int) -> dict[str, object]:
    return {
        "model_type": "mllama",
        "architectures": ["MllamaForConditionalGeneration"],
        "image_token_index": vocabulary,
        "text_config": {
            "model_type": "mllama_text_model",
            "vocab_size": vocabulary,
            "hidden_size": 512,
            "intermediate_size": 1792,
            "num_hidden_layers": 10,
            "num_attention_heads": 8,
            "num_key_value_heads": 2,
            "rms_norm_eps": 1e-5,
            "cross_attention_layers": [3, 8],
            "rope_theta": 500000.0,
            "rope_scaling": {
                "rope_type": "llama3",
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 8192,
            },
            "max_position_embeddings": 131072,
            "hidden_act": "silu",
            "pad_token_id": None,
        },
        "vision_config": {
            "model_type": "mllama_vision_model",
            "hidden_size": 320,
            "intermediate_size": 1280,
            "num_hidden_layers": 1,
            "num_global_layers": 1,
            "num_attention_heads": 16,
            "num_channels": 3,
            "image_size": TILE,
            "patch_size": 14,
            "max_num_tiles": TILES,
            "supported_aspect_ratios": [
                [rows, columns]
                for rows in range(1, TILES + 1)
                for columns in range(1, TILES // rows + 1)
            ],
            "intermediate_layers_indices": [0],
            "vision_output_dim": 640,
            "norm_eps": 1e-5,
            "hidden_act": "gelu",
        },
    }


def filled_tokenizer(tokenizer: dict, vocabulary: int) -> dict:
    """The tokenizer with fillers below `<|image|>`, whose id becomes `vocabulary`."""
    words = tokenizer["model"]["vocab"]
    specials = {token["content"]: token["id"] for token in tokenizer["added_tokens"]}
    last = max([*words.values(), *specials.values()])
    assert specials["<|image|>"] == last <= vocabulary, (last, vocabulary)
    # Special tokens may follow the words, so the fillers begin where both end.
    words |= {f"filler{token_id}": token_id for token_id in range(last, vocabulary)}
    for token in tokenizer["added_tokens"]:
        if token["content"] == "<|image|>":
            token["id"] = vocabulary
    return tokenizer


def _random(name: str, shape: tuple[int, ...]) -> mx.array:
    if shape == (1,):
        return mx.array([0.5])  # an open gate, so that the layers behind it have an effect
    if name.endswith("norm.weight") or ("layernorm" in name and name.endswith("weight")):
        return mx.ones(shape)
    return mx.random.normal(shape) * 0.02


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
