"""Writes a random checkpoint with the 11B's widths and a chosen number of its layers.

It is written in pieces, so that 21 GB take little memory. Measuring how long weights take to read,
convert and run does not need real ones.
"""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import numpy as np
from mlx.utils import tree_flatten

from benchmarks.checkpoint import filled_tokenizer
from llavacot_mlx.checked import read_json
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.demo import model_path
from llavacot_mlx.model.mllama import Mllama

TEXT_LAYERS, VISION_LAYERS = 40, 32
"""Layers of the 11B; it has 8 global vision layers as well."""

VOCABULARY = 128256
_SHARD_BYTES = 5 * 10**9
_POOL = 2**24  # random values that all weights are slices of
_PIECE = 2**24


def write_real_widths(
    folder: Path, text_layers: int, vision_layers: int, global_layers: int
) -> int:
    """Writes a checkpoint in bfloat16 in the hub's layout, and returns the size of its weights.

    `vision_layers` must be 5 or more, for the widths that the projector reads. No special token is
    ever ranked first, so that an answer has the maximum length.
    """
    folder.mkdir(parents=True)
    demo = model_path()
    for name in ("tokenizer_config.json", "chat_template.jinja", "generation_config.json"):
        shutil.copy(demo / name, folder / name)
    tokenizer = filled_tokenizer(read_json(demo / "tokenizer.json", ""), VOCABULARY)
    _write_json(folder / "tokenizer.json", tokenizer)
    pictures = read_json(demo / "preprocessor_config.json", "")
    pictures |= {"size": {"height": 560, "width": 560}, "max_image_tiles": 4}
    _write_json(folder / "preprocessor_config.json", pictures)
    _write_json(folder / "config.json", _config(text_layers, vision_layers, global_layers))
    special = [token["id"] for token in tokenizer["added_tokens"] if token["id"] < VOCABULARY]

    shapes = {
        _hub_name(name): _hub_shape(name, tuple(array.shape))
        for name, array in tree_flatten(Mllama(load_config(folder)).parameters())
    }
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    size = 0
    for name, shape in shapes.items():
        if size + 2 * math.prod(shape) > _SHARD_BYTES:
            shards.append({})
            size = 0
        shards[-1][name] = shape
        size += 2 * math.prod(shape)
    weights = _Weights(special)
    weight_map = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        weights.write(folder / file, shard)
        weight_map |= dict.fromkeys(shard, file)
    total = sum(2 * math.prod(shape) for shape in shapes.values())
    index = {"metadata": {"total_size": total}, "weight_map": weight_map}
    _write_json(folder / "model.safetensors.index.json", index)
    return total


class _Weights:
    """Random values with a deviation of 0.02, as in a new model; norms are one, gates half open."""

    def __init__(self, special: list[int]) -> None:
        self._random = np.random.default_rng(0)
        self._pool = _bfloat16(self._random.standard_normal(_POOL, np.float32) * 0.02)
        self._special = special

    def write(self, file: Path, shapes: dict[str, tuple[int, ...]]) -> None:
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        position = 0
        for name, shape in shapes.items():
            end = position + 2 * math.prod(shape)
            header[name] = {"dtype": "BF16", "shape": shape, "data_offsets": [position, end]}
            position = end
        text = json.dumps(header).encode()
        with file.open("wb") as stream:
            stream.write(len(text).to_bytes(8, "little") + text)
            for name, shape in shapes.items():
                start = stream.tell()
                for first in range(0, math.prod(shape), _PIECE):
                    count = min(_PIECE, math.prod(shape) - first)
                    stream.write(self._values(name, shape, count).tobytes())
                if name.endswith("lm_head.weight"):
                    for token_id in self._special:
                        stream.seek(start + token_id * 2 * shape[1])
                        stream.write(bytes(2 * shape[1]))
                    stream.seek(0, 2)

    def _values(self, name: str, shape: tuple[int, ...], count: int) -> np.ndarray:
        if shape == (1,):
            return _bfloat16(np.full(count, 0.5, np.float32))
        if name.endswith("norm.weight") or ("layernorm" in name and name.endswith("weight")):
            return _bfloat16(np.ones(count, np.float32))
        return np.roll(self._pool, int(self._random.integers(_POOL)))[:count]


def _bfloat16(values: np.ndarray) -> np.ndarray:
    """The upper halves of float32 values: NumPy has no bfloat16."""
    return (values.view(np.uint32) >> 16).astype(np.uint16)


def _hub_name(name: str) -> str:
    return name.replace("vision_tower.", "vision_model.")


def _hub_shape(name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    if name == "vision_tower.patch_embedding.weight":
        out, height, width, channels = shape
        return out, channels, height, width
    return shape


def _config(text_layers: int, vision_layers: int, global_layers: int) -> dict[str, object]:
    seen = (3, 7, 15, 23, 30) if vision_layers == VISION_LAYERS else (0, 1, 2, 3, 4)
    return {
        "model_type": "mllama",
        "architectures": ["MllamaForConditionalGeneration"],
        "image_token_index": VOCABULARY,
        "torch_dtype": "bfloat16",
        "text_config": {
            "model_type": "mllama_text_model",
            "vocab_size": VOCABULARY,
            "hidden_size": 4096,
            "intermediate_size": 14336,
            "num_hidden_layers": text_layers,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "rms_norm_eps": 1e-5,
            "cross_attention_layers": list(range(3, text_layers, 5)),
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
            "hidden_size": 1280,
            "intermediate_size": 5120,
            "num_hidden_layers": vision_layers,
            "num_global_layers": global_layers,
            "num_attention_heads": 16,
            "num_channels": 3,
            "image_size": 560,
            "patch_size": 14,
            "max_num_tiles": 4,
            "supported_aspect_ratios": [
                [1, 1], [1, 2], [1, 3], [1, 4], [2, 1], [2, 2], [3, 1], [4, 1],
            ],
            "intermediate_layers_indices": list(seen),
            "vision_output_dim": 7680,
            "norm_eps": 1e-5,
            "hidden_act": "gelu",
        },
    }  # fmt: skip


def _write_json(file: Path, value: object) -> None:
    file.write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")
