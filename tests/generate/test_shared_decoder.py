"""Paths of different prompts decoded together: each writes what it writes alone."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace

import mlx.core as mx
import numpy as np
import pytest
from random_model import CONFIG, prompt, tiles, words

from llavacot_mlx.errors import UserError
from llavacot_mlx.generate import shared_decoder
from llavacot_mlx.generate.batch_decode import Ended, decode_batch
from llavacot_mlx.generate.decode import decode
from llavacot_mlx.generate.decode_state import CandidateStart
from llavacot_mlx.generate.prefill import PrefilledPrompt, prefill
from llavacot_mlx.generate.prefill_together import PrefillJob, prefill_together
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.generate.shared_decoder import SharedDecoder
from llavacot_mlx.generate.waiting import Waiting
from llavacot_mlx.model import images_by_row
from llavacot_mlx.model.kernels import GPU, kernels, use
from llavacot_mlx.model.kv_budget import KVBudget, KVLimits
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.model.quantized_kv import KV, dequantized
from llavacot_mlx.model.text import TextModel
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.usage import Timings, Usage

GREEDY, WARM = Sampling(), Sampling(temperature=0.6, top_p=0.9)
# Pictures of one tile and of two, in different places, and none; texts of different lengths.
PROMPTS = {
    "one tile": prompt(words(4), tiles(1), words(9, 1)),
    "two tiles": prompt(words(4), tiles(2, 1), words(15, 2)),
    "two tiles as well": prompt(words(4), tiles(2, 2), words(5, 3)),
    "another place": prompt(words(30, 4), tiles(1, 3), words(6, 5)),
    "picture first": prompt(tiles(2, 4), words(9, 6)),
    "two pictures": prompt(words(4), tiles(1, 5), words(8, 7), tiles(2, 6), words(7, 8)),
    "none": prompt(words(20, 9)),
    "none, long": prompt(words(90, 10)),
}
SEEDS = {name: number for number, name in enumerate(PROMPTS)}
LIMITS = {name: 6 + 5 * number for number, name in enumerate(PROMPTS)}
FUSED = replace(GPU, compiled_activations=False)  # that needs a compiler


def alone(model: Mllama, name: str, sampling: Sampling) -> list[int]:
    context = prefill(model, PROMPTS[name], Usage(), Timings())
    return [int(x) for x in decode(context, sampling, SEEDS[name], frozenset(), LIMITS[name])]  # type: ignore[arg-type]


class Path:
    """One prompt's answer on a shared decoder; `tokens` grows as it is advanced."""

    def __init__(
        self,
        decoder: SharedDecoder,
        name: str,
        sampling: Sampling,
        max_tokens: int | None = None,
        budget: int | None = None,
    ) -> None:
        self.usage, self.tokens = Usage(), list[int]()
        self.error: UserError | None = None
        self._events = self._run(
            decoder, name, sampling, max_tokens or LIMITS[name], KVLimits(budget=budget)
        )
        self.is_done = False

    def _run(
        self,
        decoder: SharedDecoder,
        name: str,
        sampling: Sampling,
        max_tokens: int,
        limits: KVLimits,
    ) -> Iterator[int | Waiting]:
        context = yield from decoder.prefill(
            PROMPTS[name], self.usage, Timings(), KVBudget(self.usage, limits)
        )
        yield from decode(context, sampling, SEEDS[name], frozenset(), max_tokens)

    def advance(self) -> None:
        try:
            for event in self._events:
                if isinstance(event, Waiting):
                    return
                self.tokens.append(event)
        except UserError as error:
            self.error = error
        self.is_done = True

    def stop(self) -> None:
        self._events.close()  # type: ignore[attr-defined]
        self.is_done = True


def run(
    decoder: SharedDecoder, paths: Mapping[str, Path], after: Callable[[], None] = lambda: None
) -> dict[str, list[int]]:
    """Runs all paths to their ends; calls `after` after each step."""
    while True:
        for path in paths.values():
            if not path.is_done:
                path.advance()
        if all(path.is_done for path in paths.values()):
            return {name: path.tokens for name, path in paths.items()}
        decoder.step()
        after()


