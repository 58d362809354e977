"""Sampling parameters, in pure Python; `sampling.py` draws with them."""

from __future__ import annotations

import math
from dataclasses import dataclass

from llavacot_mlx.errors import UserError


@dataclass(frozen=True)
class Sampling:
    """Sampling parameters. Temperature 0 takes the most likely token; `top_p` then has no
    effect."""

    temperature: float = 0.0
    top_p: float = 1.0


PUBLISHED_SAMPLING = Sampling(temperature=0.6, top_p=0.9)
"""The LLaVA-CoT authors' parameters (arXiv 2411.10440v6, appendix D)."""


def check_sampling(sampling: Sampling) -> None:
    """Raises UserError for an impossible temperature or top-p."""
    if not 0 <= sampling.temperature < math.inf:
        raise UserError(f"temperature must be 0 or more, not {sampling.temperature:g}")
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, not {sampling.top_p:g}")
