"""The events of a whole answer: those that its trace logs, and the last one, with the trace."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from llavacot_mlx.trace.events import LoggedEvent
from llavacot_mlx.trace.record import Trace


@dataclass(frozen=True)
class Answered:
    """The end of the answer, with its record."""

    trace: Trace


@dataclass(frozen=True)
class Interrupted:
    """In place of Answered: the answer was stopped, and this is its record so far."""

    trace: Trace


Event = LoggedEvent | Answered | Interrupted


def trace_events(trace: Trace) -> Iterator[Event]:
    """Yields all events of an answer, from its record."""
    yield from trace.events
    yield Interrupted(trace) if trace.interrupted else Answered(trace)
