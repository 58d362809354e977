"""Attention over quantized keys and values equals attention over the dequantized ones."""

from __future__ import annotations

from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest

from llavacot_mlx import demo
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.prefill import PrefilledPrompt, prefill
from llavacot_mlx.model.attention import attend, attend_to_all
from llavacot_mlx.model.kernels import CPU, use
from llavacot_mlx.model.kv_budget import KVBudget, KVLimits
from llavacot_mlx.model.kv_cache import ImageKV, KVSegment
from llavacot_mlx.model.quantized_kv import (
    KV,
    QuantizedKV,
    concatenate_tokens,
    dequantized,
    kv_bytes,
    slice_tokens,
)
from llavacot_mlx.model.shared_prefix import KVPath, SharedPrefixCache
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.prompt.images import open_image
from llavacot_mlx.prompt.tokenizer import Turn
from llavacot_mlx.usage import Timings, Usage

LONG_QUESTION = "Is there a small red square? " * 12


def noise(*shape: int, seed: int = 0) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def close(one: mx.array, other: mx.array, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.array(one), np.array(other), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("head_dim", [32, 64, 96, 128])
def test_attention_over_few_bits_is_that_over_what_they_unpack_to(bits: int, head_dim: int) -> None:
    """Holds for every size of the blocks of queries."""
    keys, values = noise(1, 2, 50, head_dim, seed=1), noise(1, 2, 50, head_dim, seed=2)
    queries = noise(1, 6, 7, head_dim, seed=3)
    packed = QuantizedKV.of(keys, bits), QuantizedKV.of(values, bits)
    expected = attend(queries, packed[0].dequantized(), packed[1].dequantized())
    close(attend_to_all(queries, *packed), expected)
    with use(replace(CPU, attention_scores_bytes=4 * 2 * 50 * 3)):
        close(attend_to_all(queries, *packed), expected)


@pytest.mark.parametrize("bits", [8, 4])
def test_what_is_unpacked_is_near(bits: int) -> None:
    """A dequantized value differs by at most 1.1 quantization steps of its group."""
    array = noise(1, 2, 30, 64)
    groups = np.array(array).reshape(1, 2, 30, -1, 64)
    steps = (groups.max(-1) - groups.min(-1)) / (2**bits - 1)
    restored = np.array(QuantizedKV.of(array, bits).dequantized()).reshape(groups.shape)
    error = np.abs(restored - groups)
    # MLX moves a group's scale a little, so that zero stays zero.
    assert (error.max(-1) <= 1.1 * steps).all()
    assert error.max() > 0


def test_parts_and_bytes() -> None:
    array = noise(1, 2, 30, 96)
    packed = QuantizedKV.of(array, 8)
    assert (packed.shape, packed.group_size) == (array.shape, 32)
    parts: list[KV] = [slice_tokens(packed, 0, 11), slice_tokens(packed, 11, 30)]
    close(dequantized(concatenate_tokens(parts)), packed.dequantized(), 0)
    close(dequantized(slice_tokens(packed, 5, 9)), packed.dequantized()[..., 5:9, :], 0)
    assert packed.nbytes == kv_bytes(array.size, 96, array.dtype, 8)
    assert packed.nbytes < array.nbytes / 3
    assert kv_bytes(array.size, 96, array.dtype, None) == array.nbytes


def test_a_head_that_has_no_groups_is_refused() -> None:
    with pytest.raises(UserError, match="heads are 40 wide"):
        QuantizedKV.of(noise(1, 2, 3, 40), 8)
    with pytest.raises(UserError, match="5 bits: K/V can be kept in 8 or 4"):
        KVLimits(5)


@pytest.mark.parametrize("bits", [8, 4])
def test_a_batch_reads_a_quantized_prefix_where_it_lies(bits: int) -> None:
    """Two paths share a long quantized prefix, and one of them has a quantized part of its own."""
    prompt = KVSegment((noise(1, 2, 70, 32),), (noise(1, 2, 70, 32, seed=1),), 70).quantized(bits)
    own = KVSegment((noise(1, 2, 65, 32, seed=2),), (noise(1, 2, 65, 32, seed=3),), 65).quantized(
        bits
    )
    assert prompt.is_quantized
    assert own.is_quantized
    whole = [
        KVPath(tuple(_whole(segment) for segment in path)) for path in ((prompt,), (prompt, own))
    ]
    few = [KVPath((prompt,)), KVPath((prompt, own))]
    new = [noise(2, heads, 1, 32, seed=seed) for heads, seed in ((6, 4), (2, 5), (2, 6))]
    close(SharedPrefixCache(few).attend(0, *new), _rows_alone(whole, new))


def _whole(segment: KVSegment) -> KVSegment:
    return KVSegment(
        tuple(map(dequantized, segment.keys)),
        tuple(map(dequantized, segment.values)),
        segment.length,
    )


def _rows_alone(paths: list[KVPath], new: list[mx.array]) -> mx.array:
    rows = []
    for row, path in enumerate(paths):
        queries, keys, values = (array[row : row + 1] for array in new)
        before = zip(
            *((segment.keys[0], segment.values[0]) for segment in path.segments), strict=True
        )
        own_keys, own_values = (
            mx.concatenate([*map(dequantized, parts), last], axis=2)
            for parts, last in zip(before, (keys, values), strict=True)
        )
        rows.append(attend(queries, own_keys, own_values))
    return mx.concatenate(rows)


def test_a_short_prefix_stays_as_it_is() -> None:
    segment = KVSegment((noise(1, 2, 20, 32),), (noise(1, 2, 20, 32),), 20)
    assert segment.quantized(8) is segment
    image_kv = ImageKV(segment.keys, segment.values, (20,))
    assert image_kv.quantized(None) is image_kv
    assert isinstance(image_kv.quantized(8).keys[0], QuantizedKV)


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant.load(demo.model_path(), dtype="float32")


def read(assistant: Assistant, bits: int | None) -> PrefilledPrompt:
    loaded = assistant._loaded
    ids = loaded.tokenizer.prompt([Turn("user", LONG_QUESTION, images=1)])
    tiles = loaded.image_processor(open_image(demo.example_path("tall")))
    usage = Usage()
    kv_budget = KVBudget(usage, KVLimits(bits))
    return prefill(loaded.model, Prompt(tuple(ids), (tiles,)), usage, Timings(), kv_budget)


def test_the_first_token_already_sees_few_bits(assistant: Assistant) -> None:
    """Quantized K/V take effect from the prefill on, and fewer bits change the logits more."""
    logits = {bits: np.array(read(assistant, bits).logits) for bits in (None, 8, 4)}
    scale = np.abs(logits[None]).max()
    drift = {bits: np.abs(logits[bits] - logits[None]).max() / scale for bits in (8, 4)}
    assert 0 < drift[8] < drift[4]
    assert drift[8] < 0.05
    context = read(assistant, 8)
    assert context.image_kv is not None
    assert isinstance(context.image_kv.keys[0], QuantizedKV)
    assert context.state().path.segments[0].is_quantized


@pytest.mark.parametrize("search", ["greedy", "stage-beam"])
def test_answers_with_few_bits(assistant: Assistant, search: str) -> None:
    """The answer is the same in a third of the memory; this image is not a close call."""
    full, few = (
        assistant.ask(
            demo.example_path("tall"), LONG_QUESTION, search=search, limits=KVLimits(bits=bits)
        )
        for bits in (None, 8)
    )
    assert few.answer == full.answer
    assert few.usage.kv_bytes < full.usage.kv_bytes
