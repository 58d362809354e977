"""The models that grade answers: the run's own, another one here, or one behind a URL."""

from __future__ import annotations

import threading
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from llavacot_mlx.cli.load_assistant import load_assistant
from llavacot_mlx.cli.resolve_model import ResolvedModel, resolve_adapted_model

if TYPE_CHECKING:
    from llavacot_mlx.assistant import Assistant
    from llavacot_mlx.evaluate.llm_grader import GradingModel
    from llavacot_mlx.evaluate.run_folder import ModelRecord

RULES = "rules"
_SELF = "self"


class LocalGradingModel:
    """A model on this machine, loaded when it is first asked."""

    def __init__(self, model: ResolvedModel) -> None:
        self.name = model.name if model.adapter is None else f"{model.name} with {model.adapter}"
        self._model = model
        self._lock = threading.Lock()  # one answer at a time

    @cached_property
    def _assistant(self) -> Assistant:
        return load_assistant(self._model)

    def reply(self, prompt: str, temperature: float, max_tokens: int) -> str:
        with self._lock:
            trace = self._assistant.ask(
                None, prompt, temperature=temperature, max_tokens=max_tokens
            )
        return trace.answer or trace.text


def open_grading_model(
    name: str, server_model: str, own: ModelRecord, patience: float
) -> GradingModel:
    """Finds a grading model by what a person named; `own` is the run's.

    Raises UserError if there is no such model.
    """
    if is_url(name):
        from llavacot_mlx.evaluate.chat_client import ChatClient

        return ChatClient(name, server_model, patience=patience)
    if name == _SELF:
        adapter = None if own.adapter is None else Path(own.adapter)
        return LocalGradingModel(resolve_adapted_model(own.name, adapter))
    return LocalGradingModel(resolve_adapted_model(name, None))


def is_url(name: str) -> bool:
    """Whether a name is the address of a server."""
    return name.startswith(("http://", "https://"))
