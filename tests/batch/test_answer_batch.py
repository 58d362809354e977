"""Many questions at once: each answer is the one that its request has alone."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image
from random_adapter import write_adapter

from llavacot_mlx import demo
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.batch.answer_batch import AnswerBatch
from llavacot_mlx.batch.size import kv_bound
from llavacot_mlx.demo.world import TEST, draw, questions, scene
from llavacot_mlx.errors import UserError
from llavacot_mlx.generate import shared_decoder
from llavacot_mlx.model.kv_budget import KVLimits
from llavacot_mlx.model.text import TextModel
from llavacot_mlx.request import Request, make_request
from llavacot_mlx.trace.answer_events import Answered, Event
from llavacot_mlx.trace.events import StageText
from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.trace.record import Trace

LONG_QUESTION = "Look at the picture for a while. " * 60 + "How many shapes are there?"


@pytest.fixture(scope="module")
def demo_assistant() -> Assistant:
    return Assistant.load(demo.model_path(), dtype="float32")


def demo_requests(count: int, **options: object) -> list[Request]:
    """Questions of the demo world, about pictures of 2, 3 and 4 tiles."""
    made = []
    for index in range(count):
        content = scene(TEST.seed(index))
        question = questions(content, random.Random(index))[0].text
        made.append(make_request(draw(content), question, seed=index, **options))  # type: ignore[arg-type]
    return made


def essence(trace: Trace) -> dict[str, object]:
    """What must be equal: the texts, the work, and a search's tree, but for its scores."""
    search = trace.search
    return {
        "token_ids": trace.token_ids,
        "text": trace.text,
        "finish": trace.finish,
        "stages": [(stage.stage, stage.text, stage.closed) for stage in trace.stages],
        "prompt": trace.prompt_token_ids,
        # Buffers grow by other steps, and only a path that is decoded alone has drafts.
        "usage": replace(
            trace.usage, kv_bytes=0, forward_passes=0, drafted_tokens=0, accepted_tokens=0
        ),
        "nodes": [replace(node, score=None) for node in search.nodes],
        "choices": search.choices,
        "notices": search.notices,
        "asked": (trace.question, trace.image, trace.seed, trace.max_tokens, trace.kv_bits),
    }


def scores(trace: Trace) -> list[float | None]:
    return [node.score for node in trace.search.nodes]


def check_equal(one: Trace, other: Trace) -> None:
    """Scores are probabilities, of which the last digits may differ."""
    assert essence(one) == essence(other)
    assert scores(one) == pytest.approx(scores(other), abs=1e-4)


def check(assistant: Assistant, requests: list[Request], batch_size: int = 16) -> list[Trace]:
    """Answers requests together and one by one, and compares them."""
    together = dict(assistant.ask_many(requests, batch_size=batch_size))
    assert sorted(together) == list(range(len(requests)))
    traces = []
    for index, request in enumerate(requests):
        trace = together[index]
        assert isinstance(trace, Trace)
        check_equal(trace, assistant.stream(request).result())
        traces.append(trace)
    return traces


@pytest.mark.slow
@pytest.mark.parametrize("search", ["greedy", "sample"])
def test_single_paths(demo_assistant: Assistant, search: str) -> None:
    """Pictures of 2 to 4 tiles; five rows, so that rows join as others end."""
    traces = check(demo_assistant, demo_requests(9, search=search), batch_size=5)
    assert all(trace.finish is Finish.STOP for trace in traces)
    assert len({len(trace.token_ids) for trace in traces}) > 3


@pytest.mark.slow
@pytest.mark.parametrize("copied", [0, 256], ids=["shared prefixes", "copied prefixes"])
@pytest.mark.parametrize("search", ["best-of-n", "majority", "sentence-beam", "stage-beam"])
def test_searches_share_a_batch(
    demo_assistant: Assistant, search: str, copied: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shared_decoder, "_COPIED_PREFIX", copied)
    check(demo_assistant, demo_requests(3, search=search, candidates=3))


@pytest.mark.slow
def test_swires_goes_back_beside_others(demo_assistant: Assistant) -> None:
    """At this temperature some of them go back; their judge is asked beside rows in decoding."""
    traces = check(demo_assistant, demo_requests(4, search="swires", temperature=1.3))
    assert any(trace.search.retraces for trace in traces)


