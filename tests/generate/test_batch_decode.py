"""Candidates decoded together: each one's tokens are its own, and each token is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import pytest
from random_model import prompt, tiles, words

from llavacot_mlx.generate.batch_decode import Ended, Token, decode_batch
from llavacot_mlx.generate.context import DecodeContext
from llavacot_mlx.generate.decode import decode
from llavacot_mlx.generate.decode_state import CandidateStart, DecodeState
from llavacot_mlx.generate.prefill import PrefilledPrompt, prefill
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.model.text import TextModel
from llavacot_mlx.search.judges.batched_question import ask_each
from llavacot_mlx.usage import Timings, Usage

QUESTION = prompt(words(4), tiles(2), words(11, 1))
WARM = Sampling(temperature=1.0, top_p=0.9)


def read(model: Mllama, usage: Usage) -> tuple[DecodeState, PrefilledPrompt]:
    context = prefill(model, QUESTION, usage, Timings())
    return context.state(), context


def write(
    context: DecodeContext,
    starts: list[CandidateStart],
    lengths: dict[str, int],
    sampling: Sampling = WARM,
) -> tuple[dict[str, list[int]], dict[str, DecodeState]]:
    """Returns each candidate's tokens and its state after them; it ends after a given number."""
    written: dict[str, list[int]] = {start.key: [] for start in starts}
    ended: dict[str, DecodeState] = {}

    def ends(token: Token) -> bool:
        key = starts[token.candidate].key
        return len(written[key]) == lengths[key]

    for event in decode_batch(context, starts, sampling, 3, ends):
        key = starts[event.candidate].key
        if isinstance(event, Token):
            written[key].append(event.token_id)
        else:
            assert isinstance(event, Ended)
            ended[key] = event.state
    return written, ended


def test_a_candidate_alone_and_among_fifteen_others(model: Mllama) -> None:
    """A candidate's tokens do not depend on the others, on their order, or on when they end."""
    usage = Usage()
    state, context = read(model, usage)
    keys = [str(number) for number in range(16)]
    lengths = {key: 4 + int(key) for key in keys}
    together, _ = write(context, [CandidateStart(state, key, 30) for key in keys], lengths)
    backwards, _ = write(context, [CandidateStart(state, key, 30) for key in keys[::-1]], lengths)
    assert together == backwards
    assert len({tuple(ids[:4]) for ids in together.values()}) > 8  # they do differ
    for key in ("0", "7", "15"):
        alone, _ = write(context, [CandidateStart(state, key, 30)], lengths)
        assert alone[key] == together[key]


def test_greedy_candidates_are_the_greedy_answer(model: Mllama) -> None:
    usage = Usage()
    state, context = read(model, usage)
    alone = prefill(model, QUESTION, Usage(), Timings())
    expected = list(decode(alone, Sampling(), 0, frozenset(), 12))
    starts = [CandidateStart(state, "0", 30), CandidateStart(state, "1", 30)]
    written, _ = write(context, starts, {"0": 12, "1": 5}, Sampling())
    assert written == {"0": expected, "1": expected[:5]}


def test_going_on_is_as_if_never_stopped(model: Mllama) -> None:
    """Two candidates end at different lengths; continuing them computes no token again."""
    usage = Usage()
    state, context = read(model, usage)
    alone = prefill(model, QUESTION, Usage(), Timings())
    expected = list(decode(alone, Sampling(), 0, frozenset(), 15))
    starts = [CandidateStart(state, "0", 30), CandidateStart(state, "1", 30)]
    _, ended = write(context, starts, {"0": 9, "1": 4}, Sampling())
    starts = [CandidateStart(ended["0"], "0", 30), CandidateStart(ended["1"], "1", 30)]
    written, _ = write(context, starts, {"0": 6, "1": 6}, Sampling())
    assert written == {"0": expected[9:15], "1": expected[4:10]}


@contextmanager
def counted_positions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Records the number of positions that pass through the text model, per forward pass."""
    passed: list[int] = []
    original = TextModel.__call__

    def counting(self: TextModel, ids: mx.array, *rest: object) -> mx.array:
        passed.append(ids.size)
        return original(self, ids, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TextModel, "__call__", counting)
        yield passed


def test_every_token_passes_the_model_once(model: Mllama, monkeypatch: pytest.MonkeyPatch) -> None:
    """`usage` counts exactly the positions that the text model has seen."""
    usage = Usage()
    with counted_positions(monkeypatch) as passed:
        state, context = read(model, usage)
        starts = [CandidateStart(state, key, 30) for key in "012"]
        written, ended = write(context, starts, {"0": 3, "1": 9, "2": 5})
        starts = [CandidateStart(ended["1"], "1/0", 30), CandidateStart(ended["2"], "2/0", 30)]
        more, ended = write(context, starts, {"1/0": 2, "2/0": 4})
        paths = [ended["1/0"].path, ended["2/0"].path]
        ask_each(context, paths, [[5, 6, 7]] * 2)
    assert usage.prefilled_tokens == len(QUESTION.token_ids)
    assert usage.decoded_tokens == sum(map(len, (written | more).values())) == 23
    assert usage.judge_tokens == 6
    assert sum(passed) == usage.prefilled_tokens + usage.decoded_tokens + usage.judge_tokens


def test_logprobs_are_the_models_own(model: Mllama) -> None:
    """A log-probability is that of the token under the model, before temperature and nucleus."""
    usage = Usage()
    state, context = read(model, usage)
    (first, *_) = decode_batch(context, [CandidateStart(state, "0", 30)], WARM, 3, lambda _: True)
    assert isinstance(first, Token)
    expected = state.logits - mx.logsumexp(state.logits, axis=-1, keepdims=True)
    assert first.logprob == pytest.approx(expected[0, first.token_id].item(), abs=1e-5)


def test_each_candidate_has_a_limit_of_its_own(model: Mllama) -> None:
    """A short limit of one candidate does not cut off another."""
    usage = Usage()
    state, context = read(model, usage)
    starts = [CandidateStart(state, "0", 3), CandidateStart(state, "1", 7)]
    written, ended = write(context, starts, {"0": 9, "1": 9})
    assert [len(written[key]) for key in "01"] == [3, 7]
    assert set(ended) == {"0", "1"}
