"""Loads a model of the package in transformers, to ask it or to train it further."""

from __future__ import annotations

from pathlib import Path

from model import new_model
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import MllamaForConditionalGeneration

from llavacot_mlx.checkpoint.weight_names import PATCH_EMBEDDING

# The names of weights in memory, and those of transformers: the reverse of
# llavacot_mlx.checkpoint.weight_names.
_PREFIXES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_model.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


def packaged(folder: Path, tokenizer: Tokenizer) -> MllamaForConditionalGeneration:
    """The demo model of an MLX folder that is not quantized, in float32."""
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        if name == PATCH_EMBEDDING:  # MLX has a convolution's channels last
            tensor = tensor.permute(0, 3, 1, 2).contiguous()
        state[_PREFIXES[prefix] + name.removeprefix(prefix)] = tensor.float()
    model = new_model(tokenizer, seed=0)
    model.load_state_dict(state)
    return model.eval()
