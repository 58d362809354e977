"""Many answers at once: their prompts and rows share the forward passes of one decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from types import TracebackType
from typing import Self

import mlx.core as mx

from llavacot_mlx.answer import AnswerStream, LoadedModel
from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.device import wired_memory
from llavacot_mlx.generate.shared_decoder import SharedDecoder
from llavacot_mlx.request import Request
from llavacot_mlx.trace.answer_events import Answered, Event
from llavacot_mlx.trace.record import Trace


class AnswerBatch:
    """Answers that are worked on together; requests join and leave while others are decoded.

    Each answer is the one that its request has alone. To be used by one thread, as a context
    manager: leaving it ends all answers.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int) -> None:
        """At most `batch_size` rows are decoded at once; a search of n candidates is n rows.

        Raises UserError for a batch size below 1.
        """
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {batch_size}")
        self._loaded, self._batch_size = loaded, batch_size
        self._decoder = SharedDecoder(loaded.model)
        self._streams: dict[int, AnswerStream] = {}
        self._rows: dict[int, int] = {}
        self._failed: dict[int, UserError] = {}
        self._exit = ExitStack()

    def __enter__(self) -> Self:
        self._exit.enter_context(wired_memory())
        mx.reset_peak_memory()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        for number in list(self._streams):
            self.cancel(number)
        self._exit.close()

    def __len__(self) -> int:
        """Number of answers that have not ended."""
        return len(self._streams) + len(self._failed)

    def has_room_for(self, request: Request) -> bool:
        """Whether a request fits beside the others; an empty batch has room for any."""
        rows = sum(self._rows.values()) + request.plan.max_candidates
        return not self._rows or rows <= self._batch_size

    def add(self, number: int, request: Request) -> None:
        """Lets a request join before the next step. `number` names it, and is not in use."""
        assert number not in self._streams
        assert number not in self._failed
        try:
            self._streams[number] = AnswerStream(self._loaded, request, self._decoder)
            self._rows[number] = request.plan.max_candidates
        except UserError as error:
            self._failed[number] = error

    def cancel(self, number: int) -> Trace:
        """Ends an answer at once and frees its K/V; returns its record up to now."""
        stream = self._streams.pop(number)
        del self._rows[number]
        stream.close()
        self._decoder.settle()
        return stream.so_far()

    def step(self) -> list[tuple[int, Event | UserError]]:
        """Lets every answer run as far as its tokens reach, and then runs one forward pass.

        Returns the events by number. The last event of an answer is Answered; a request that fails
        has a UserError in its place, and the others go on.
        """
        events: list[tuple[int, Event | UserError]] = list(self._failed.items())
        self._failed = {}
        for number, stream in list(self._streams.items()):
            try:
                for event in stream.until_waiting():
                    events.append((number, event))
                    if isinstance(event, Answered):
                        self._forget(number)
            except UserError as error:
                events.append((number, error))
                self._forget(number)
        if self._streams:
            self._decoder.step()
        return events

    def _forget(self, number: int) -> None:
        del self._streams[number], self._rows[number]


def answer_all(
    loaded: LoadedModel, requests: Iterable[Request], batch_size: int
) -> Iterator[tuple[int, Trace | UserError]]:
    """Answers requests together; yields each one's index with its trace or its error as it ends.

    A request is taken from the iterable once there is room for it.
    """
    waiting = enumerate(requests)
    with AnswerBatch(loaded, batch_size) as batch:
        following = next(waiting, None)
        while following is not None or len(batch):
            while following is not None and batch.has_room_for(following[1]):
                batch.add(*following)
                following = next(waiting, None)
            for number, event in batch.step():
                if isinstance(event, Answered):
                    yield number, event.trace
                elif isinstance(event, UserError):
                    yield number, event
