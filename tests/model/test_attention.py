"""Attention computed in blocks, which bounds its memory on the CPU, equals attention at once."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import mlx.core as mx
import numpy as np
import pytest

from llavacot_mlx.model.attention import attend, softmax
from llavacot_mlx.model.kernels import CPU, GPU, use


def by_definition(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, causal: bool
) -> np.ndarray:
    """Computes softmax(q kᵀ / √d) v in float64 from the definition."""
    _, heads, rows, size = queries.shape
    columns = keys.shape[2]
    group = heads // keys.shape[1]
    keys, values = (x.astype(np.float64).repeat(group, axis=1) for x in (keys, values))
    scores = queries @ keys.swapaxes(2, 3) / np.sqrt(size)  # (1, heads, rows, columns)
    if causal:
        last = columns - rows + np.arange(rows)  # the last key that a query sees
        scores = np.where(np.arange(columns) > last[:, None], -np.inf, scores)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True) @ values


def random(heads: int, kv_heads: int, rows: int, columns: int) -> list[np.ndarray]:
    """Random queries, keys and values of head_dim 8, large enough that attention is peaked."""
    numbers = np.random.default_rng([heads, rows, columns])
    shapes = ((heads, rows), (kv_heads, columns), (kv_heads, columns))
    return [2 * numbers.standard_normal((1, *shape, 8)).astype(np.float32) for shape in shapes]


@pytest.mark.parametrize("block", [1, 3, 7, 10_000])
@pytest.mark.parametrize(
    ("rows", "columns"),
    [
        pytest.param(20, 20, id="a first prefill"),
        pytest.param(20, 45, id="behind cached tokens"),
        pytest.param(7, 8, id="one cached token"),
        pytest.param(1, 30, id="decoding"),
    ],
)
@pytest.mark.parametrize("causal", [True, False])
def test_blocks_are_the_whole(causal: bool, rows: int, columns: int, block: int) -> None:
    """For any size of blocks, query i sees the keys up to columns - rows + i, or all of them."""
    heads, kv_heads = 6, 2
    queries, keys, values = random(heads, kv_heads, rows, columns)
    with use(replace(CPU, attention_scores_bytes=4 * heads * columns * block)):
        got = attend(*map(mx.array, (queries, keys, values)), mask="causal" if causal else None)
    expected = by_definition(queries, keys, values, causal)
    assert np.abs(np.array(got) - expected).max() < 1e-5


@pytest.mark.parametrize("mask", ["causal", None])
@pytest.mark.parametrize("rows", [1, 9])
def test_a_batch_is_its_rows(rows: int, mask: Literal["causal"] | None) -> None:
    """Each row of a batch has keys and values of its own."""
    parts = [random(6, 2, rows, 20) for row in range(3)]
    parts = [[(row + 1) * array for array in part] for row, part in enumerate(parts)]
    batch = [mx.array(np.concatenate(arrays)) for arrays in zip(*parts, strict=True)]
    with use(replace(CPU, attention_scores_bytes=4 * 3 * 6 * 20 * 4)):
        together = np.array(attend(batch[0], batch[1], batch[2], mask=mask))
    for row, part in enumerate(parts):
        queries, keys, values = map(mx.array, part)
        alone = np.array(attend(queries, keys, values, mask=mask))
        assert np.abs(together[row : row + 1] - alone).max() < 1e-5


def test_softmax_is_its_definition() -> None:
    """Also of rows with masked scores, and of scores far from 0."""
    scores = np.array([[1e4, 1e4 - 1, -np.inf], [-3, 2.5, -1e30], [0, 0, 0]], dtype=np.float32)
    powers = np.exp(scores.astype(np.float64) - scores.max(axis=-1, keepdims=True))
    expected = powers / powers.sum(axis=-1, keepdims=True)
    for chosen in (CPU, GPU):
        with use(chosen):
            np.testing.assert_allclose(np.array(softmax(mx.array(scores))), expected, atol=1e-6)


def test_the_scores_of_a_large_picture_are_never_whole() -> None:
    """On the CPU, scores are computed some megabytes at a time; all at once they take 36 MB here.

    A whole product of queries and keys once made an image of four tiles take 2.8 GB.
    """
    held = 2 * 2**20
    heads, rows = 4, 1500
    queries, keys, values = (mx.random.normal((1, heads, rows, 8)) for _ in range(3))
    mx.eval(queries, keys, values)
    before = mx.get_active_memory()
    mx.reset_peak_memory()
    with use(replace(CPU, attention_scores_bytes=held)):
        mx.eval(attend(queries, keys, values))
    assert mx.get_peak_memory() - before < 4 * held
