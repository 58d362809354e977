"""Adapters with random weights, large enough that what they change shows in every logit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import mlx.core as mx
from mlx.utils import tree_flatten

from llavacot_mlx.checkpoint.adapter_config import AdapterConfig, Base, FineTuneType, LoRAParameters
from llavacot_mlx.checkpoint.adapters import save_adapter
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.model.linear import dims_of

# Of every part of the model one: both kinds of attention, an MLP, the output head, a vision layer
# with a bias, and the projector.
KEYS = (
    "self_attn.q_proj",
    "cross_attn.v_proj",
    "mlp.down_proj",
    "language_model.lm_head",
    "transformer.layers.0.mlp.fc1",
    "multi_modal_projector",
)
RANK, SCALE = 4, 1.5


def tensors_for(base: Path, kind: str, keys: Sequence[str] = KEYS) -> dict[str, mx.array]:
    """Random tensors of an adapter for the model in `base`; for "full", new norms and projector."""
    mx.random.seed(7)
    model = load_model(base, "float32")
    if kind == "full":
        return {
            name: array + 0.3 * mx.random.normal(array.shape)
            for name, array in tree_flatten(model.parameters())
            if "norm" in name or name.startswith("multi_modal_projector")
        }
    tensors = {}
    for path, linear in model.named_modules():
        if not path.endswith(tuple(keys)):
            continue
        outputs, inputs = dims_of(linear)
        tensors[f"{path}.lora_a"] = 0.2 * mx.random.normal((inputs, RANK))
        tensors[f"{path}.lora_b"] = 0.2 * mx.random.normal((RANK, outputs))
        if kind == "dora":
            tensors[f"{path}.m"] = mx.random.uniform(0.5, 1.5, (outputs,))
    return tensors


def config_for(base: Path, kind: str, name: str = "owner/base") -> AdapterConfig:
    lora = None if kind == "full" else LoRAParameters(RANK, SCALE, 0.1, KEYS)
    return AdapterConfig(FineTuneType(kind), -1, lora, Base.of(name, base))


def write_adapter(folder: Path, base: Path, kind: str = "lora", name: str | None = None) -> Path:
    """Writes an adapter for the model in `base`, which it calls `name`, or by its path."""
    config = config_for(base, kind, str(base) if name is None else name)
    save_adapter(folder, tensors_for(base, kind), config)
    return folder
