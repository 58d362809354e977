"""Which rows every step learns from: a function of the rows' lengths, the seed and the step."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence

from .batches import batch_order
from .settings import TrainSettings


def steps_of(lengths: Sequence[int], settings: TrainSettings) -> int:
    """How many steps a training has; the last of `--epochs` may take the first rows again."""
    if settings.epochs is None:
        return settings.iters
    batches = len(batch_order(lengths, settings.batch_size, settings.seed, 0))
    return max(1, math.ceil(settings.epochs * batches / settings.grad_accumulation_steps))


def batches_from(
    lengths: Sequence[int], settings: TrainSettings, done: int
) -> Iterator[tuple[int, ...]]:
    """The batches behind the first `done` steps, epoch after epoch, without an end.

    An epoch that the steps do not fill goes on where they end.
    """
    skipped = done * settings.grad_accumulation_steps
    for epoch in itertools.count():
        order = batch_order(lengths, settings.batch_size, settings.seed, epoch)
        if skipped >= len(order):
            skipped -= len(order)
            continue
        yield from order[skipped:]
        skipped = 0
