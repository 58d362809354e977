"""Many paths over one prefix: each is computed as if it were alone, and the prefix is not
copied."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from random_model import prompt, tiles, words

from llavacot_mlx.generate.decode_state import DecodeState
from llavacot_mlx.generate.prefill import prefill
from llavacot_mlx.model.joined_cache import JoinedCache
from llavacot_mlx.model.kernels import GPU, kernels, use
from llavacot_mlx.model.kv_cache import ImageKV, ImageSpan, KVSegment, SelfAttentionCache
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.model.shared_prefix import KVPath, SharedPrefixCache
from llavacot_mlx.usage import Timings, Usage

QUESTION = prompt(words(5), tiles(1), words(9, 1))
LENGTHS = (3, 8, 5)


def read(model: Mllama) -> tuple[DecodeState, ImageKV]:
    context = prefill(model, QUESTION, Usage(), Timings())
    assert context.image_kv is not None
    return context.state(), context.image_kv


def run(model: Mllama, cache: object, ids: list[list[int]], image_kv: ImageKV) -> np.ndarray:
    """Returns the logits (batch, tokens, vocabulary) of equally many new tokens of every path."""
    spans = [ImageSpan(0, len(ids[0]), image_kv, after_image=True)]
    return np.array(model.logits(model.hidden(mx.array(ids), cache, spans)))  # type: ignore[arg-type]


def alone(model: Mllama, ids: list[int]) -> np.ndarray:
    """Returns the logits (tokens, vocabulary) of ids after the question, in a cache of their
    own."""
    context = prefill(model, QUESTION, Usage(), Timings())
    assert context.image_kv is not None
    return run(model, context.cache, [ids], context.image_kv)[0]


@pytest.fixture
def token_rows(model: Mllama) -> list[list[int]]:
    return [words(length + 2, seed=length) for length in LENGTHS]


@pytest.mark.parametrize("at_once", [1, 2])
def test_rows_of_different_lengths_are_as_if_alone(
    model: Mllama, token_rows: list[list[int]], at_once: int
) -> None:
    """Paths of 3, 8 and 5 tokens continue together, one or two tokens at a time."""
    state, image_kv = read(model)
    paths = []
    for ids in token_rows:
        batch = SharedPrefixCache([state.path])
        run(model, batch, [ids[:-2]], image_kv)
        paths.append(state.path.extended_by(batch.segment(0, len(ids) - 2)))
    batch = SharedPrefixCache(paths)
    for start in range(-2, 0, at_once):
        stop = start + at_once or None
        logits = run(model, batch, [ids[start:stop] for ids in token_rows], image_kv)
        for row, ids in enumerate(token_rows):
            np.testing.assert_allclose(logits[row], alone(model, ids)[start:stop], atol=2e-4)


def test_rows_leave_and_change_places(model: Mllama, token_rows: list[list[int]]) -> None:
    state, image_kv = read(model)
    batch = SharedPrefixCache([state.path] * 3)
    run(model, batch, [ids[:3] for ids in token_rows], image_kv)
    batch.keep([2, 0])
    logits = run(model, batch, [token_rows[2][3:4], token_rows[0][3:4]], image_kv)
    for row, ids in enumerate((token_rows[2], token_rows[0])):
        np.testing.assert_allclose(logits[row, 0], alone(model, ids[:4])[-1], atol=2e-4)


def test_siblings_do_not_disturb_each_other(model: Mllama, token_rows: list[list[int]]) -> None:
    """What a batch writes changes no segment that another batch starts with.

    `cache[a:b] = x` changes the array that MLX handed out, so writes of a sibling would corrupt a
    shallow copy of a cache.
    """
    state, image_kv = read(model)
    first, second = SharedPrefixCache([state.path]), SharedPrefixCache([state.path])
    run(model, first, [token_rows[0]], image_kv)
    segment = first.segment(0, len(token_rows[0]))
    run(model, first, [token_rows[2]], image_kv)  # goes on after the segment was taken
    run(model, second, [token_rows[1]], image_kv)
    again = SharedPrefixCache([state.path.extended_by(segment)])
    logits = run(model, again, [[7]], image_kv)
    np.testing.assert_allclose(logits[0, 0], alone(model, [*token_rows[0], 7])[-1], atol=2e-4)


def test_what_all_rows_share_is_not_copied(model: Mllama) -> None:
    """Eight candidates take little more memory than one, apart from their own tokens."""
    state, _ = read(model)
    mx.eval(state.path.segments[0].keys, state.path.segments[0].values)
    before = mx.get_active_memory()
    batch = SharedPrefixCache([state.path] * 8)
    mx.eval(batch.offset)
    assert mx.get_active_memory() - before < sum(k.nbytes for k in state.path.segments[0].keys)


def test_the_length_of_a_branch(model: Mllama) -> None:
    state, image_kv = read(model)
    batch = SharedPrefixCache([state.path])
    run(model, batch, [[1, 2, 3]], image_kv)
    longer = state.path.extended_by(batch.segment(0, 3))
    assert (state.path.length, longer.length) == (15, 18)
    assert isinstance(longer, KVPath)


def segment_of(tokens: int, seed: int, bits: int | None = None) -> KVSegment:
    """Random K/V of two layers, with 2 heads of 32."""
    arrays = [
        mx.random.normal((1, 2, tokens, 32), key=mx.random.key(10 * seed + number))
        for number in range(4)
    ]
    return KVSegment(tuple(arrays[:2]), tuple(arrays[2:]), tokens).quantized(bits)


def attended(cache: SelfAttentionCache, rows: int, seeds: list[int]) -> np.ndarray:
    """Appends one token to every row, drawn with its seed, and attends in both layers."""
    outputs = []
    for layer in range(2):
        new = [
            mx.concatenate(
                [
                    mx.random.normal((1, heads, 1, 32), key=mx.random.key(1000 * seed + layer))
                    for seed in seeds
                ]
            )
            for heads in (6, 2, 2)
        ]
        outputs.append(np.array(cache.attend(layer, *new)))
    cache.advance(1)
    assert len(seeds) == rows
    return np.stack(outputs)


PATHS = {seed: KVPath((segment_of(5 + 13 * seed, seed),)) for seed in range(5)}


@pytest.mark.parametrize("fused", [False, True], ids=["CPU", "fused"])
def test_paths_of_different_prompts_join_and_leave(fused: bool) -> None:
    """Each attends to its own tokens, wherever it stands and whoever came before."""
    alone = {seed: SharedPrefixCache([path], shares=False) for seed, path in PATHS.items()}
    with use(GPU if fused else kernels()):
        cache = SharedPrefixCache([PATHS[0], PATHS[3]], shares=False)
        seeds = [0, 3]
        changes: list[tuple[list[int], list[int]]] = [
            ([0, 1], []),
            ([0, 1], [4, 1]),  # a longer one and a shorter one join
            ([0, 1, 3], [2]),  # the longest leaves as another joins
            ([3, 0], []),
            ([], [4]),  # all leave
        ]
        for kept, joining in changes:
            cache.update(kept, [PATHS[seed] for seed in joining])
            seeds = [seeds[row] for row in kept] + joining
            for seed in joining:
                alone[seed] = SharedPrefixCache([PATHS[seed]], shares=False)
            for _ in range(3):
                together = attended(cache, len(seeds), seeds)
                for row, seed in enumerate(seeds):
                    own = attended(alone[seed], 1, [seed])
                    np.testing.assert_allclose(together[:, row : row + 1], own, atol=1e-5)
            longest = max(cache.lengths)
            assert cache.arrays[0].shape[2] < longest + 64, "columns of paths that left are kept"


def test_caches_are_joined_to_one_batch() -> None:
    """Candidates of one prompt, of another whose K/V are quantized, and paths of others."""

    def caches() -> list[SharedPrefixCache]:
        quantized = KVPath((segment_of(70, 7, bits=8),))
        return [
            SharedPrefixCache([PATHS[1], PATHS[2]], shares=False),
            SharedPrefixCache([quantized]),
            SharedPrefixCache([PATHS[3]] * 3),
        ]

    apart, joined = caches(), JoinedCache(caches())
    for _ in range(4):
        assert joined.offset.tolist() == [n for cache in apart for n in cache.lengths]
        together = attended(joined, 6, [0, 1, 2, 3, 4, 5])
        expected = [
            attended(cache, len(seeds), seeds)
            for cache, seeds in zip(apart, ([0, 1], [2], [3, 4, 5]), strict=True)
        ]
        np.testing.assert_allclose(together, np.concatenate(expected, axis=1), atol=1e-5)
