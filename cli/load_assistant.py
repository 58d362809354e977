"""Loads the model that a command answers with."""

from __future__ import annotations

from typing import TYPE_CHECKING

from llavacot_mlx.cli.openblas import load_fast_blas

if TYPE_CHECKING:
    from llavacot_mlx.assistant import Assistant
    from llavacot_mlx.cli.resolve_model import ResolvedModel


def load_assistant(model: ResolvedModel) -> Assistant:
    """Loads a model with its adapter, on Linux with a fast BLAS under MLX.

    Imports MLX, which takes a while: call it where a view shows the seconds. Raises UserError for
    files that are missing or wrong.
    """
    load_fast_blas()  # before the import below imports MLX
    from llavacot_mlx.assistant import Assistant

    return Assistant.load(model.folder, adapter=model.adapter)
