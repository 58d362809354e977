"""Selects the trained weights of a model, and inserts LoRA or DoRA layers."""

from __future__ import annotations

import mlx.core as mx
import mlx.nn as nn
from mlx.utils import tree_flatten, tree_unflatten

from llavacot_mlx.checked import brief, quoted
from llavacot_mlx.checkpoint.adapter_config import FineTuneType
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.linear import dims_of
from llavacot_mlx.model.lora import DoRALinear, LoRALinear
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.train.settings import LINEARS, TrainSettings

_TEXT = "language_model.model.layers."
_VISION = ("vision_tower.", "multi_modal_projector")
_LINEAR = (nn.Linear, nn.QuantizedLinear)


def apply_lora(model: Mllama, settings: TrainSettings) -> None:
    """Freezes `model` except for what the settings select, and inserts LoRA or DoRA layers there.

    A LoRA layer keeps a quantized layer as it is (QLoRA, arXiv 2305.14314). `settings.seed`
    determines the initial LoRA matrices. With `settings.train_vision`, the vision tower and the
    projector are trained as well. Raises UserError when the model lacks what the settings select.
    """
    lora = settings.lora_parameters
    if lora.rank < 1:
        raise UserError(f"rank {lora.rank}: it must be 1 or more")
    if not 0 <= lora.dropout < 1:
        raise UserError(f"dropout {lora.dropout:g}: it must be 0 or more, and below 1")
    chosen = _chosen_layers(model, settings.num_layers)
    if settings.fine_tune_type == FineTuneType.FULL:
        _unfreeze(model, chosen, settings)
        return
    paths = _chosen_linears(model, chosen, settings)
    modules = dict(model.named_modules())
    for path in paths:
        max_rank = min(dims_of(modules[path]))
        if lora.rank > max_rank:
            raise UserError(f"rank {lora.rank} is more than {path} has: at most {max_rank}")
    model.freeze()
    kind = DoRALinear if settings.fine_tune_type == FineTuneType.DORA else LoRALinear
    keys = mx.random.split(mx.random.key(settings.seed), len(paths))
    for path, key in zip(paths, keys, strict=True):
        layer = kind(modules[path], lora.rank, lora.scale, lora.dropout, key)
        model.update_modules(tree_unflatten([(path, layer)]))


def trainable_count(model: nn.Module) -> int:
    """Number of trainable parameters."""
    return sum(array.size for _, array in tree_flatten(model.trainable_parameters()))


def _chosen_layers(model: Mllama, num_layers: int) -> range:
    """The indices of the text layers that are trained."""
    count = len(model.language_model.model.layers)
    if num_layers == -1:
        return range(count)
    if not 1 <= num_layers <= count:
        raise UserError(
            f"num_layers {num_layers}: this model has {count} text layers; take 1 to {count}, "
            "or -1 for all of them"
        )
    return range(count - num_layers, count)


def _unfreeze(model: Mllama, chosen: range, settings: TrainSettings) -> None:
    if settings.lora_parameters.adapted != LINEARS:
        raise UserError("keys choose what LoRA adapts; full fine-tuning trains whole layers")
    text = model.language_model.model
    trained: list[nn.Module] = [text.layers[index] for index in chosen]
    if len(chosen) == len(text.layers):
        trained = [model.language_model]
    if settings.train_vision:
        trained += [model.vision_tower, model.multi_modal_projector]
    for module in trained:
        for _, part in module.named_modules():
            if isinstance(part, nn.QuantizedLinear | nn.QuantizedEmbedding):
                raise UserError(
                    "full fine-tuning needs weights that are not quantized: train lora or dora on "
                    "this model, or take a version of it in 16 bits"
                )
    model.freeze()
    for module in trained:
        module.unfreeze()


def _chosen_linears(model: Mllama, chosen: range, settings: TrainSettings) -> list[str]:
    """The paths of the linear layers that are adapted."""
    linears = [path for path, part in model.named_modules() if isinstance(part, _LINEAR)]
    text = [path for path in linears if path.startswith(_TEXT)]
    keys = settings.lora_parameters.adapted
    for key in keys:
        if not any(_ends(path, key) for path in text):
            there = sorted({path.removeprefix(_TEXT).partition(".")[2] for path in text})
            raise UserError(f"no text layer has a {quoted(key)}; there are {', '.join(there)}")
    paths = [
        path
        for path in text
        if int(path.removeprefix(_TEXT).partition(".")[0]) in chosen
        and any(_ends(path, key) for key in keys)
    ]
    if settings.train_vision:
        paths += [path for path in linears if path.startswith(_VISION)]
    if not paths:
        raise UserError(
            f"none of {brief(', '.join(keys))} is in the last {len(chosen)} text "
            "layers: take more layers (num_layers) or other keys"
        )
    return sorted(paths)


def _ends(path: str, key: str) -> bool:
    return path == key or path.endswith(f".{key}")
