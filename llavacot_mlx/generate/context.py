"""What every forward pass after one prompt computes with."""

from __future__ import annotations

from dataclasses import dataclass

from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.kv_cache import ImageKV
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.usage import Usage


@dataclass(frozen=True)
class DecodeContext:
    """What forward passes after one prompt share, however many paths they decode."""

    model: Mllama
    image_kv: ImageKV | None
    """K/V of the images that every new token sees; None without an image."""
    usage: Usage
    """Raised by whoever runs the model."""
    kv_budget: KVBudget
    """Told before K/V are stored; it also says in how many bits."""
