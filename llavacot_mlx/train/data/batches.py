"""Batches: which rows each one takes, in which order they come, and how rows are padded."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from llavacot_mlx.prompt.image_processor import Tiles
from llavacot_mlx.train.data.sample import Sample, TokenKind
from llavacot_mlx.train.settings import TrainSettings

PADDED_TO = 64
"""Batches are padded to a multiple of this many tokens: few shapes, and little padding."""


@dataclass(frozen=True)
class Batch:
    """A batch of samples, the shorter ones padded on the right."""

    rows: tuple[int, ...]
    """Indices of the rows in the dataset."""
    ids: np.ndarray
    """(rows, tokens) int32; 0 where it is padding."""
    token_kinds: np.ndarray
    """(rows, tokens) uint8: the `TokenKind` of each token; MASKED where it is padding."""
    pictures: tuple[Tiles | None, ...]
    """The picture of each row."""


def batch_order(
    lengths: Sequence[int], batch_size: int, seed: int, epoch: int
) -> list[tuple[int, ...]]:
    """The batches of one epoch, as indices into `lengths`, the number of tokens of each row.

    Every row comes once. Rows that are padded to the same length share batches as far as possible.
    The rows that share a batch and the order of the batches are random, seeded by (seed, epoch),
    both 0 or more. All batches have `batch_size` rows, except one if the rows do not divide evenly.
    """
    generator = np.random.default_rng([seed, epoch])
    shuffled = generator.permutation(len(lengths))
    padded = _padded(np.asarray(lengths, dtype=np.int64))
    rows = shuffled[np.argsort(padded[shuffled], kind="stable")]
    batches = [
        tuple(rows[start : start + batch_size].tolist())
        for start in range(0, len(rows), batch_size)
    ]
    return [batches[index] for index in generator.permutation(len(batches))]


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
    """Pads the samples of `rows` to a multiple of `multiple` tokens, and stacks them."""
    length = int(_padded(np.array([max(len(sample.ids) for sample in samples)]), multiple)[0])
    ids = np.zeros((len(samples), length), dtype=np.int32)
    token_kinds = np.full((len(samples), length), TokenKind.MASKED, dtype=np.uint8)
    for row, sample in enumerate(samples):
        ids[row, : len(sample.ids)] = sample.ids
        token_kinds[row, : len(sample.ids)] = sample.token_kinds
    return Batch(tuple(rows), ids, token_kinds, tuple(pictures))


def _padded(lengths: np.ndarray, multiple: int = PADDED_TO) -> np.ndarray:
    return -(-lengths // multiple) * multiple
