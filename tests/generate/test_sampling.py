"""The next token depends on the logits and a key, and on nothing else."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavacot_mlx.generate import sampling as sampling_module
from llavacot_mlx.generate.sampling import _nucleus, log_probabilities, sample, token_keys
from llavacot_mlx.generate.sampling_params import Sampling

PROBABILITIES = [0.4, 0.1, 0.05, 0.25, 0.2]
LOGITS = mx.log(mx.array([PROBABILITIES])) + 3  # the constant says nothing


def keys(rows: int, seed: int = 0, position: int = 0) -> mx.array:
    return token_keys(seed, [str(row) for row in range(rows)], position)


def frequencies(sampling: Sampling, draws: int = 20_000, logits: mx.array = LOGITS) -> np.ndarray:
    """Returns how often each token is drawn."""
    many = mx.broadcast_to(logits, (draws, logits.shape[1]))
    ids = np.array(sample(many, sampling, keys(draws)))
    return np.bincount(ids, minlength=logits.shape[1]) / draws


def test_temperature_0_takes_the_likeliest_whatever_the_key() -> None:
    logits = mx.random.normal((50, 30), key=mx.random.key(1))
    for seed in range(3):
        ids = sample(logits, Sampling(0.0, 0.01), keys(50, seed))
        assert mx.array_equal(ids, mx.argmax(logits, axis=-1))


def test_temperature_1_draws_with_the_models_probabilities() -> None:
    assert frequencies(Sampling(1.0)) == pytest.approx(PROBABILITIES, abs=0.015)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_sharpens_and_flattens(temperature: float) -> None:
    """Probabilities become p^(1/T), normalized."""
    powers = np.array(PROBABILITIES) ** (1 / temperature)
    expected = powers / powers.sum()
    assert frequencies(Sampling(temperature)) == pytest.approx(expected, abs=0.015)


def test_the_nucleus_is_drawn_from_with_its_own_proportions() -> None:
    """0.4 + 0.25 reach 0.6; the token that crosses the border belongs to it."""
    expected = np.array([0.4, 0, 0, 0.25, 0]) / 0.65
    assert frequencies(Sampling(1.0, top_p=0.6)) == pytest.approx(expected, abs=0.015)


def test_the_nucleus_is_of_the_distribution_after_the_temperature() -> None:
    """At temperature 2 the probabilities are closer to each other, so the nucleus has more
    tokens."""
    assert (frequencies(Sampling(2.0, top_p=0.6)) > 0).tolist() == [True, False, False, True, True]


@settings(deadline=None)
@given(
    weights=st.lists(st.integers(1, 50), min_size=2, max_size=12, unique=True),
    top_p=st.floats(0.01, 0.99),
)
def test_the_nucleus_is_minimal(weights: list[int], top_p: float) -> None:
    """The nucleus has the likeliest tokens that reach `top_p`; without its last one they would
    not."""
    probabilities = np.array(weights) / sum(weights)
    kept = np.array(_nucleus(mx.array([weights], dtype=mx.float32), top_p))[0] > 0
    mass = probabilities[kept].sum()
    assert mass >= top_p - 1e-6
    assert mass - probabilities[kept].min() < top_p + 1e-6
    assert not (~kept).any() or probabilities[kept].min() > probabilities[~kept].max()


def test_the_nucleus_keeps_weights_as_they_are() -> None:
    kept = np.array(_nucleus(mx.array([[8.0, 2.0, 1.0, 5.0, 4.0]]), 0.6))[0]
    assert kept.tolist() == [8, 0, 0, 5, 0]


@pytest.mark.parametrize("size", [1023, 1024, 1025, 5000, 128256])
@pytest.mark.parametrize("spread", [0.0, 0.5, 5.0])
@pytest.mark.parametrize("top_p", [0.1, 0.9, 0.999])
def test_the_nucleus_of_a_large_vocabulary(size: int, spread: float, top_p: float) -> None:
    """Whether few tokens matter, most of them or, where all are equal, the first ones.

    The CPU does not sort a large vocabulary, so sorting is what to compare with. The weights are
    sixteenths, so that sums are exact and many tokens are equals.
    """
    rng = np.random.default_rng(size)
    weights = np.ceil(np.exp(rng.normal(size=(3, size)) * spread) * 16).clip(1, 160) / 16
    kept = np.array(_nucleus(mx.array(weights, dtype=mx.float32), top_p)) > 0
    for row, row_kept in zip(weights, kept, strict=True):
        order = np.argsort(-row, kind="stable")
        before = np.cumsum(row[order]) - row[order]
        expected = np.zeros(size, dtype=bool)
        expected[order[before < np.float32(top_p) * np.float32(row.sum())]] = True
        assert np.array_equal(row_kept, expected)


def test_what_a_row_draws_depends_on_no_other_row() -> None:
    logits = mx.random.normal((6, 3000), key=mx.random.key(2)) * 3
    sampling = Sampling(0.6, 0.9)
    together = sample(logits, sampling, keys(6))
    backwards = sample(logits[::-1], sampling, keys(6)[::-1])
    alone = [sample(logits[n : n + 1], sampling, keys(6)[n : n + 1]) for n in range(6)]
    assert together.tolist() == backwards.tolist()[::-1] == mx.concatenate(alone).tolist()
    assert len(set(together.tolist())) > 3


@pytest.mark.parametrize(("number", "expected"), [(0.0, 1), (1 - 2**-24, 2)])
def test_the_border_cases_of_a_random_number(
    monkeypatch: pytest.MonkeyPatch, number: float, expected: int
) -> None:
    """0 and the largest number below 1 draw the first and the last token of the nucleus."""
    monkeypatch.setattr(sampling_module, "_uniform", lambda key: mx.full((1,), number))
    logits = mx.array([[-mx.inf, 2.0, 1.0, -mx.inf]])
    assert sample(logits, Sampling(1.0), keys(1)).tolist() == [expected]


def test_log_probabilities_of_chosen_tokens() -> None:
    chosen = log_probabilities(mx.concatenate([LOGITS, LOGITS * 2 - 5]), mx.array([3, 0]))
    squares = np.array(PROBABILITIES) ** 2
    assert np.exp(np.array(chosen)) == pytest.approx([0.25, squares[0] / squares.sum()])


def test_a_nucleus_of_equals_is_not_empty() -> None:
    drawn = frequencies(Sampling(1.0, top_p=0.3), draws=500, logits=mx.zeros((1, 4)))
    assert (drawn > 0).sum() == 2


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("temperature", [1e-6, 1e-39])
def test_a_temperature_of_next_to_nothing_is_greedy(temperature: float, top_p: float) -> None:
    """Division by a tiny temperature once gave infinity, and the first token was always drawn."""
    logits = mx.array([[1.0, 2.0, 30.0, 29.0]])
    assert frequencies(Sampling(temperature, top_p), 100, logits).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_a_key_draws_one_token(dtype: mx.Dtype) -> None:
    """The same key draws the same token, whatever was drawn in between."""
    logits = mx.random.normal((40, 200), key=mx.random.key(0)).astype(dtype)
    sampling = Sampling(1.0, 0.95)
    first = sample(logits, sampling, keys(40, 3, 4))
    mx.random.seed(0)
    sample(logits, sampling, keys(40))
    assert mx.array_equal(sample(logits, sampling, keys(40, 3, 4)), first)


@pytest.mark.parametrize(
    "other",
    [(4, "1", 41), (3, "2", 41), (3, "1", 42), (31, "4", 1), (3, "14", 1), (3, "1/4", 1)],
)
def test_seed_node_and_position_each_change_the_key(other: tuple[int, str, int]) -> None:
    """Keys differ even where the digits run together: 3/1/41 is not 31/4/1."""
    logits = mx.zeros((1, 100_000))
    first = sample(logits, Sampling(1.0), token_keys(3, ["1"], 41))
    seed, node, position = other
    second = sample(logits, Sampling(1.0), token_keys(seed, [node], position))
    assert first.item() != second.item()


@pytest.mark.parametrize("seed", [0, -1, 2**64, 2**200])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    assert token_keys(seed, ["0"], 0).shape == (1, 2)
