"""A cache returns all of its own K/V in order, and those of no other conversation."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from llavacot_mlx.model import kv_cache as cache
from llavacot_mlx.model.kv_cache import ImageKV, KVCache
from llavacot_mlx.model.mllama import Mllama


def rows(count: int, seed: int) -> mx.array:
    """Makes K or V of `count` tokens: (1, 2 kv heads, count, 3)."""
    return mx.random.normal((1, 2, count, 3), key=mx.random.key(seed))


@pytest.mark.parametrize("lengths", [[5], [1, 1, 1], [255, 1, 1, 255, 1], [300, 1, 700, 2], [256]])
def test_what_was_appended_comes_back_in_order(lengths: list[int]) -> None:
    """Holds whether a piece fits into the buffer, fills it exactly, or makes it grow."""
    kept = KVCache(num_layers=2)
    so_far: list[list[mx.array]] = [[], []]
    for number, length in enumerate(lengths):
        for layer in range(2):
            keys, values = rows(length, 10 * number + layer), rows(length, 1000 + number)
            so_far[layer].append(keys)
            got_keys, got_values = kept.extend(layer, keys, values)
            assert mx.array_equal(got_keys, mx.concatenate(so_far[layer], axis=2))
            assert got_values.shape == got_keys.shape
            assert mx.array_equal(got_values[..., -length:, :], values)
        kept.advance(length)
    assert kept.length == sum(lengths)


def test_most_tokens_are_written_in_place() -> None:
    """Buffers grow by whole steps, so a token rarely costs a copy of the whole buffer."""
    kept = KVCache(num_layers=1)
    sizes = set()
    for token in range(2 * cache._STEP):
        kept.extend(0, rows(1, token), rows(1, token))
        kept.advance(1)
        sizes.add(kept.state()[0].shape[2])
    assert sizes == {cache._STEP, 2 * cache._STEP}


def test_tokens_one_by_one_are_the_tokens_at_once(
    model: Mllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The last hidden states with cached K/V equal those of a pass without a cache."""
    monkeypatch.setattr(cache, "_STEP", 16)
    ids = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3, 5, 8, 9, 7, 9, 3, 2, 3, 8, 4, 6, 2]
    at_once = model.hidden(mx.array([ids]), model.language_model.new_cache(), [])
    kept = model.language_model.new_cache()
    pieces = [ids[:6], ids[6:7], ids[7:15], *([token] for token in ids[15:])]
    by_piece = [model.hidden(mx.array([piece]), kept, []) for piece in pieces]
    assert kept.length == len(ids)
    assert np.abs(np.array(mx.concatenate(by_piece, axis=1) - at_once)).max() < 1e-4


def test_two_conversations_do_not_disturb_each_other(model: Mllama) -> None:
    """Two conversations that are decoded in turns give the same tokens as each one alone."""

    def steps(start: int) -> list[mx.array]:
        kept = model.language_model.new_cache()
        return [model.hidden(mx.array([[start + n]]), kept, []) for n in range(12)]

    alone = [steps(3), steps(50)]
    both = [model.language_model.new_cache() for _ in range(2)]
    for n in range(12):
        for side, start in enumerate((3, 50)):
            hidden = model.hidden(mx.array([[start + n]]), both[side], [])
            assert mx.array_equal(hidden, alone[side][n])


def test_the_part_of_some_images() -> None:
    lengths = (2, 3, 4)
    keys, values = rows(9, 0), rows(9, 1)
    image_kv = ImageKV((keys, keys * 2), (values, values * 2), lengths)
    assert image_kv.slice_images(0, 3) is image_kv
    part = image_kv.slice_images(1, 3)
    assert part.image_lengths == (3, 4)
    assert mx.array_equal(part.keys[1], keys[..., 2:9, :] * 2)
    assert mx.array_equal(part.values[0], values[..., 2:9, :])
    assert mx.array_equal(image_kv.slice_images(1, 2).keys[0], keys[..., 2:5, :])
