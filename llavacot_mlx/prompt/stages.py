"""Finds the four stages of an answer in text that arrives piece by piece."""

from __future__ import annotations

import enum
import re
from dataclasses import dataclass


class Stage(enum.StrEnum):
    """A stage of a LLaVA-CoT answer, in the order in which the model writes them."""

    SUMMARY = "summary"
    CAPTION = "caption"
    REASONING = "reasoning"
    CONCLUSION = "conclusion"

    @property
    def tag(self) -> str:
        """The name inside the tag: `SUMMARY` of `<SUMMARY>`."""
        return self.value.upper()

    @property
    def opening(self) -> str:
        return f"<{self.tag}>"

    @property
    def closing(self) -> str:
        return f"</{self.tag}>"

    @property
    def following(self) -> Stage | None:
        """The stage that the model is trained to write next, None after the last."""
        order = list(Stage)
        index = order.index(self) + 1
        return order[index] if index < len(order) else None


@dataclass(frozen=True)
class StageRecord:
    """One stage of an answer, with its text and its score."""

    stage: Stage
    text: str
    """The stage's text without tags and surrounding white space."""
    closed: bool
    """False when the stage's closing tag never came."""
    tokens: int
    """Tokens generated since the stage before it ended, tags and line breaks included."""
    score: float | None = None
    """The judge's score; None where no judge was asked."""
    candidates: int = 1
    """Number of candidates that the stage was chosen from."""


_SENTENCE_END = re.compile(r"[.!?。！？…]['\")\]»”’]*\s*\Z")


def ends_sentence(text: str) -> bool:
    """Returns whether a text ends with a punctuation mark of a sentence.

    Quotes, brackets and white space may follow the mark.
    """
    return _SENTENCE_END.search(text) is not None


@dataclass(frozen=True)
class Opened:
    """A stage's opening tag was read."""

    stage: Stage


@dataclass(frozen=True)
class Text:
    """Text that belongs to `stage`, or to no stage at all. Tags are never part of it."""

    stage: Stage | None
    text: str


@dataclass(frozen=True)
class Closed:
    """A stage ended. `by_tag` is False when its closing tag never came."""

    stage: Stage
    by_tag: bool


StageEvent = Opened | Text | Closed

# The published weights sometimes write "(Here begins the SUMMARY stage)" instead of "<SUMMARY>"
# (LLaVA-CoT issues #12 and #16). Both spellings mean the same.
_TAGS: dict[str, tuple[Stage, bool]] = {}
for _stage in Stage:
    _TAGS[_stage.opening] = (_stage, True)
    _TAGS[_stage.closing] = (_stage, False)
    _TAGS[f"(Here begins the {_stage.tag} stage)"] = (_stage, True)
    _TAGS[f"(Here ends the {_stage.tag} stage)"] = (_stage, False)

_ANY_TAG = re.compile("|".join(re.escape(tag) for tag in _TAGS))
_PREFIXES = frozenset(tag[:n] for tag in _TAGS for n in range(1, len(tag)))
_LONGEST_PREFIX = max(map(len, _PREFIXES))


class StageParser:
    """Turns generated text into stages while it arrives, in pieces of any length.

    `feed` takes the next piece and returns the events that became certain; `finish` ends the text.
    The stages are the same however the text is cut into pieces.

    Only the generated text is ever fed, so a tag in a question opens nothing. Inside a stage a tag
    is text, as in a caption that quotes a sign that says `</CONCLUSION>`, with two exceptions: the
    stage's own closing tag, and, at the beginning of a line, the opening tag of the stage that
    follows, which means that the closing tag was forgotten. Outside a stage only an opening tag
    means anything.
    """

    def __init__(self) -> None:
        self.stage: Stage | None = None
        """The stage that is open now."""
        self._pending = ""  # text that may be the beginning of a tag
        self._line_is_blank = True  # nothing but white space since the last line break

    def feed(self, text: str) -> list[StageEvent]:
        """Returns the events that `text` made certain, oldest first; adjacent text is joined."""
        self._pending += text
        events: list[StageEvent] = []
        while match := _ANY_TAG.search(self._pending):
            self._text(self._pending[: match.start()], events)
            self._pending = self._pending[match.end() :]
            self._tag(match.group(), events)
        # Hold back the longest tail that a later piece may complete to a tag.
        for length in range(min(_LONGEST_PREFIX, len(self._pending)), 0, -1):
            if self._pending[-length:] in _PREFIXES:
                break
        else:
            length = 0
        certain = len(self._pending) - length
        self._text(self._pending[:certain], events)
        self._pending = self._pending[certain:]
        return events

    def finish(self) -> list[StageEvent]:
        """Returns what was held back, and the end of a stage that is still open."""
        events: list[StageEvent] = []
        self._text(self._pending, events)
        self._pending = ""
        if self.stage is not None:
            events.append(Closed(self.stage, by_tag=False))
            self.stage = None
        return events

    def _text(self, text: str, events: list[StageEvent]) -> None:
        if not text:
            return
        line = text.rpartition("\n")[2]
        blank_before = self._line_is_blank or "\n" in text
        self._line_is_blank = blank_before and not line.strip()
        if events and isinstance(events[-1], Text) and events[-1].stage == self.stage:
            text = events.pop().text + text  # type: ignore[union-attr]
        events.append(Text(self.stage, text))

    def _tag(self, tag: str, events: list[StageEvent]) -> None:
        stage, opens = _TAGS[tag]
        if self.stage is None and opens:
            self._open(stage, events)
        elif self.stage is not None and stage is self.stage and not opens:
            events.append(Closed(stage, by_tag=True))
            self.stage = None
            self._line_is_blank = False
        elif (
            self.stage is not None
            and opens
            and stage is self.stage.following
            and self._line_is_blank
        ):
            events.append(Closed(self.stage, by_tag=False))
            self._open(stage, events)
        else:
            self._text(tag, events)

    def _open(self, stage: Stage, events: list[StageEvent]) -> None:
        events.append(Opened(stage))
        self.stage = stage
        self._line_is_blank = True
