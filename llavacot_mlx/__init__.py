"""LLaVA-CoT on MLX: ask about a picture, and the answer comes in four stages."""

from __future__ import annotations

from typing import TYPE_CHECKING

__version__ = "0.1.0"
__all__ = ["Assistant", "Trace", "UserError", "__version__"]

if TYPE_CHECKING:
    from .assistant import Assistant
    from .errors import UserError
    from .trace import Trace


def __getattr__(name: str) -> object:
    # Imported on first use, so that `llavacot --help` loads neither mlx nor the tokenizer.
    if name == "Assistant":
        from .assistant import Assistant

        return Assistant
    if name == "Trace":
        from .trace import Trace

        return Trace
    if name == "UserError":
        from .errors import UserError

        return UserError
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
