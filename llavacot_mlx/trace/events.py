"""What an engine yields while it answers: frozen values that a view, a file or a server consume.

Prepared comes first and Answered, or Interrupted, last. Between them, a method that follows one
path tells its stages: StageStarted, StageText …, StageEnded, with FreeText for what belongs to no
stage. A search tells its candidates instead, by their numbers: each one's CandidateStarted,
CandidateText …,
CandidateEnded, its CandidateScored where a judge was asked, then CandidatesKept, and Retraced where
the search goes back. Noticed may come anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.record import Trace


@dataclass(frozen=True)
class Prepared:
    """The picture is encoded and the prompt prefilled; the first token is on its way."""

    prompt_tokens: int
    tiles: int
    """Tiles that the picture was cut into, 0 without a picture."""


@dataclass(frozen=True)
class StageStarted:
    stage: Stage


@dataclass(frozen=True)
class StageText:
    """A piece of the text of the stage that is open; never a tag, never half a character."""

    stage: Stage
    text: str


@dataclass(frozen=True)
class StageEnded:
    stage: Stage
    closed: bool
    """False when the closing tag never came: end of turn, the token limit, or the next stage."""
    tokens: int
    """Tokens generated since the stage before it ended, tags and line breaks included."""


@dataclass(frozen=True)
class FreeText:
    """A piece of text outside any stage, such as the line breaks between two stages."""

    text: str


@dataclass(frozen=True)
class CandidateStarted:
    """A candidate begins to write."""

    node: int
    parent: int | None
    """The candidate that it goes on from; None for the prompt."""
    stage: Stage | None
    """The stage that it is about to write, as far as one can tell."""
    round: int
    """How often the search had gone back when it began."""


@dataclass(frozen=True)
class CandidateText:
    """A piece of what a candidate writes, tags included; never half a character."""

    node: int
    text: str


@dataclass(frozen=True)
class CandidateEnded:
    node: int
    stage: Stage | None
    """The stage that it wrote last; None where it opened none."""
    closed: bool
    """False when it was cut off: its stage's closing tag, or its sentence's end, never came."""
    tokens: int


@dataclass(frozen=True)
class CandidateScored:
    node: int
    score: float | None
    """None when the judge came to no verdict."""


@dataclass(frozen=True)
class CandidatesKept:
    """Those that the search goes on with, the best first."""

    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Retraced:
    """No candidate was good enough: the search goes back to write `stage` again."""

    stage: Stage | None
    round: int
    """Counted from 1."""


@dataclass(frozen=True)
class Noticed:
    """Something about the search that the person should know, in one line; each is told once."""

    text: str


@dataclass(frozen=True)
class Answered:
    """The end, with the record of everything before it."""

    trace: Trace


@dataclass(frozen=True)
class Interrupted:
    """In place of Answered: the person stopped the answer, and this is what there is of it."""

    trace: Trace


SearchEvent = (
    CandidateStarted
    | CandidateText
    | CandidateEnded
    | CandidateScored
    | CandidatesKept
    | Retraced
    | Noticed
)
Event = (
    Prepared
    | StageStarted
    | StageText
    | StageEnded
    | FreeText
    | SearchEvent
    | Answered
    | Interrupted
)
