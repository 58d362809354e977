"""The next token follows from logits and a key, and from nothing else."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavacot_mlx.sampling import Sampling, _nucleus, sample, token_key

PROBABILITIES = [0.4, 0.1, 0.05, 0.25, 0.2]
LOGITS = mx.log(mx.array([PROBABILITIES])) + 3  # the constant says nothing


def frequencies(sampling: Sampling, draws: int = 20_000, logits: mx.array = LOGITS) -> np.ndarray:
    """How often each token is drawn."""
    many = mx.broadcast_to(logits, (draws, logits.shape[1]))
    ids = np.array(sample(many, sampling, token_key(seed=0, node="0", position=0)))
    return np.bincount(ids, minlength=logits.shape[1]) / draws


def test_temperature_0_takes_the_likeliest_whatever_the_key() -> None:
    logits = mx.random.normal((50, 30), key=mx.random.key(1))
    for seed in range(3):
        ids = sample(logits, Sampling(0.0, 0.01), token_key(seed, "0", 0))
        assert mx.array_equal(ids, mx.argmax(logits, axis=-1))


def test_temperature_1_draws_with_the_models_probabilities() -> None:
    assert frequencies(Sampling(1.0)) == pytest.approx(PROBABILITIES, abs=0.015)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_the_temperature_sharpens_and_flattens(temperature: float) -> None:
    """p^(1/T), normalised."""
    powers = np.array(PROBABILITIES) ** (1 / temperature)
    expected = powers / powers.sum()
    assert frequencies(Sampling(temperature)) == pytest.approx(expected, abs=0.015)


def test_the_nucleus_is_drawn_from_with_its_own_proportions() -> None:
    """0.4 + 0.25 reach 0.6; the token that crosses the border belongs to it."""
    expected = np.array([0.4, 0, 0, 0.25, 0]) / 0.65
    assert frequencies(Sampling(1.0, top_p=0.6)) == pytest.approx(expected, abs=0.015)


def test_the_nucleus_is_of_the_distribution_after_the_temperature() -> None:
    """At temperature 2 the tokens are nearer to each other, so more of them are needed."""
    assert (frequencies(Sampling(2.0, top_p=0.6)) > 0).tolist() == [True, False, False, True, True]


@settings(deadline=None)
@given(
    weights=st.lists(st.integers(1, 50), min_size=2, max_size=12, unique=True),
    top_p=st.floats(0.01, 0.99),
)
def test_the_nucleus_is_minimal(weights: list[int], top_p: float) -> None:
    """The likeliest tokens that reach `top_p`, and without the last of them they would not."""
    probabilities = np.array(weights) / sum(weights)
    kept = np.isfinite(np.array(_nucleus(mx.log(mx.array([weights])), top_p))[0])
    mass = probabilities[kept].sum()
    assert mass >= top_p - 1e-6
    assert mass - probabilities[kept].min() < top_p + 1e-6
    assert not (~kept).any() or probabilities[kept].min() > probabilities[~kept].max()


def test_the_nucleus_keeps_logits_as_they_are() -> None:
    kept = np.array(_nucleus(LOGITS, 0.6))[0]
    assert kept.tolist() == [LOGITS[0, 0].item(), -np.inf, -np.inf, LOGITS[0, 3].item(), -np.inf]


def test_a_nucleus_of_equals_is_not_empty() -> None:
    drawn = frequencies(Sampling(1.0, top_p=0.3), draws=500, logits=mx.zeros((1, 4)))
    assert (drawn > 0).sum() == 2


@pytest.mark.parametrize("top_p", [1.0, 0.9])
@pytest.mark.parametrize("temperature", [1e-6, 1e-39])
def test_a_temperature_of_next_to_nothing_is_greedy(temperature: float, top_p: float) -> None:
    """Logits divided by it were once infinite, and the first token of the vocabulary was drawn."""
    logits = mx.array([[1.0, 2.0, 30.0, 29.0]])
    assert frequencies(Sampling(temperature, top_p), 100, logits).tolist() == [0, 0, 1, 0]


@pytest.mark.parametrize("dtype", [mx.float32, mx.bfloat16, mx.float16])
def test_a_key_draws_one_token(dtype: mx.Dtype) -> None:
    """The same key draws the same tokens, whatever was drawn in between."""
    logits = mx.random.normal((40, 200), key=mx.random.key(0)).astype(dtype)
    sampling = Sampling(1.0, 0.95)
    first = sample(logits, sampling, token_key(3, "1", 4))
    mx.random.seed(0)
    sample(logits, sampling, token_key(0, "0", 0))
    assert mx.array_equal(sample(logits, sampling, token_key(3, "1", 4)), first)


@pytest.mark.parametrize(
    "other",
    [(4, "1", 41), (3, "2", 41), (3, "1", 42), (31, "4", 1), (3, "14", 1), (3, "1/4", 1)],
)
def test_seed_node_and_position_each_change_the_key(other: tuple[int, str, int]) -> None:
    """Also where the digits run together: 3/1/41 is not 31/4/1."""
    logits = mx.zeros((40, 200))
    first = sample(logits, Sampling(1.0), token_key(3, "1", 41))
    second = sample(logits, Sampling(1.0), token_key(*other))
    assert mx.sum(first == second).item() < 5


@pytest.mark.parametrize("seed", [0, -1, 2**64, 2**200])
def test_any_whole_number_is_a_seed(seed: int) -> None:
    assert token_key(seed, "0", 0).shape == (2,)