@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "each image"])
@pytest.mark.parametrize("fused", [False, True], ids=["CPU", "fused"])
@pytest.mark.parametrize("sampling", [GREEDY, WARM], ids=["greedy", "warm"])
def test_each_row_writes_what_it_writes_alone(
    model: Mllama,
    sampling: Sampling,
    fused: bool,
    stacked: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Whatever the pictures, the lengths and the ends, and whichever way K/V are attended to."""
    if not stacked:
        monkeypatch.setattr(images_by_row, "STACKED_BYTES", 0)
    expected = {name: alone(model, name, sampling) for name in PROMPTS}
    with use(FUSED if fused else kernels()):
        decoder = SharedDecoder(model)
        paths = {name: Path(decoder, name, sampling) for name in PROMPTS}
        assert run(decoder, paths) == expected
    assert len({tuple(ids[:6]) for ids in expected.values()}) == len(PROMPTS)  # they do differ
    for name, path in paths.items():
        assert path.usage.decoded_tokens == LIMITS[name]
        assert path.usage.prefilled_tokens == len(PROMPTS[name].token_ids)
        assert path.usage.images_encoded == len(PROMPTS[name].images)


def test_rows_with_different_sampling_share_a_batch(model: Mllama) -> None:
    decoder = SharedDecoder(model)
    samplings = dict(zip(PROMPTS, [GREEDY, WARM, Sampling(1.2, 0.5)] * 3, strict=False))
    paths = {name: Path(decoder, name, sampling) for name, sampling in samplings.items()}
    expected = {name: alone(model, name, sampling) for name, sampling in samplings.items()}
    assert run(decoder, paths) == expected


def test_rows_join_while_others_are_decoded(model: Mllama) -> None:
    """One joins after every tenth step; those that ended have left room for it."""
    decoder = SharedDecoder(model)
    later = [name for name in PROMPTS if name != "none, long"]
    paths = {"none, long": Path(decoder, "none, long", WARM)}
    steps, most = 0, 0

    def join() -> None:
        nonlocal steps, most
        steps += 1
        most = max(most, decoder.rows)
        if steps % 10 == 0 and later:
            name = later.pop()
            paths[name] = Path(decoder, name, WARM)

    assert run(decoder, paths, join) == {name: alone(model, name, WARM) for name in paths}
    assert len(paths) == len(PROMPTS)
    assert 1 < most < len(PROMPTS)
    assert decoder.rows == 0


def test_one_forward_pass_for_all_rows(model: Mllama, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many decode passes as the longest answer has tokens, and a prefill for each layout."""
    passes: list[tuple[int, ...]] = []
    original = TextModel.__call__

    def counting(self: TextModel, ids: mx.array, *rest: object) -> mx.array:
        passes.append(ids.shape)
        return original(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TextModel, "__call__", counting)
    decoder = SharedDecoder(model)
    run(decoder, {name: Path(decoder, name, GREEDY) for name in PROMPTS})
    decodes = [shape for shape in passes if shape[1] == 1]
    assert len(decodes) == max(LIMITS.values())
    assert sum(rows for rows, _ in decodes) == sum(LIMITS.values())
    # Three prompts have their one picture at position 4, and two have none.
    assert sorted(rows for rows, tokens in passes if tokens > 1) == [1, 1, 1, 2, 3]


def test_a_stopped_row_leaves_at_once(model: Mllama) -> None:
    """Its K/V are freed, and the other rows do not notice."""
    decoder = SharedDecoder(model)
    names = ["none, long", "two tiles", "one tile"]
    paths = {name: Path(decoder, name, WARM) for name in names}
    steps = 0

    def stop() -> None:
        nonlocal steps
        steps += 1
        if steps == 4:
            gc.collect()
            before = mx.get_active_memory()
            paths["none, long"].stop()
            decoder.settle()
            assert decoder.rows == 2
            # 94 tokens were in its row of the buffer, and pushed the others to the right.
            assert before - mx.get_active_memory() > 2 * 2 * 2 * 8 * 4 * 94

    run(decoder, paths, stop)
    assert len(paths["none, long"].tokens) == 2  # one step read the prompts
    for name in names[1:]:
        assert paths[name].tokens == alone(model, name, WARM)


@pytest.mark.parametrize("copied", [0, 256], ids=["shared prefix", "copied prefix"])
def test_the_state_of_an_ended_candidate_when_a_row_before_it_left(
    model: Mllama, copied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its path and its logits are those after its own last token."""
    monkeypatch.setattr(shared_decoder, "_COPIED_PREFIX", copied)

    def ended(decoder: SharedDecoder | None, before_last: Callable[[], None]) -> list[Ended]:
        context = prefill(model, PROMPTS["one tile"], Usage(), Timings(), decoder=decoder)
        state = context.state()
        starts = [CandidateStart(state, key, 3) for key in "012"]
        found, steps = [], 0
        for event in decode_batch(context, starts, WARM, 3, lambda _: False):
            if isinstance(event, Waiting):
                assert decoder is not None
                decoder.step()
                steps += 1
                if steps == 3:
                    before_last()
            elif isinstance(event, Ended):
                found.append(event)
        return found

    decoder = SharedDecoder(model)
    paths = [Path(decoder, name, WARM) for name in ("none, long", "two tiles")]
    for _ in range(2):
        for path in paths:
            path.advance()
        decoder.step()

    def leave() -> None:
        paths[0].stop()
        decoder.settle()

    together, alone = ended(decoder, leave), ended(None, leave)
    assert [each.candidate for each in together] == [each.candidate for each in alone] == [0, 1, 2]
    for one, other in zip(together, alone, strict=True):
        assert one.state.path.length == other.state.path.length
        np.testing.assert_allclose(
            np.array(one.state.logits), np.array(other.state.logits), rtol=1e-3, atol=1e-4
        )
        for ours, theirs in zip(
            one.state.path.segments[-1].keys, other.state.path.segments[-1].keys, strict=True
        ):
            np.testing.assert_allclose(dense(ours), dense(theirs), rtol=1e-3, atol=1e-4)


def dense(kv: KV) -> np.ndarray:
    return np.array(dequantized(kv))


def test_a_row_stopped_before_its_prompt_was_read(model: Mllama) -> None:
    decoder = SharedDecoder(model)
    paths = {name: Path(decoder, name, GREEDY) for name in ("one tile", "none")}
    paths["one tile"].advance()
    paths["one tile"].stop()
    assert run(decoder, paths) == {"one tile": [], "none": alone(model, "none", GREEDY)}
    assert paths["one tile"].usage.prefilled_tokens == 0


@pytest.mark.parametrize(("budget", "tokens"), [(1, 0), (6_000, 0), (12_000, 0), (30_000, 44)])
def test_a_row_beyond_its_budget_ends_alone(model: Mllama, budget: int, tokens: int) -> None:
    """Its error is its own: for its picture, its prompt, its first tokens, or when they grow.

    A token is 256 bytes here, the picture 2,560 and the prompt 5,120; a row grows by 64 tokens.
    """
    decoder = SharedDecoder(model)
    paths = {name: Path(decoder, name, GREEDY) for name in ("one tile", "none")}
    paths["two tiles"] = Path(decoder, "two tiles", GREEDY, max_tokens=99, budget=budget)
    run(decoder, paths)
    assert str(paths["two tiles"].error).startswith("keys and values would take")
    assert len(paths["two tiles"].tokens) == tokens
    assert paths["two tiles"].usage.kv_bytes <= budget
    for name in ("one tile", "none"):
        assert paths[name].tokens == alone(model, name, GREEDY)


def test_a_prompt_that_is_too_long_fails_alone(model: Mllama) -> None:
    decoder = SharedDecoder(model)
    longer = prompt(words(CONFIG.text.max_position_embeddings))
    jobs = [
        PrefillJob(each, Usage(), Timings(), KVBudget(Usage()))
        for each in (PROMPTS["none"], longer, PROMPTS["none, long"])
    ]
    prefill_together(model, jobs, decoder)
    assert isinstance(jobs[1].result, UserError)
    assert "the question is too long" in str(jobs[1].result)
    assert all(isinstance(job.result, PrefilledPrompt) for job in (jobs[0], jobs[2]))


def test_prompts_read_together_have_the_logits_of_each_alone(model: Mllama) -> None:
    decoder = SharedDecoder(model)
    jobs = {
        name: PrefillJob(each, Usage(), Timings(), KVBudget(Usage()))
        for name, each in PROMPTS.items()
    }
    prefill_together(model, list(jobs.values()), decoder)
    for name, job in jobs.items():
        assert isinstance(job.result, PrefilledPrompt)
        expected = np.array(prefill(model, PROMPTS[name], Usage(), Timings()).logits)
        assert np.abs(np.array(job.result.logits) - expected).max() < 1e-4 * np.abs(expected).max()
        assert job.result.state().path.length == len(PROMPTS[name].token_ids)


def test_a_pass_reads_a_bounded_number_of_tokens(
    model: Mllama, monkeypatch: pytest.MonkeyPatch
) -> None:
    sizes: list[int] = []
    original = TextModel.__call__

    def counting(self: TextModel, ids: mx.array, *rest: object) -> mx.array:
        sizes.append(ids.size)
        return original(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TextModel, "__call__", counting)
    prompts = [Prompt(tuple(words(600, seed)), ()) for seed in range(5)]
    jobs = [PrefillJob(each, Usage(), Timings(), KVBudget(Usage())) for each in prompts]
    prefill_together(model, jobs, SharedDecoder(model))
    assert sorted(sizes) == [2 * 600, 3 * 600]
