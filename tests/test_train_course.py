"""Which rows a step learns from."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest

from llavacot_mlx.train.course import batches_from, steps_of
from llavacot_mlx.train.settings import TrainSettings

LENGTHS = [10 + 37 * number % 300 for number in range(23)]


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_resumption_goes_on_with_the_rows_that_would_have_come(accumulation: int) -> None:
    settings = TrainSettings(batch_size=4, grad_accumulation_steps=accumulation, seed=7)
    whole = list(itertools.islice(batches_from(LENGTHS, settings, 0), 60))
    for done in range(60 // accumulation):
        start = done * accumulation
        rest = itertools.islice(batches_from(LENGTHS, settings, done), 60 - start)
        assert list(rest) == whole[start:]


def test_every_row_comes_once_an_epoch_and_every_epoch_is_another_one() -> None:
    settings = TrainSettings(batch_size=4)
    batches = list(itertools.islice(batches_from(LENGTHS, settings, 0), 12))
    first, second = batches[:6], batches[6:]
    for epoch in (first, second):
        assert Counter(row for batch in epoch for row in batch) == Counter(range(23))
    assert first != second


def test_epochs_count_steps() -> None:
    assert steps_of(LENGTHS, TrainSettings(iters=9)) == 9
    assert steps_of(LENGTHS, TrainSettings(batch_size=4, epochs=2)) == 12
    accumulated = TrainSettings(batch_size=4, epochs=1, grad_accumulation_steps=4)
    assert steps_of(LENGTHS, accumulated) == 2
    assert steps_of(LENGTHS, TrainSettings(batch_size=4, epochs=0.01)) == 1
