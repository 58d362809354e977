"""How the model in the package becomes weights that can be trained further."""

from __future__ import annotations

from pathlib import Path

from safetensors.torch import load_file
from torch import Tensor

from llavacot_mlx.names import PATCH_EMBEDDING

# The package's names of weights, and transformers' in memory (the reverse of llavacot_mlx.names).
_PREFIXES = {
    "language_model.model.": "model.language_model.",
    "language_model.lm_head.": "lm_head.",
    "vision_tower.": "model.vision_model.",
    "multi_modal_projector.": "model.multi_modal_projector.",
}


def packaged_weights(folder: Path) -> dict[str, Tensor]:
    """A state dict for `model.new_model`, float32, from an MLX folder that is not quantised."""
    state = {}
    for name, tensor in load_file(folder / "model.safetensors").items():
        prefix = next(prefix for prefix in _PREFIXES if name.startswith(prefix))
        if name == PATCH_EMBEDDING:  # MLX has a convolution's channels last
            tensor = tensor.permute(0, 3, 1, 2).contiguous()
        state[_PREFIXES[prefix] + name.removeprefix(prefix)] = tensor.float()
    return state
