"""The state that all forward passes after one prompt share."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.kv_cache import ImageKV
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.usage import Usage

if TYPE_CHECKING:
    from llavacot_mlx.generate.shared_decoder import SharedDecoder


@dataclass(frozen=True)
class DecodeContext:
    """The state that all forward passes after one prompt share, however many paths they decode."""

    model: Mllama
    image_kv: ImageKV | None
    """K/V of the images that every new token attends to; None without an image."""
    usage: Usage
    """Counters, raised by the code that runs the model."""
    kv_budget: KVBudget
    """Reserves K/V before they are stored, and has the bits to quantize them to."""
    decoder: SharedDecoder | None = field(default=None, kw_only=True)
    """Decodes the paths together with those of other prompts; None for this prompt alone."""
