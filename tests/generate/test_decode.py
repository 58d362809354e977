"""Prefill and decoding: the answer does not depend on how a prompt is read, and work is counted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from random_model import CONFIG, IMAGE_TOKEN_ID, prompt, tiles, words

from llavacot_mlx.errors import UserError
from llavacot_mlx.generate import decode as decode_module
from llavacot_mlx.generate.decode import decode
from llavacot_mlx.generate.ngram_draft import DraftMemory, NgramDraft
from llavacot_mlx.generate.prefill import prefill
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.usage import Timings, Usage

GREEDY = Sampling(0.0)


def answer(
    model: Mllama,
    question: Prompt,
    count: int = 20,
    sampling: Sampling = GREEDY,
    seed: int = 0,
    stop_ids: frozenset[int] = frozenset(),
) -> tuple[list[int], Usage]:
    usage = Usage()
    context = prefill(model, question, usage, Timings())
    return list(decode(context, sampling, seed, stop_ids, count)), usage


def uncached(model: Mllama, question: Prompt, count: int) -> list[int]:
    """Greedy decoding that computes everything again for each token."""
    ids = list(question.token_ids)
    for _ in range(count):
        again = Prompt(tuple(ids), question.images)
        ids.append(int(mx.argmax(prefill(model, again, Usage(), Timings()).logits).item()))
    return ids[len(question.token_ids) :]


# A prompt whose picture comes amid text, one with two, one with two side by side, one without.
PROMPTS = {
    "long text, picture, text": prompt(words(40), tiles(1), words(15, 1)),
    "picture first": prompt(tiles(2), words(9, 2)),
    "two": prompt(words(5), tiles(1), words(11, 1), tiles(2, 1), words(7, 2)),
    "side by side": prompt(words(3), tiles(2), tiles(1, 1), words(11, 1)),
    "picture last": prompt(words(12), tiles(1)),
    "none": prompt(words(30, 3)),
}


@pytest.mark.parametrize("name", PROMPTS)
def test_decoding_is_reading_everything_again(name: str, model: Mllama) -> None:
    """Cached K/V change nothing, and those of absent tiles are not missed."""
    ids, _ = answer(model, PROMPTS[name], 12)
    assert ids == uncached(model, PROMPTS[name], 12)
    assert len(set(ids)) >= 3  # a model that repeats itself would prove little


@pytest.mark.parametrize("rows", [1, 3, 8, 41, 42])
@pytest.mark.parametrize("name", PROMPTS)
def test_a_prompt_in_several_passes(name: str, rows: int, model: Mllama) -> None:
    """Passes may be cut before, within, or after the positions at which an image starts."""
    whole = prefill(model, PROMPTS[name], Usage(), Timings())
    usage = Usage()
    cut = prefill(model, PROMPTS[name], usage, Timings(), tokens_per_pass=rows)
    assert usage.prefilled_tokens == len(PROMPTS[name].token_ids) == cut.cache.length
    assert np.abs(np.array(whole.logits - cut.logits)).max() < 1e-3
    run = list(decode(cut, GREEDY, 0, frozenset(), 8))
    assert run == list(decode(whole, GREEDY, 0, frozenset(), 8))


def test_the_picture_is_seen(model: Mllama) -> None:
    """Otherwise the comparisons in this file would prove nothing."""
    one, other = (
        prefill(model, prompt(words(5), tiles(1, seed), words(4)), Usage(), Timings()).logits
        for seed in (0, 1)
    )
    assert np.abs(np.array(one - other)).max() > 0.1


def test_what_is_done_is_counted(model: Mllama) -> None:
    question = PROMPTS["two"]
    ids, usage = answer(model, question, 20)
    assert len(ids) == 20
    # A budget counts the bytes; tests/model/test_kv_budget.py holds it to them.
    assert replace(usage, kv_bytes=0) == Usage(
        images_encoded=2,
        prefilled_tokens=len(question.token_ids),
        decoded_tokens=20,
        forward_passes=19,  # the prompt's pass gave the first token
    )


def test_a_token_is_counted_when_it_is_handed_out(model: Mllama) -> None:
    """A reader that stops early has counted only the tokens that it received."""
    usage = Usage()
    context = prefill(model, PROMPTS["none"], usage, Timings())
    run = decode(context, GREEDY, 0, frozenset(), 20)
    for n in range(1, 4):
        next(run)
        assert usage.decoded_tokens == n
    run.close()
    assert usage.decoded_tokens == 3


def test_timings_add_up(model: Mllama) -> None:
    """The times of a second prompt are added to those of the first."""
    timings = Timings()
    prefill(model, PROMPTS["two"], Usage(), timings)
    first = (timings.vision_s, timings.prefill_s)
    assert min(first) > 0
    prefill(model, PROMPTS["two"], Usage(), timings)
    assert timings.vision_s > first[0]
    assert timings.prefill_s > first[1]


def test_a_stop_token_ends_the_answer_and_is_its_last(model: Mllama) -> None:
    free, _ = answer(model, PROMPTS["two"], 20)
    last = next(n for n in range(4, 20) if free[n] not in free[:n])
    stopped, usage = answer(model, PROMPTS["two"], 20, stop_ids=frozenset({free[last], 9999}))
    assert stopped == free[: last + 1]
    assert usage.decoded_tokens == last + 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_the_limit_of_tokens(count: int, model: Mllama) -> None:
    ids, usage = answer(model, PROMPTS["none"], count)
    assert len(ids) == usage.decoded_tokens == count
    assert ids == answer(model, PROMPTS["none"], 20)[0][:count]


def test_no_step_is_run_for_nothing(model: Mllama, monkeypatch: pytest.MonkeyPatch) -> None:
    """n tokens take the prefill and n - 1 steps: the last token is not fed back."""
    calls = []
    original = Mllama.hidden

    def counted(self: Mllama, *arguments: object) -> mx.array:
        calls.append(arguments)
        return original(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Mllama, "hidden", counted)
    answer(model, PROMPTS["none"], 5)
    assert len(calls) == 5


def test_the_seed_chooses_the_text(model: Mllama) -> None:
    hot = Sampling(1.5, 0.95)
    texts = [tuple(answer(model, PROMPTS["none"], 15, hot, seed)[0]) for seed in (0, 1, 2, 0)]
    assert texts[0] == texts[3]
    assert len(set(texts)) == 3


def test_each_token_has_a_key_of_its_own(model: Mllama, monkeypatch: pytest.MonkeyPatch) -> None:
    """Positions 0, 1, 2 … have different keys: with one random number for all, a text would
    loop."""
    positions = []

    def watched(seed: int, nodes: list[str], position: int) -> mx.array:
        positions.append((seed, *nodes, position))
        return mx.random.key(0)[None]

    monkeypatch.setattr(decode_module, "token_keys", watched)
    answer(model, PROMPTS["none"], 6, Sampling(1.0), seed=7)
    assert positions == [(7, "0", n) for n in range(6)]


def test_two_answers_at_a_time(model: Mllama) -> None:
    """Two generators that are read in turns yield the same tokens as each one alone."""
    alone = [answer(model, PROMPTS[name], 10)[0] for name in ("two", "none")]
    runs = []
    for name in ("two", "none"):
        usage = Usage()
        context = prefill(model, PROMPTS[name], usage, Timings())
        runs.append(decode(context, GREEDY, 0, frozenset(), 10))
    in_turns = list(zip(*runs, strict=True))
    assert [list(ids) for ids in zip(*in_turns, strict=True)] == alone


def test_emptying_the_buffers_changes_nothing(
    model: Mllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected, _ = answer(model, PROMPTS["two"], 12)
    monkeypatch.setattr(decode_module, "_CLEAR_CACHE_INTERVAL", 2)
    assert answer(model, PROMPTS["two"], 12)[0] == expected


def test_a_prompt_that_does_not_fit(model: Mllama, monkeypatch: pytest.MonkeyPatch) -> None:
    """There must be room for one token; otherwise the prompt is refused before an image is
    encoded."""
    limit = CONFIG.text.max_position_embeddings
    assert len(answer(model, prompt(words(limit - 1)), 1)[0]) == 1
    monkeypatch.setattr(Mllama, "image_features", None)
    with pytest.raises(UserError, match=f"{limit} tokens, and this model reads at most"):
        prefill(model, prompt(tiles(1), words(limit - 1)), Usage(), Timings())


def test_the_image_token_is_the_configurations() -> None:
    assert prompt(tiles(1)).token_ids == (CONFIG.image_token_id,) == (IMAGE_TOKEN_ID,)


def test_of_a_small_picture_only_its_own_tiles_are_kept(model: Mllama) -> None:
    """An image with one of two tiles takes half the K/V, for every following token."""
    context = prefill(model, prompt(words(5), tiles(1), words(4)), Usage(), Timings())
    assert context.image_kv is not None
    assert len(context.image_kv.keys) == 2  # cross-attention layers
    per_tile = CONFIG.vision.tokens_per_tile
    assert {a.shape[2] for a in (*context.image_kv.keys, *context.image_kv.values)} == {per_tile}


class Drafts(NgramDraft):
    """Drafts from a script: what is given for each number of written tokens."""

    def __init__(self, script: Callable[[int, int], list[int]]) -> None:
        super().__init__(DraftMemory(), [])
        self.written = 0
        self._script = script

    def push(self, token_id: int) -> None:
        self.written += 1

    def next_tokens(self, most: int) -> list[int]:
        return self._script(self.written, most)[:most]


SAMPLINGS = {"greedy": GREEDY, "sampled": Sampling(0.9, 0.9), "hot": Sampling(3.0, 1.0)}
COUNT = 24


@pytest.mark.parametrize("sampling", SAMPLINGS)
@pytest.mark.parametrize("right", [0, 1, 2, 3, 9])
def test_a_draft_changes_no_token(right: int, sampling: str, model: Mllama) -> None:
    """Drafts of which none, some or all tokens are right, with the picture before the text."""
    question = prompt(words(5), tiles(1), words(80, 1))

    def decoded(draft: NgramDraft | None) -> tuple[list[int], Usage]:
        usage = Usage()
        context = prefill(model, question, usage, Timings())
        run = decode(context, SAMPLINGS[sampling], 3, frozenset(), COUNT, draft)
        return list(run), usage

    plain, before = decoded(None)

    def script(written: int, most: int) -> list[int]:
        follows = plain[written : written + right]
        return [*follows, (plain[min(written + right, COUNT - 1)] + 1) % 100, 7][:most]

    ids, usage = decoded(Drafts(script))
    assert ids == plain
    assert usage.decoded_tokens == before.decoded_tokens == COUNT
    assert before.forward_passes == COUNT - 1
    assert (usage.drafted_tokens > 0, before.drafted_tokens) == (True, 0)
    assert usage.accepted_tokens >= (COUNT - 1) * right // (right + 1) - right
    # Each pass gives the tokens that it accepts, and one more.
    assert usage.forward_passes + usage.accepted_tokens == COUNT - 1


@pytest.mark.parametrize("at", range(6))
def test_a_stop_token_within_a_draft(at: int, model: Mllama) -> None:
    plain, _ = answer(model, PROMPTS["two"], COUNT)
    stop = plain[at]
    first = plain.index(stop)
    usage = Usage()
    context = prefill(model, PROMPTS["two"], usage, Timings())
    draft = Drafts(lambda written, most: plain[written : written + 5])
    assert list(decode(context, GREEDY, 0, frozenset({stop}), COUNT, draft)) == plain[: first + 1]
    assert usage.decoded_tokens == first + 1


@pytest.mark.parametrize("limit", [1, 2, 3, 7])
def test_a_draft_keeps_to_the_limit_of_tokens(limit: int, model: Mllama) -> None:
    plain, _ = answer(model, PROMPTS["two"], COUNT)
    usage = Usage()
    context = prefill(model, PROMPTS["two"], usage, Timings())
    asked: list[int] = []

    def script(written: int, most: int) -> list[int]:
        asked.append(most)
        return plain[written : written + 5]

    ids = list(decode(context, GREEDY, 0, frozenset(), limit, Drafts(script)))
    assert ids == plain[:limit]
    assert usage.decoded_tokens == limit
    assert max(asked, default=0) <= max(1, limit - 1)
    assert context.cache.length <= len(PROMPTS["two"].token_ids) + limit


def test_a_draft_never_makes_the_cache_grow(model: Mllama) -> None:
    """Or a draft could exceed the budget where its answer alone does not."""
    plain, _ = answer(model, PROMPTS["none"], 240)

    def peak(draft: NgramDraft | None) -> int:
        usage = Usage()
        context = prefill(model, PROMPTS["none"], usage, Timings())
        list(decode(context, GREEDY, 0, frozenset(), 226, draft))  # one column below 256
        return usage.kv_bytes

    assert peak(Drafts(lambda written, most: plain[written : written + 12])) == peak(None)
