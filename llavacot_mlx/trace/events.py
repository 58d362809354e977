"""The events of an answer: frozen values for a view, a file or a server.

Prepared comes first; the last event, which carries the record, is in `answer_events.py`. Between
them, a method that decodes one path reports its stages: StageStarted, StageText …, StageEnded, and
FreeText for what belongs to no stage. A search reports its candidates by their numbers instead:
CandidateStarted, CandidateText …, CandidateEnded for each one, CandidateScored where a judge was
asked, then CandidatesKept, and Retraced where the search goes back. Noticed may come anywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.finish import Finish


@dataclass(frozen=True)
class Prepared:
    """The image was encoded and the prompt prefilled; the first token follows."""

    prompt_tokens: int
    tiles: int
    """Number of tiles that the image was cut into; 0 without an image."""


@dataclass(frozen=True)
class StageStarted:
    """A stage's opening tag was written."""

    stage: Stage


@dataclass(frozen=True)
class StageText:
    """A piece of the open stage's text, without tags and in whole characters."""

    stage: Stage
    text: str


@dataclass(frozen=True)
class StageEnded:
    """A stage is complete."""

    stage: Stage
    closed: bool
    """False when the closing tag never came: the turn, the tokens or the next stage ended it."""
    tokens: int
    """Tokens generated since the stage before it ended, tags and line breaks included."""
    note: str = ""
    """How the stage was found, where its tags are not as trained; empty otherwise."""


@dataclass(frozen=True)
class FreeText:
    """A piece of text outside all stages, such as the line breaks between two stages."""

    text: str


@dataclass(frozen=True)
class CandidateStarted:
    """A candidate begins to write."""

    node: int
    parent: int | None
    """The candidate that it continues; None for the prompt."""
    stage: Stage | None
    """The stage that it should write next."""
    round: int
    """Number of retraces before it began."""


@dataclass(frozen=True)
class CandidateText:
    """A piece of a candidate's text, with tags and in whole characters."""

    node: int
    text: str


@dataclass(frozen=True)
class CandidateEnded:
    """A candidate has written what its step asks for, or was cut off at a limit."""

    node: int
    stage: Stage | None
    """The stage that it wrote last; None where it opened none."""
    closed: bool
    """False when it was cut off: its stage's closing tag, or its sentence's end, never came."""
    tokens: int
    finish: Finish | None = None
    """Why its path ends with it; None where something may follow."""


@dataclass(frozen=True)
class CandidateScored:
    """A judge was asked about a candidate."""

    node: int
    score: float | None
    """None when the judge came to no verdict."""
    judge: str = ""
    """The judge's name; empty in logs of older versions."""


@dataclass(frozen=True)
class CandidatesKept:
    """The search continues with these candidates, the best first."""

    nodes: tuple[int, ...]


@dataclass(frozen=True)
class Retraced:
    """No candidate was good enough: the search goes back to write `stage` again."""

    stage: Stage | None
    round: int
    """Counted from 1."""
    after: Stage | None = None
    """The stage whose candidates decided."""
    rank: int | None = None
    """The rank, from 1, of the candidate that had to be good enough, among those of all rounds."""
    score: float | None = None
    """That candidate's score; None without one."""
    threshold: float | None = None
    """The score that it needed. None, as `after` and `rank`, in logs of older versions."""
    cut_off: bool = False
    """Whether that candidate was cut off, which no score makes good."""


@dataclass(frozen=True)
class Noticed:
    """One line about the search that the user should know. Each text comes once."""

    text: str


SearchEvent = (
    CandidateStarted
    | CandidateText
    | CandidateEnded
    | CandidateScored
    | CandidatesKept
    | Retraced
    | Noticed
)
LoggedEvent = Prepared | StageStarted | StageText | StageEnded | FreeText | SearchEvent
"""An event that a trace keeps: all but the last."""
TextEvent = StageText | FreeText | CandidateText