@pytest.mark.slow
def test_requests_of_all_kinds_share_a_batch(demo_assistant: Assistant) -> None:
    """Other searches, seeds, temperatures, limits, bits and pictures, or none, and long texts."""
    (greedy, warm, limited, small, beam, best) = demo_requests(6)
    requests = [
        greedy,
        make_request(warm.image, warm.question, temperature=1.1, top_p=0.8, seed=5),
        replace(limited, max_tokens=7),
        replace(small, limits=KVLimits(bits=8)),
        make_request(beam.image, beam.question, search="stage-beam", candidates=2, seed=3),
        make_request(best.image, best.question, search="best-of-n", limits=KVLimits(bits=4)),
        make_request(None, "How many circles are there?", max_tokens=40),
        make_request(demo.example_path("tall"), LONG_QUESTION, limits=KVLimits(bits=8)),
        make_request(demo.example_path("wide"), LONG_QUESTION, search="best-of-n", candidates=2),
    ]
    traces = check(demo_assistant, requests)
    assert [trace.finish for trace in traces].count(Finish.LENGTH) >= 1


@pytest.fixture
def picture() -> Image.Image:
    return Image.new("RGB", (50, 28), "blue")


@pytest.mark.slow
def test_a_row_that_repeats_itself_ends(assistant: Assistant, picture: Image.Image) -> None:
    """A random model writes in circles. Its row leaves; the others run to their limits."""
    requests = [
        make_request(picture, "What?", max_tokens=480),
        make_request(picture, "What?", max_tokens=480, repetition_stop=False),
        make_request(None, "And this?", max_tokens=30),
    ]
    check(assistant, requests)


@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_adapters(tiny: Path, tmp_path: Path, picture: Image.Image, kind: str) -> None:
    adapted = Assistant.load(
        tiny, adapter=write_adapter(tmp_path / "adapter", tiny, kind), dtype="float32"
    )
    requests = [
        make_request(image, f"Question {seed}?", temperature=0.6, seed=seed, max_tokens=20)
        for seed, image in enumerate([picture, picture.resize((20, 60)), None, picture])
    ]
    check(adapted, requests)


@pytest.mark.slow
@pytest.mark.parametrize("bits", [8, 4])
def test_quantized_keys_and_values(demo_assistant: Assistant, bits: int) -> None:
    """Also of long prompts, whose K/V stay quantized in a cache of their own."""
    requests = [
        make_request(image, question, max_tokens=12, limits=KVLimits(bits=bits))
        for image, question in [
            (demo.example_path("tall"), "How many shapes are there?"),
            (demo.example_path("tall"), LONG_QUESTION),
            (demo.example_path("wide"), LONG_QUESTION),
            (None, LONG_QUESTION),
            (demo.example_path("square"), "How many circles are there?"),
        ]
    ]
    check(demo_assistant, requests)


def test_a_request_that_fails_is_a_result(
    assistant: Assistant, picture: Image.Image, tmp_path: Path
) -> None:
    """Each has its one error, in whatever step it fails; the others are answered."""
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"no picture")
    good = make_request(picture, "What?", max_tokens=12)
    requests = [
        good,
        replace(good, image=broken),
        replace(good, image=tmp_path / "missing.png"),
        replace(good, question="too long " * 600),
        replace(good, limits=KVLimits(budget=1000)),
        replace(good, limits=KVLimits(bits=8)),  # the heads are too narrow
        make_request(picture, "What?", search="swires", judge="logprob"),  # not calibrated
        replace(good, question="And this?"),
    ]
    results = dict(assistant.ask_many(requests, batch_size=3))
    assert sorted(results) == list(range(len(requests)))
    messages = [
        "not a picture", "missing.png", "too long", "keys and values would take", "32 does not",
        "not calibrated",
    ]  # fmt: skip
    for index, message in enumerate(messages, start=1):
        result = results[index]
        assert isinstance(result, UserError)
        assert message in str(result)
        with pytest.raises(UserError) as alone:
            assistant.stream(requests[index]).result()
        if "would take" not in message:
            assert str(result) == str(alone.value)
    for index in (0, len(requests) - 1):
        trace = results[index]
        assert isinstance(trace, Trace)
        assert trace.token_ids == assistant.stream(requests[index]).result().token_ids


