"""The interface of a view of an answer, and how much of the answer a view shows."""

from __future__ import annotations

import enum
from collections.abc import Callable
from types import TracebackType
from typing import Protocol, Self

from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.answer_events import Event

Waited = Callable[[], float | None]
"""Returns the seconds that the person has waited for the answer; None if nobody measured them."""


def not_measured() -> None:
    """Says that nobody measured how long the person has waited, as for a stored answer."""


class ShowLevel(enum.StrEnum):
    """`--show`: how much of an answer is shown."""

    ALL = "all"
    """The stages, text outside them, a search's candidates, and the figures."""
    STAGES = "stages"
    """The stages alone."""
    ANSWER = "answer"
    """The conclusion alone."""

    def stage(self, stage: Stage) -> bool:
        """Whether the text of `stage` is shown."""
        return self is not ShowLevel.ANSWER or stage is Stage.CONCLUSION


class AnswerView(Protocol):
    """Shows an answer while it is written. Use it in a `with`, which always ends it."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def set_status(self, status: str) -> None:
        """Says what is being done, such as `loading the model`, until the next call or event."""

    def show(self, event: Event) -> None:
        """Takes the next event of the answer."""


class SilentView:
    """Shows nothing: the output is printed in one piece at the end, and nobody watches."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def set_status(self, status: str) -> None: ...

    def show(self, event: Event) -> None: ...


def stage_remark(stage: Stage, closed: bool, note: str) -> str:
    """The remark on a stage that does not stand as trained; empty otherwise."""
    return note if closed or note else f"{stage.closing} never came"
