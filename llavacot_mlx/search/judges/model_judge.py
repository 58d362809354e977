"""Loads a model folder as a judge, in our own runtime or in mlx-vlm's."""

from __future__ import annotations

from pathlib import Path

from llavacot_mlx.checked import read_json
from llavacot_mlx.errors import UserError
from llavacot_mlx.search.judges.base import ExternalJudge, JudgeError


def load_judge(folder: Path) -> ExternalJudge:
    """Loads an Mllama in our own runtime, and any other vision-language model in mlx-vlm's.

    Raises UserError when it cannot be loaded, or its answer to a yes-or-no question cannot be read.
    """
    config = read_json(folder / "config.json", "a judge is a model's folder")
    if not isinstance(config, dict) or not isinstance(config.get("model_type"), str):
        raise UserError(
            f"{folder / 'config.json'} names no model_type, so it does not describe a model"
        )
    try:
        if config["model_type"] == "mllama":
            from llavacot_mlx.search.judges.mllama_judge import MllamaJudge

            return MllamaJudge.load(folder)
        from llavacot_mlx.search.judges.vlm_judge import VlmJudge

        return VlmJudge.load(folder)
    except JudgeError as failure:
        raise UserError(f"{folder}: {failure}") from None