def test_requests_are_taken_as_there_is_room(assistant: Assistant, picture: Image.Image) -> None:
    """A short one that ends lets the next one join; results come in the order in which they end."""
    taken: list[int] = []

    def requests() -> Iterator[Request]:
        for index, tokens in enumerate([40, 5, 5, 5, 30]):
            taken.append(index)
            yield make_request(picture, "What?", max_tokens=tokens, repetition_stop=False)

    order = []
    for index, _ in assistant.ask_many(requests(), batch_size=2):
        order.append(index)
        # One more than fits is taken, since a request says how many rows it needs.
        assert len(taken) <= len(order) + 2 + 1
    assert order == [1, 2, 3, 0, 4]


def test_no_requests(assistant: Assistant) -> None:
    assert list(assistant.ask_many([])) == []


def test_impossible_sizes(assistant: Assistant) -> None:
    requests = [make_request(None, "What?", max_tokens=3)]
    with pytest.raises(UserError, match="the batch size must be at least 1, not 0"):
        list(assistant.ask_many(requests, batch_size=0))
    with pytest.raises(UserError, match="holds nothing"):
        list(assistant.ask_many(requests, kv_budget=0))


def rows_per_pass(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Records the number of rows of each decode pass."""
    rows: list[int] = []
    original = TextModel.__call__

    def counting(self: TextModel, ids: object, *rest: object) -> object:
        if ids.shape[1] == 1:  # type: ignore[attr-defined]
            rows.append(ids.shape[0])  # type: ignore[attr-defined]
        return original(self, ids, *rest)  # type: ignore[arg-type]

    monkeypatch.setattr(TextModel, "__call__", counting)
    return rows


def test_a_search_counts_as_many_rows_as_it_has_candidates(
    assistant: Assistant, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = rows_per_pass(monkeypatch)
    requests = [
        make_request(picture, "What?", search="best-of-n", candidates=4, max_tokens=6, seed=seed)
        for seed in range(4)
    ]
    list(assistant.ask_many(requests, batch_size=9))
    assert max(rows) == 8
    rows.clear()
    list(assistant.ask_many(requests, batch_size=2))  # one alone has room in any case
    assert max(rows) == 4


def test_all_keys_and_values_stay_within_the_budget(
    assistant: Assistant, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fewer rows at once, down to one; a request that alone exceeds it fails."""
    rows = rows_per_pass(monkeypatch)
    requests = [
        make_request(picture, "What?", max_tokens=20, seed=seed, repetition_stop=False)
        for seed in range(4)
    ]
    expected = [assistant.stream(request).result().token_ids for request in requests]
    bound = kv_bound(assistant._loaded, requests[0]).total
    most = {}
    for budget in (4 * bound, 3 * bound - 1, 2 * bound, 2 * bound - 1, bound):
        rows.clear()
        results = dict(assistant.ask_many(requests, batch_size=4, kv_budget=budget))
        assert [result.token_ids for _, result in sorted(results.items())] == expected  # type: ignore[union-attr]
        assert all(result.usage.kv_bytes <= bound for result in results.values())  # type: ignore[union-attr]
        most[budget] = max(rows)
    assert list(most.values()) == [4, 2, 2, 1, 1]
    results = dict(assistant.ask_many(requests, batch_size=4, kv_budget=1000))
    assert all("the budget is 0.00 MB" in str(result) for result in results.values())


def collect(batch: AnswerBatch) -> dict[int, list[Event | UserError]]:
    """Runs a batch to its end; returns the events by number."""
    events: dict[int, list[Event | UserError]] = {}
    while len(batch):
        for number, event in batch.step():
            events.setdefault(number, []).append(event)
    return events


def test_the_events_are_those_of_each_alone(
    demo_assistant: Assistant,
) -> None:
    requests = demo_requests(2, max_tokens=60)
    with AnswerBatch(demo_assistant._loaded, 4) as batch:
        for number, request in enumerate(requests):
            batch.add(number, request)
        events = collect(batch)
    for number, request in enumerate(requests):
        *alone, answered = demo_assistant.stream(request)
        assert events[number][:-1] == alone
        assert isinstance(answered, Answered)
        assert isinstance(events[number][-1], Answered)


def test_a_cancelled_request_leaves_at_once(
    assistant: Assistant, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its record up to then is returned; the rows of the others write what they write alone."""
    rows = rows_per_pass(monkeypatch)
    request = make_request(picture, "What?", max_tokens=40, repetition_stop=False)
    requests = [replace(request, seed=seed) for seed in range(3)]
    searching = make_request(
        picture, "What?", search="best-of-n", candidates=3, max_tokens=40, repetition_stop=False
    )
    with AnswerBatch(assistant._loaded, 16) as batch:
        for number, each in enumerate([*requests, searching]):
            batch.add(number, each)
        for _ in range(6):
            batch.step()
        assert rows[-1] == 6
        cut = batch.cancel(1)
        assert batch.cancel(3).interrupted
        assert len(batch) == 2
        rows.clear()
        batch.step()
        batch.add(7, replace(request, seed=7))
        events = collect(batch)
    assert rows[0] == 2
    assert cut.interrupted
    assert cut.finish is Finish.INTERRUPTED
    full = assistant.stream(requests[1]).result().token_ids
    assert 0 < len(cut.token_ids) < 6
    assert cut.token_ids == full[: len(cut.token_ids)]
    assert set(events) == {0, 2, 7}
    for number, each in [(0, requests[0]), (2, requests[2]), (7, replace(request, seed=7))]:
        last = events[number][-1]
        assert isinstance(last, Answered)
        assert last.trace.token_ids == assistant.stream(each).result().token_ids


def test_leaving_early_ends_all_answers(assistant: Assistant, picture: Image.Image) -> None:
    """Whoever stops iterating frees everything, and may ask again."""
    requests = [make_request(picture, "What?", max_tokens=tokens) for tokens in (3, 40, 40)]
    answers = assistant.ask_many(requests, batch_size=3)
    index, trace = next(answers)
    assert (index, type(trace)) == (0, Trace)
    answers.close()  # type: ignore[attr-defined]
    assert len(dict(assistant.ask_many(requests, batch_size=3))) == 3


def test_an_error_that_is_no_users_error_is_not_swallowed(
    assistant: Assistant, picture: Image.Image, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fails(*arguments: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(type(assistant._loaded.image_processor), "__call__", fails)
    with pytest.raises(RuntimeError, match="a bug"):
        list(assistant.ask_many([make_request(picture, "What?")], batch_size=2))


def test_stage_texts_come_while_others_are_decoded(demo_assistant: Assistant) -> None:
    """The events of a step are those of all rows, so several answers can be shown live."""
    with AnswerBatch(demo_assistant._loaded, 2) as batch:
        for number, request in enumerate(demo_requests(2)):
            batch.add(number, request)
        seen = [{number for number, event in batch.step() if isinstance(event, StageText)}
                for _ in range(30)]  # fmt: skip
    assert {0, 1} in seen


@pytest.mark.slow
@pytest.mark.parametrize("search", ["stage-beam", "greedy"])
def test_others_may_be_cancelled_in_any_step(demo_assistant: Assistant, search: str) -> None:
    """Also in the very step in which candidates end, whose paths are continued from there."""
    (request,) = demo_requests(1, search=search, candidates=2 if search == "stage-beam" else None)
    other = make_request(None, "And this?", max_tokens=400, repetition_stop=False)
    ended: list[Event | UserError] = []
    with AnswerBatch(demo_assistant._loaded, 16) as batch:

        def step() -> None:
            ended.extend(event for number, event in batch.step() if number == 0)

        batch.add(0, request)
        for number in range(1, 400):
            batch.add(number, other)
            step()
            step()
            if ended and isinstance(ended[-1], Answered):
                break
            if number > 7:
                batch.cancel(number - 7)
    assert isinstance(ended[-1], Answered)
    check_equal(ended[-1].trace, demo_assistant.stream(request).result())
