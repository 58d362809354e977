"""LLaVA-CoT on MLX: ask about an image, and the answer comes in four stages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from llavacot_mlx.assistant import Assistant
    from llavacot_mlx.errors import UserError
    from llavacot_mlx.plan.plan import Plan
    from llavacot_mlx.request import Request
    from llavacot_mlx.search.judges.base import Candidate, ExternalJudge, JudgeError
    from llavacot_mlx.trace.record import Trace

__version__ = "0.1.0"
__all__ = [
    "Assistant",
    "Candidate",
    "ExternalJudge",
    "JudgeError",
    "Plan",
    "Request",
    "Trace",
    "UserError",
    "__version__",
]

_DEFINED_IN = {
    "Assistant": "assistant",
    "Candidate": "search.judges.base",
    "ExternalJudge": "search.judges.base",
    "JudgeError": "search.judges.base",
    "Plan": "plan.plan",
    "Request": "request",
    "Trace": "trace.record",
    "UserError": "errors",
}


def __getattr__(name: str) -> object:
    # Imported on first use, so that `llavacot --help` loads neither mlx nor the tokenizer.
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_DEFINED_IN[name]}", __name__), name)
