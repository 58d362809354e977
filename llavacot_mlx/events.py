"""What an engine yields while it answers: frozen values that a view, a file or a server consume.

The order is always: Prepared, then for each stage StageStarted, StageText …, StageEnded, with Text
in between for what belongs to no stage, and Answered last.
"""

from __future__ import annotations

from dataclasses import dataclass

from .stages import Stage
from .trace import Trace


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
class Answered:
    """The end, with the record of everything before it."""

    trace: Trace


Event = Prepared | StageStarted | StageText | StageEnded | FreeText | Answered
