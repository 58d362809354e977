"""The log of an answer: its events in order, as objects that JSON can hold.

An event is an object whose key `event` names its kind, beside the fields of its class, such as
`{"event": "candidate_scored", "node": 3, "score": 0.9}`. Each object stands for itself, so a file
can take one a line while the answer comes.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

from llavacot_mlx.checked import KeyRules, OneOf, checked, quoted
from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.stages import Closed, Opened, StageEvent, StageParser, StageRecord
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    FreeText,
    LoggedEvent,
    Noticed,
    Prepared,
    Retraced,
    StageEnded,
    StageStarted,
    StageText,
    TextEvent,
)

_KINDS: dict[str, type[LoggedEvent]] = {
    "prepared": Prepared,
    "stage_started": StageStarted,
    "stage_text": StageText,
    "stage_ended": StageEnded,
    "free_text": FreeText,
    "candidate_started": CandidateStarted,
    "candidate_text": CandidateText,
    "candidate_ended": CandidateEnded,
    "candidate_scored": CandidateScored,
    "candidates_kept": CandidatesKept,
    "retraced": Retraced,
    "noticed": Noticed,
}
_ADDED: dict[str, dict[str, Any]] = {
    "stage_ended": {"note": ""},
    "candidate_ended": {"finish": None},
    "candidate_scored": {"judge": ""},
    "retraced": {"after": None, "rank": None, "score": None, "threshold": None, "cut_off": False},
}
"""Fields that came later, as they are for an event that was logged before."""
_NAMES = {kind: name for name, kind in _KINDS.items()}


class EventLog:
    """Collects the events of an answer.

    Consecutive pieces of text are joined, per candidate, until another event comes. So the log is
    about as long as its texts.
    """

    def __init__(self) -> None:
        self._events: list[LoggedEvent] = []
        self._texts: dict[object, tuple[TextEvent, list[str]]] = {}  # since the last other event

    @property
    def events(self) -> tuple[LoggedEvent, ...]:
        """The events so far."""
        return (*self._events, *self._joined_texts())

    def add(self, event: LoggedEvent) -> None:
        if isinstance(event, TextEvent):
            source = dataclasses.replace(event, text="")  # equal for all pieces of one text
            self._texts.setdefault(source, (event, []))[1].append(event.text)
        else:
            self._events += self._joined_texts()
            self._texts.clear()
            self._events.append(event)

    def _joined_texts(self) -> Iterator[TextEvent]:
        for event, pieces in self._texts.values():
            yield dataclasses.replace(event, text="".join(pieces))


def event_to_dict(event: LoggedEvent) -> dict[str, Any]:
    """Converts an event to an object that JSON can hold."""
    return {"event": _NAMES[type(event)], **dataclasses.asdict(event)}


def event_from_dict(value: Any, rules: KeyRules, path: str) -> LoggedEvent:
    """Converts what `event_to_dict` returned back to an event.

    `path` says where the value is, such as `events[3]`. Raises UserError that names a key that is
    missing, unknown, or of the wrong type.
    """
    if not isinstance(value, dict):
        raise UserError(f"{path}: expected an object that describes an event")
    fields = dict(value)
    name = fields.pop("event", None)
    if name is None:
        raise UserError(f"{path}.event is missing{rules.missing}")
    if name not in OneOf(*_KINDS):
        raise UserError(f"{path}.event: {quoted(name)} is not an event{rules.unknown}")
    event: LoggedEvent = checked(_KINDS[name], {**_ADDED.get(name, {}), **fields}, rules, path)
    return event


def stage_events(
    text: str, records: Sequence[StageRecord], *, exact: bool = False
) -> Iterator[StageStarted | StageText | StageEnded | FreeText]:
    """Yields the stage events of an answer with this text, without splitting its texts.

    `records` has the ended stages in order. A stage in the text beyond them was interrupted.
    `exact` is how they were read, see `StageParser`.
    """
    parser = StageParser(exact=exact)
    ended = iter(records)
    found: list[StageEvent] = parser.feed(text) + parser.finish()
    for event in found:
        if isinstance(event, Opened):
            yield StageStarted(event.stage)
        elif isinstance(event, Closed):
            record = next(ended, None)
            if record is not None:
                yield StageEnded(event.stage, event.by_tag, record.tokens, record.note)
        elif event.stage is None:
            yield FreeText(event.text)
        else:
            yield StageText(event.stage, event.text)
