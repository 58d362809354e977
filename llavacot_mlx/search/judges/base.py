"""The interfaces of built-in and external judges, and the candidate that an external one sees."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from llavacot_mlx.prompt.stages import Stage

if TYPE_CHECKING:
    from PIL import Image

    from llavacot_mlx.search.node import Node


class Judge(Protocol):
    """Scores candidates that have just been written; higher is better."""

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        """Returns one score per candidate; None means no verdict.

        Raises JudgeError when it could not judge at all; the search then continues without scores.
        """


class JudgeError(Exception):
    """A judge could not judge at all. Its text is one line, which the user sees once."""


@dataclass(frozen=True)
class Candidate:
    """The part of one candidate that an external judge sees."""

    stage: Stage | None
    """The stage that it wrote last; None where it opened none."""
    stage_text: str
    """That stage's text so far, without tags."""
    answer: str
    """Everything from the beginning of the answer to this candidate's end, tags included."""

    @property
    def judged_text(self) -> str:
        """The stage's text, or the whole answer where no stage was opened."""
        return (self.answer if self.stage is None else self.stage_text).strip()


class ExternalJudge(Protocol):
    """A judge that sees the texts and the image, but nothing of the model that wrote them.

    A Python package offers one under the entry point group `llavacot.judges`: the entry point is
    called without arguments, once per process, and returns an object like this.
    """

    def scores(
        self, image: Image.Image | None, question: str, candidates: Sequence[Candidate]
    ) -> Sequence[float | None]:
        """Returns one score per candidate, in their order; higher is better, None means no
        verdict."""
