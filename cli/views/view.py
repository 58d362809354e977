"""What a view of an answer is, whatever it draws on."""

from __future__ import annotations

import enum
from types import TracebackType
from typing import Protocol, Self

from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.events import Event


class Show(enum.StrEnum):
    """`--show`: how much of an answer is shown."""

    ALL = "all"
    """The stages, text outside them, a search's candidates, and the figures."""
    STAGES = "stages"
    """The stages alone."""
    ANSWER = "answer"
    """The conclusion alone."""

    def stage(self, stage: Stage) -> bool:
        """Whether the text of `stage` is shown."""
        return self is not Show.ANSWER or stage is Stage.CONCLUSION


class View(Protocol):
    """Shows an answer while it comes. Used in a `with`, which ends it whatever happens."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def waiting(self, doing: str) -> None:
        """Says what is being done, such as `loading the model`, until something else is."""

    def show(self, event: Event) -> None:
        """Takes the next event of the answer."""


class NoView:
    """Shows nothing: the output is printed in one piece, and nobody watches."""

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...

    def waiting(self, doing: str) -> None: ...

    def show(self, event: Event) -> None: ...
