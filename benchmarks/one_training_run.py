"""Measures training steps in their own process, ours or mlx-vlm's.

`python -m benchmarks.one_training_run ours|mlx-vlm …` prints one JSON object on the last line.
"""

from __future__ import annotations

import argparse
import json
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
import numpy as np
from mlx.utils import tree_map

RANK, ALPHA = 8, 16.0
PROMPT_TOKENS = 64
"""Tokens of a row without a loss. LLaVA-CoT's questions are short and its answers long."""
_IMAGE_AT = 5
_HIGHEST_ID = 400
"""Ids are drawn below this one, where every vocabulary here has ordinary tokens."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=("ours", "mlx-vlm"))
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--rows", type=int, default=1)
    parser.add_argument("--tokens", type=int, default=512)
    parser.add_argument("--steps", type=int, default=2, help="measured, after one that is not")
    parser.add_argument("--checkpoint", action="store_true", help="gradient checkpointing")
    parser.add_argument(
        "--no-tower", action="store_true", help="ours: noise in place of the picture's features"
    )
    arguments = parser.parse_args()
    prepare = _ours if arguments.program == "ours" else _mlx_vlm
    parts = prepare(arguments)
    mx.reset_peak_memory()  # evaluates the weights, so that reading them is not measured
    seconds: dict[str, list[float]] = {name: [] for name in parts}
    for _ in range(1 + arguments.steps):
        for name, run in parts.items():
            started = time.perf_counter()
            run()
            seconds[name].append(time.perf_counter() - started)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    result = {name: float(np.median(times[1:])) for name, times in seconds.items()}
    result["peak_rss_bytes"] = peak if sys.platform == "darwin" else peak * 1024
    result["peak_array_bytes"] = mx.get_peak_memory()
    print(json.dumps(result))


def _ids(arguments: argparse.Namespace, image_token_id: int) -> np.ndarray:
    shape = (arguments.rows, arguments.tokens)
    ids = np.random.default_rng(0).integers(0, _HIGHEST_ID, shape, dtype=np.int32)
    ids[:, _IMAGE_AT] = image_token_id
    return ids


def _ours(arguments: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """Functions that run the vision tower on a picture, and a step with cached image features."""
    from llavacot_mlx.checkpoint.weights import load_model
    from llavacot_mlx.prompt.image_processor import ImageProcessor
    from llavacot_mlx.prompt.images import open_image
    from llavacot_mlx.train.data.sample import TokenKind
    from llavacot_mlx.train.lora_setup import apply_lora
    from llavacot_mlx.train.loss.feature_cache import Features, compute_features
    from llavacot_mlx.train.loss.loss_and_grad import loss_and_gradients
    from llavacot_mlx.train.loss.step_inputs import Inputs
    from llavacot_mlx.train.settings import LoRASettings, TrainSettings

    model = load_model(arguments.model)
    image_processor = ImageProcessor.load(arguments.model, model.config.vision)
    tiles = image_processor(open_image(arguments.picture))
    apply_lora(model, TrainSettings(lora_parameters=LoRASettings(rank=RANK, scale=ALPHA / RANK)))
    ids = _ids(arguments, model.config.image_token_id)
    token_kinds = np.full(ids.shape, TokenKind.REASONING, dtype=np.uint8)
    token_kinds[:, :PROMPT_TOKENS] = TokenKind.MASKED
    optimizer = optim.AdamW(1e-4)
    vision = model.config.vision
    size = (1, vision.max_num_tiles * vision.tokens_per_tile, model.config.text.hidden_size)
    known = [Features(mx.random.normal(size), len(tiles.pixels))]

    def tower() -> None:
        known[:] = [compute_features(model, tiles)]

    def step() -> None:
        inputs = Inputs.of(ids, token_kinds, known * len(ids), model.config)
        sums, gradients = loss_and_gradients(model, inputs, arguments.checkpoint)
        learned = sums.tokens
        gradients = tree_map(lambda gradient: gradient / learned, gradients)
        optimizer.update(model, gradients)
        mx.eval(model.trainable_parameters(), optimizer.state)

    return {"step_s": step} if arguments.no_tower else {"tower_s": tower, "step_s": step}


def _mlx_vlm(arguments: argparse.Namespace) -> dict[str, Callable[[], None]]:
    """A function that runs a step of mlx-vlm's loop: its loss, LoRA on the same layers, its inputs.

    Its vision tower is part of every step. The mask of absent tiles is omitted: no tile is absent
    here, and mlx-vlm is faster without the mask.
    """
    from mlx_vlm import load
    from mlx_vlm.trainer.core import grad_checkpoint
    from mlx_vlm.trainer.peft.utils import get_peft_model
    from mlx_vlm.trainer.vlm.sft.trainer import vision_language_loss_fn
    from mlx_vlm.utils import prepare_inputs

    model, processor = load(str(arguments.model))
    image_token_id = model.config.image_token_index
    names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
    model = get_peft_model(model, names, rank=RANK, alpha=ALPHA, dropout=0.0, verbose=False)
    if arguments.checkpoint:
        grad_checkpoint(model.language_model.model.layers[0])
    prepared: dict[str, Any] = prepare_inputs(
        processor, images=[str(arguments.picture)], prompts=["<|image|>"]
    )
    ids = mx.array(_ids(arguments, image_token_id))
    learned = mx.broadcast_to(mx.arange(ids.shape[1]) >= PROMPT_TOKENS, ids.shape)
    batch = {
        **{name: prepared[name] for name in ("aspect_ratio_ids", "aspect_ratio_mask")},
        "input_ids": ids,
        "pixel_values": prepared["pixel_values"],
        "attention_mask": mx.ones_like(ids),
        "completion_mask": learned.astype(mx.int32),
    }
    optimizer = optim.AdamW(1e-4)
    loss_and_gradients = nn.value_and_grad(
        model, lambda model, batch: vision_language_loss_fn(model, batch, True)
    )
    model.train()

    def step() -> None:
        _, gradients = loss_and_gradients(model, batch)
        optimizer.update(model, gradients)
        del gradients
        mx.clear_cache()
        mx.eval(model.state, optimizer.state)

    return {"step_s": step}


if __name__ == "__main__":
    main()
