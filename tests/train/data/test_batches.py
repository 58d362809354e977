"""Batches by length, in an order that follows from seed and epoch."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from llavacot_mlx.train.data.batches import batch_order, batches_from, pad_batch, steps_of
from llavacot_mlx.train.data.sample import Sample, TokenKind
from llavacot_mlx.train.settings import TrainSettings

LENGTHS = np.random.default_rng(0).integers(10, 900, 200).tolist()
UNEVEN = [10 + 37 * number % 300 for number in range(23)]


@given(
    lengths=st.lists(st.integers(1, 500), min_size=1, max_size=80),
    size=st.integers(1, 9),
    seed=st.integers(0, 2**63),
    epoch=st.integers(0, 100),
)
def test_every_row_comes_once(lengths: list[int], size: int, seed: int, epoch: int) -> None:
    order = batch_order(lengths, size, seed, epoch)
    assert sorted(row for rows in order for row in rows) == list(range(len(lengths)))
    sizes = sorted(map(len, order), reverse=True)
    whole, rest = divmod(len(lengths), size)
    assert sizes == [size] * whole + [rest] * (rest > 0)
    # As few batches as can be hold rows that are padded to different lengths.
    padded = [{-(-lengths[row] // 64) for row in rows} for rows in order]
    borders = len({-(-length // 64) for length in lengths}) - 1
    assert sum(len(kinds) > 1 for kinds in padded) <= borders


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    first = batch_order(LENGTHS, 4, 7, 2)
    np.random.seed(1)
    assert batch_order(LENGTHS, 4, 7, 2) == first
    assert batch_order(LENGTHS, 4, 7, 3) != first
    assert batch_order(LENGTHS, 4, 8, 2) != first
    assert all(type(row) is int for rows in first for row in rows)


def test_an_epoch_draws_other_neighbours_and_another_sequence() -> None:
    """Otherwise the same rows would always share a step, or the long ones always come last."""
    one, other = (set(map(frozenset, batch_order(LENGTHS, 4, 0, epoch))) for epoch in (0, 1))
    assert len(one & other) < 5
    longest = [max(LENGTHS[row] for row in rows) for rows in batch_order(LENGTHS, 4, 0, 0)]
    assert longest != sorted(longest)
    assert abs(np.corrcoef(longest, range(len(longest)))[0, 1]) < 0.5


def sample(count: int) -> Sample:
    ids = np.arange(1, count + 1, dtype=np.int32)
    return Sample("", ids, np.full(count, TokenKind.TAGS, dtype=np.uint8), None)


@pytest.mark.parametrize(("longest", "padded"), [(1, 64), (64, 64), (65, 128)])
def test_padding_is_on_the_right_and_masked(longest: int, padded: int) -> None:
    batch = pad_batch((5, 2), [sample(longest), sample(1)], [None, None])
    assert batch.rows == (5, 2)
    assert batch.ids.shape == batch.token_kinds.shape == (2, padded)
    assert batch.ids[0].tolist() == [*range(1, longest + 1), *[0] * (padded - longest)]
    assert batch.token_kinds[0].tolist() == [TokenKind.TAGS] * longest + [0] * (padded - longest)
    assert batch.ids[1].tolist() == [1] + [0] * (padded - 1)
    assert np.count_nonzero(batch.token_kinds[1]) == 1
    assert (batch.ids.dtype, batch.token_kinds.dtype) == (np.int32, np.uint8)


def test_another_multiple() -> None:
    assert pad_batch((0,), [sample(5)], [None], multiple=8).ids.shape == (1, 8)


@pytest.mark.parametrize("accumulation", [1, 3])
def test_a_resumption_goes_on_with_the_rows_that_would_have_come(accumulation: int) -> None:
    settings = TrainSettings(batch_size=4, grad_accumulation_steps=accumulation, seed=7)
    whole = list(itertools.islice(batches_from(UNEVEN, settings, 0), 60))
    for done in range(60 // accumulation):
        start = done * accumulation
        rest = itertools.islice(batches_from(UNEVEN, settings, done), 60 - start)
        assert list(rest) == whole[start:]


def test_every_row_comes_once_an_epoch_and_every_epoch_is_another_one() -> None:
    settings = TrainSettings(batch_size=4)
    batches = list(itertools.islice(batches_from(UNEVEN, settings, 0), 12))
    first, second = batches[:6], batches[6:]
    for epoch in (first, second):
        assert Counter(row for batch in epoch for row in batch) == Counter(range(23))
    assert first != second


def test_epochs_count_steps() -> None:
    assert steps_of(UNEVEN, TrainSettings(iters=9)) == 9
    assert steps_of(UNEVEN, TrainSettings(batch_size=4, epochs=2)) == 12
    accumulated = TrainSettings(batch_size=4, epochs=1, grad_accumulation_steps=4)
    assert steps_of(UNEVEN, accumulated) == 2
    assert steps_of(UNEVEN, TrainSettings(batch_size=4, epochs=0.01)) == 1
