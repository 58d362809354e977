"""Batches: which rows each one takes, in which order they come, and how rows are padded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llavacot_mlx.pictures import Tiles

from .sample import Sample, Target
from .settings import TrainSettings

PADDED_TO = 64
"""Batches are as long as a multiple of this many tokens: fewer shapes, and little padding."""


@dataclass(frozen=True)
class Batch:
    """Samples side by side, the shorter ones padded on the right."""

    rows: tuple[int, ...]
    """Which rows of the dataset they are."""
    ids: np.ndarray
    """(rows, tokens) int32; 0 where it is padding."""
    targets: np.ndarray
    """(rows, tokens) uint8, of `Target`; MASKED where it is padding."""
    pictures: tuple[Tiles | None, ...]
    """The picture of each row."""


def batch_order(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[tuple[int, ...]]:
    """The batches of one epoch, as indices into `lengths`, the rows' numbers of tokens.

    Every row comes once. Rows that are padded to the same length are together as far as that goes;
    which of them are, and when a batch comes, is drawn anew from (seed, epoch), both 0 or more.
    All batches have `batch_size` rows, but for one where the rows do not divide evenly.
    """
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(len(lengths))
    padded = _padded(np.asarray(lengths, dtype=np.int64))
    rows = shuffled[np.argsort(padded[shuffled], kind="stable")]
    batches = [
        tuple(rows[start : start + batch_size].tolist())
        for start in range(0, len(rows), batch_size)
    ]
    return [batches[place] for place in generator.permutation(len(batches))]


def steps_of(lengths: Sequence[int], settings: TrainSettings) -> int:
    """Number of steps of a training. The last step of `epochs` may run into the next epoch."""
    if settings.epochs is None:
        return settings.iters
    batches = len(batch_order(lengths, settings.batch_size, settings.seed, 0))
    return max(1, math.ceil(settings.epochs * batches / settings.grad_accumulation_steps))


def batches_from(
    lengths: Sequence[int], settings: TrainSettings, done: int
) -> Iterator[tuple[int, ...]]:
    """Yields the batches after the first `done` steps, epoch after epoch, without end.

    A step may take its batches from two epochs.
    """
    skipped = done * settings.grad_accumulation_steps
    for epoch in itertools.count():
        order = batch_order(lengths, settings.batch_size, settings.seed, epoch)
        if skipped >= len(order):
            skipped -= len(order)
            continue
        yield from order[skipped:]
        skipped = 0


def pad_batch(
    rows: Sequence[int],
    samples: Sequence[Sample],
    pictures: Sequence[Tiles | None],
    multiple: int = PADDED_TO,
) -> Batch:
    """Puts samples, one of each row, into one batch of a multiple of `multiple` tokens."""
    length = int(_padded(np.array([max(len(sample.ids) for sample in samples)]), multiple)[0])
    ids = np.zeros((len(samples), length), dtype=np.int32)
    targets = np.full((len(samples), length), Target.MASKED, dtype=np.uint8)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = sample.ids
        targets[row, : len(sample.ids)] = sample.targets
    return Batch(tuple(rows), ids, targets, tuple(pictures))


def _padded(lengths: np.ndarray, multiple: int = PADDED_TO) -> np.ndarray:
    return -(-lengths // multiple) * multiple
