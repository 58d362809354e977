"""What a judge is, of this package or from outside, and what it is shown."""

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
        """One score a candidate, None where there is no verdict.

        Raises JudgeError when it could not judge at all; the search then goes on without scores.
        """


class JudgeError(Exception):
    """A judge could not do its work. Its text is one line for the person, who is told once."""


@dataclass(frozen=True)
class Candidate:
    """What a judge from outside is shown of one candidate."""

    stage: Stage | None
    """The stage that it wrote last; None where it opened none."""
    stage_text: str
    """That stage's text without tags; of one still open, as far as it is written."""
    answer: str
    """Everything from the beginning of the answer to this candidate's end, tags included."""

    @property
    def judged_text(self) -> str:
        """The stage's text, or all that there is where no stage was opened."""
        return (self.answer if self.stage is None else self.stage_text).strip()


class ExternalJudge(Protocol):
    """A judge that knows texts and the picture, and nothing of the model that wrote them.

    A Python package offers one under the entry point group `llavacot.judges`: the entry point is
    called without arguments, once a process, and returns an object like this.
    """

    def scores(
        self, picture: Image.Image | None, question: str, candidates: Sequence[Candidate]
    ) -> Sequence[float | None]:
        """One score a candidate, in their order; higher is better, None is no verdict."""
