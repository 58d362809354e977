"""LLaVA-CoT on MLX: ask about a picture, and the answer comes in four stages."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .assistant import Assistant
    from .errors import UserError
    from .judges.base import Candidate, ExternalJudge, JudgeError
    from .plans import Plan
    from .request import Request
    from .trace import Trace

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
    "Candidate": "judges.base",
    "ExternalJudge": "judges.base",
    "JudgeError": "judges.base",
    "Plan": "plans",
    "Request": "request",
    "Trace": "trace",
    "UserError": "errors",
}


def __getattr__(name: str) -> object:
    # Imported on first use, so that `llavacot --help` loads neither mlx nor the tokenizer.
    if name not in _DEFINED_IN:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f".{_DEFINED_IN[name]}", __name__), name)
