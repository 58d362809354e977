"""Many answers at once: their prompts and rows share the forward passes of one decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import replace
from types import TracebackType
from typing import Self

import mlx.core as mx

from llavacot_mlx.answer import AnswerStream, LoadedModel
from llavacot_mlx.batch.size import KVBound, default_batch_size, kv_bound
from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.device import wired_memory
from llavacot_mlx.generate.shared_decoder import SharedDecoder
from llavacot_mlx.model.kv_budget import KVLimits
from llavacot_mlx.request import Request
from llavacot_mlx.trace.answer_events import Answered, Event
from llavacot_mlx.trace.record import Trace


class AnswerBatch:
    """Answers that are worked on together; requests join and leave while others are decoded.

    Each answer is the one that its request has alone. To be used by one thread, as a context
    manager: leaving it ends all answers.
    """

    def __init__(self, loaded: LoadedModel, batch_size: int, kv_budget: int | None = None) -> None:
        """At most `batch_size` rows are decoded at once; a search of n candidates is n rows.

        All K/V together stay within `kv_budget` bytes, if it is given. Raises UserError for a batch
        size or a budget below 1.
        """
        if batch_size < 1:
            raise UserError(f"the batch size must be at least 1, not {batch_size}")
        KVLimits(budget=kv_budget)  # raises for a budget that holds nothing
        self._loaded, self._batch_size, self._kv_budget = loaded, batch_size, kv_budget
        self._decoder = SharedDecoder(loaded.model)
        self._streams: dict[int, AnswerStream] = {}
        self._joined: dict[int, tuple[Request, KVBound]] = {}
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
        """Whether a request fits beside the others; an empty batch has room for any.

        K/V are counted with answers of the greatest length, so a request that has joined never has
        to give way.
        """
        if not self._joined:
            return True
        requests = [joined for joined, _ in self._joined.values()]
        if sum(each.plan.max_candidates for each in (*requests, request)) > self._batch_size:
            return False
        if self._kv_budget is None:
            return True
        bounds = [*(bound for _, bound in self._joined.values()), kv_bound(self._loaded, request)]
        return _together(bounds) <= self._kv_budget

    def add(self, number: int, request: Request) -> None:
        """Lets a request join before the next step. `number` names it, and is not in use."""
        assert number not in self._streams
        assert number not in self._failed
        bound = kv_bound(self._loaded, request)
        try:
            limited = replace(request, limits=self._limits(request))
            self._streams[number] = AnswerStream(self._loaded, limited, self._decoder)
            self._joined[number] = request, bound
        except UserError as error:
            self._failed[number] = error

    def cancel(self, number: int) -> Trace:
        """Ends an answer at once and frees its K/V; returns its record up to now."""
        stream = self._streams[number]
        self._forget(number)
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
        del self._streams[number], self._joined[number]

    def _limits(self, request: Request) -> KVLimits:
        """The limits of a request, which may take the batch's whole budget where it is alone."""
        budgets = [each for each in (request.limits.budget, self._kv_budget) if each is not None]
        return replace(request.limits, budget=min(budgets, default=None))


def _together(bounds: Sequence[KVBound]) -> int:
    """Returns the most bytes that requests take together.

    Single paths of all prompts share a buffer, in which each takes as much as the longest.
    """
    paths = [bound for bound in bounds if bound.paths == 1]
    longest = max((bound.path for bound in paths), default=0)
    searches = sum(bound.paths * bound.path for bound in bounds if bound.paths > 1)
    read = sum(bound.images + bound.prompt for bound in bounds)
    return read + len(paths) * longest + searches


def answer_all(
    loaded: LoadedModel,
    requests: Iterable[Request],
    batch_size: int | None = None,
    kv_budget: int | None = None,
) -> Iterator[tuple[int, Trace | UserError]]:
    """Answers requests together; yields each one's index with its trace or its error as it ends.

    A request is taken from the iterable once the one before it has joined. By default the batch
    size is that of the first request, see `default_batch_size`.
    """
    waiting = enumerate(requests)
    following = next(waiting, None)
    if following is None:
        return
    if batch_size is None:
        batch_size = default_batch_size(loaded, following[1], kv_budget)
    with AnswerBatch(loaded, batch_size, kv_budget) as batch:
        while following is not None or len(batch):
            while following is not None and batch.has_room_for(following[1]):
                batch.add(*following)
                following = next(waiting, None)
            for number, event in batch.step():
                if isinstance(event, Answered):
                    yield number, event.trace
                elif isinstance(event, UserError):
                    yield number, event
