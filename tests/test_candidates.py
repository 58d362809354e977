"""Candidates decoded together: each one's tokens are its own, and each token is computed once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import mlx.core as mx
import pytest
from test_decode import prompt, tiles, words

from llavacot_mlx.cache import VisionMemory
from llavacot_mlx.candidates import Ended, Ready, Start, Token, extend
from llavacot_mlx.decode import decode, prefill
from llavacot_mlx.judges.asking import ask_each
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.model.text import TextModel
from llavacot_mlx.sampling_params import Sampling
from llavacot_mlx.usage import Timings, Usage

QUESTION = prompt(words(4), tiles(2), words(11, 1))
WARM = Sampling(temperature=1.0, top_p=0.9)


def read(model: Mllama, usage: Usage) -> tuple[Ready, VisionMemory | None]:
    context = prefill(model, QUESTION, usage, Timings())
    return context.ready(), context.memory


def write(
    model: Mllama,
    starts: list[Start],
    memory: VisionMemory | None,
    usage: Usage,
    lengths: dict[str, int],
    sampling: Sampling = WARM,
) -> tuple[dict[str, list[int]], dict[str, Ready]]:
    """Each candidate's tokens, and where it stands then; it ends after its number of tokens."""
    written: dict[str, list[int]] = {start.key: [] for start in starts}
    ended: dict[str, Ready] = {}

    def ends(token: Token) -> bool:
        key = starts[token.candidate].key
        return len(written[key]) == lengths[key]

    for event in extend(model, memory, starts, sampling, 3, ends, usage):
        key = starts[event.candidate].key
        if isinstance(event, Token):
            written[key].append(event.token_id)
        else:
            assert isinstance(event, Ended)
            ended[key] = event.ready
    return written, ended


def test_a_candidate_alone_and_among_fifteen_others(model: Mllama) -> None:
    """Whoever is beside it, in whatever order, and whenever the others end."""
    usage = Usage()
    ready, memory = read(model, usage)
    keys = [str(number) for number in range(16)]
    lengths = {key: 4 + int(key) for key in keys}
    together, _ = write(model, [Start(ready, key, 30) for key in keys], memory, usage, lengths)
    backwards, _ = write(
        model, [Start(ready, key, 30) for key in keys[::-1]], memory, usage, lengths
    )
    assert together == backwards
    assert len({tuple(ids[:4]) for ids in together.values()}) > 8  # they do differ
    for key in ("0", "7", "15"):
        alone, _ = write(model, [Start(ready, key, 30)], memory, usage, lengths)
        assert alone[key] == together[key]


def test_greedy_candidates_are_the_greedy_answer(model: Mllama) -> None:
    usage = Usage()
    ready, memory = read(model, usage)
    context = prefill(model, QUESTION, Usage(), Timings())
    expected = list(decode(model, context, Sampling(), 0, frozenset(), 12, Usage()))
    starts = [Start(ready, "0", 30), Start(ready, "1", 30)]
    written, _ = write(model, starts, memory, usage, {"0": 12, "1": 5}, Sampling())
    assert written == {"0": expected, "1": expected[:5]}


def test_going_on_is_as_if_never_stopped(model: Mllama) -> None:
    """Two candidates end at different lengths; what follows each computes none of it again."""
    usage = Usage()
    ready, memory = read(model, usage)
    context = prefill(model, QUESTION, Usage(), Timings())
    expected = list(decode(model, context, Sampling(), 0, frozenset(), 15, Usage()))
    starts = [Start(ready, "0", 30), Start(ready, "1", 30)]
    _, ended = write(model, starts, memory, usage, {"0": 9, "1": 4}, Sampling())
    starts = [Start(ended["0"], "0", 30), Start(ended["1"], "1", 30)]
    written, _ = write(model, starts, memory, usage, {"0": 6, "1": 6}, Sampling())
    assert written == {"0": expected[9:15], "1": expected[4:10]}


@contextmanager
def counted_positions(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Positions that pass through the text model, a number a forward pass."""
    passed: list[int] = []
    original = TextModel.__call__

    def counting(self: TextModel, ids: mx.array, *rest: object) -> mx.array:
        passed.append(ids.size)
        return original(self, ids, *rest)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(TextModel, "__call__", counting)
        yield passed


def test_every_token_passes_the_model_once(model: Mllama, monkeypatch: pytest.MonkeyPatch) -> None:
    """`usage` says how many positions were computed, and the text model saw just as many."""
    usage = Usage()
    with counted_positions(monkeypatch) as passed:
        ready, memory = read(model, usage)
        starts = [Start(ready, key, 30) for key in "012"]
        written, ended = write(model, starts, memory, usage, {"0": 3, "1": 9, "2": 5})
        starts = [Start(ended["1"], "1/0", 30), Start(ended["2"], "2/0", 30)]
        more, ended = write(model, starts, memory, usage, {"1/0": 2, "2/0": 4})
        branches = [ended["1/0"].branch, ended["2/0"].branch]
        ask_each(model, memory, branches, [[5, 6, 7]] * 2, usage)
    assert usage.prefilled_tokens == len(QUESTION.token_ids)
    assert usage.decoded_tokens == sum(map(len, (written | more).values())) == 23
    assert usage.judge_tokens == 6
    assert sum(passed) == usage.prefilled_tokens + usage.decoded_tokens + usage.judge_tokens


def test_logprobs_are_the_models_own(model: Mllama) -> None:
    """Of the token under the model, before temperature and nucleus."""
    usage = Usage()
    ready, memory = read(model, usage)
    (first, *_) = extend(model, memory, [Start(ready, "0", 30)], WARM, 3, lambda _: True, usage)
    assert isinstance(first, Token)
    expected = ready.logits - mx.logsumexp(ready.logits, axis=-1, keepdims=True)
    assert first.logprob == pytest.approx(expected[0, first.token_id].item(), abs=1e-5)


def test_each_candidate_has_a_limit_of_its_own(model: Mllama) -> None:
    """A short limit of one candidate cuts no other."""
    usage = Usage()
    ready, memory = read(model, usage)
    starts = [Start(ready, "0", 3), Start(ready, "1", 7)]
    written, ended = write(model, starts, memory, usage, {"0": 9, "1": 9})
    assert [len(written[key]) for key in "01"] == [3, 7]
    assert set(ended) == {"0", "1"}
