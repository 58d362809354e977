"""The one place where the benchmarks meet the decoder."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.errors import UserError
from llavacot_mlx.request import Request
from llavacot_mlx.trace.record import Trace


def ask_many(
    assistant: Assistant,
    requests: Iterable[Request],
    *,
    batch_size: int | None,
    kv_budget: int | None,
) -> Iterator[tuple[int, Trace | UserError]]:
    """Yields each request's index with its trace as it ends, or with the error that ended it.

    Requests are taken from the iterable as there is room for them.
    """
    for index, request in enumerate(requests):
        try:
            yield index, assistant.stream(request).result()
        except UserError as problem:
            yield index, problem
