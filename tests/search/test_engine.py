"""The search over stages, on the demo model, which writes real ones."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image

from llavacot_mlx import demo
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.convert.convert import convert
from llavacot_mlx.generate.decode_state import DecodeState
from llavacot_mlx.generate.prefill import prefill
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.model.config import Quantization
from llavacot_mlx.model.kv_budget import KVBudget, KVLimits
from llavacot_mlx.model.kv_cache import ImageKV
from llavacot_mlx.model.text import TextModel
from llavacot_mlx.model.vision import VisionModel
from llavacot_mlx.plan.plan import Method, Plan, Settings, Step, Unit, make_plan
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.prompt.images import open_image
from llavacot_mlx.prompt.stages import Stage, StageRecord
from llavacot_mlx.prompt.tokenizer import Turn
from llavacot_mlx.search.context import SearchContext
from llavacot_mlx.search.engine import Search, keep_best
from llavacot_mlx.search.judges.base import JudgeError
from llavacot_mlx.search.judges.majority import MajorityJudge
from llavacot_mlx.search.node import Node
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    Noticed,
    Retraced,
)
from llavacot_mlx.trace.record import Trace
from llavacot_mlx.usage import Timings, Usage

QUESTION = "Is there a small red triangle?"  # its answer is short
WARM = Sampling(temperature=1.2, top_p=1.0)
HOT = Sampling(temperature=2.5, top_p=1.0)  # so that even a model as sure as this one wavers
SEARCHES = [method for method in Method if method not in (Method.GREEDY, Method.SAMPLE)]


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant.load(demo.model_path(), dtype="float32")


def planned(method: Method, sampling: Sampling, candidates: int | None) -> Plan:
    plan = make_plan(Settings(method, candidates))
    return dataclasses.replace(plan, sampling=sampling)


class ScoreByNumber:
    """Scores later candidates higher, and none enough for a threshold above 1000."""

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        return [float(node.id) for node in nodes]


class NoVerdict:
    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        return [None for _ in nodes]


@functools.cache  # nothing in it is ever written to, so all searches may begin from one
def read_prompt(assistant: Assistant) -> tuple[ImageKV | None, DecodeState]:
    loaded = assistant._loaded
    ids = loaded.tokenizer.prompt([Turn("user", QUESTION, images=1)])
    picture = loaded.image_processor(open_image(demo.example_path()))
    context = prefill(loaded.model, Prompt(tuple(ids), (picture,)), Usage(), Timings())
    return context.image_kv, context.state()


Found = tuple[Search, Usage, list[object]]


def search(
    assistant: Assistant,
    plan: Plan,
    judge: object = None,
    seed: int = 0,
    max_tokens: int = 400,
    budget: int | None = None,
    repetition_stop: bool = True,
) -> Found:
    """Runs a search through the engine itself, with any plan."""
    usage, loaded = Usage(), assistant._loaded
    image_kv, state = read_prompt(assistant)
    context = SearchContext(
        model=loaded.model,
        image_kv=image_kv,
        usage=usage,
        kv_budget=KVBudget(usage, KVLimits(budget=budget)),
        tokenizer=loaded.tokenizer,
        timings=Timings(),
        image=None,
        question=QUESTION,
    )
    if plan.retrace is not None and plan.retrace.threshold is None:
        plan = dataclasses.replace(plan, retrace=dataclasses.replace(plan.retrace, threshold=0.5))
    chooser = judge or ScoreByNumber()
    judges = dict.fromkeys(plan.judges, chooser)
    found = Search(
        context,
        plan,
        judges,  # type: ignore[arg-type]
        seed,
        max_tokens,
        repetition_stop=repetition_stop,
    )
    return found, usage, list(found.run(state))


@pytest.fixture(scope="module")
def greedy(assistant: Assistant) -> Trace:
    return assistant.ask(demo.example_path(), QUESTION)


@pytest.mark.slow
@pytest.mark.parametrize("method", list(Method))
def test_one_candidate_without_chance_is_greedy(
    method: Method, assistant: Assistant, greedy: Trace
) -> None:
    """The engine gives the same tokens as greedy decoding."""
    plan = planned(method, Sampling(), 1)
    engine, usage, _ = search(assistant, plan)
    assert tuple(engine.best_ids) == greedy.token_ids
    assert usage.decoded_tokens == len(greedy.token_ids)
    assert [record.stage for record in greedy.stages] == list(Stage)


def test_one_candidate_without_chance_is_greedy_for_people_too(
    assistant: Assistant, greedy: Trace
) -> None:
    through = assistant.ask(
        demo.example_path(), QUESTION, search="swires", candidates=1, temperature=0.0
    )
    assert through.token_ids == greedy.token_ids
    assert through.search.method == "swires"


def test_usage_is_the_sum_over_the_tree(assistant: Assistant) -> None:
    trace = assistant.ask(
        demo.example_path(), QUESTION, search="swires", candidates=3, temperature=1.2, top_p=1.0
    )
    assert trace.usage.images_encoded == 1
    assert trace.usage.prefilled_tokens == len(trace.prompt_token_ids)
    assert trace.usage.decoded_tokens == sum(node.tokens for node in trace.search.nodes)
    # The prompt and what a candidate continues, for each but the first, which read the prompt.
    length: dict[int | None, int] = {None: len(trace.prompt_token_ids)}
    for node in trace.search.nodes:
        length[node.id] = length[node.parent] + node.tokens
    first, *others = trace.search.nodes
    assert first.parent is None
    assert trace.usage.reused_tokens == sum(length[node.parent] for node in others)
    path = [node for node in trace.search.nodes if node.kept]
    assert sum(node.tokens for node in path) == len(trace.token_ids)


@pytest.fixture(scope="module")
def random_assistant(tiny: Path) -> Assistant:
    return Assistant.load(tiny, dtype="float32")


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts the calls of the vision tower, and the positions that went through layer 0."""
    counted: Counter[str] = Counter()
    see, read = VisionModel.__call__, TextModel.__call__

    def seen(self: VisionModel, *arguments: Any) -> Any:
        counted["pictures"] += 1
        return see(self, *arguments)

    def was_read(self: TextModel, ids: Any, *arguments: Any) -> Any:
        counted["positions"] += ids.size
        return read(self, ids, *arguments)

    monkeypatch.setattr(VisionModel, "__call__", seen)
    monkeypatch.setattr(TextModel, "__call__", was_read)
    return counted


@pytest.mark.parametrize("size", [(16, 16), (16, 60), (60, 60)])
@pytest.mark.parametrize("method", SEARCHES)
def test_nothing_is_computed_twice(
    method: Method, size: tuple[int, int], random_assistant: Assistant, passes: Counter[str]
) -> None:
    """Work is counted where the model is called, and `usage` agrees, however many retraces."""
    plan = make_plan(Settings(method, 3, judge=None if method is Method.MAJORITY else "self"))
    if plan.retrace is not None:
        plan = dataclasses.replace(plan, retrace=dataclasses.replace(plan.retrace, threshold=2.0))
    picture = Image.effect_noise(size, 90).convert("RGB")
    trace = random_assistant.ask(picture, "How many?", search=plan, max_tokens=12)
    usage = trace.usage
    assert passes["pictures"] == usage.images_encoded == 1
    assert usage.prefilled_tokens == usage.prompt_tokens == len(trace.prompt_token_ids)
    assert usage.decoded_tokens == sum(node.tokens for node in trace.search.nodes)
    counted = usage.prefilled_tokens + usage.decoded_tokens + usage.judge_tokens
    assert passes["positions"] == counted


@pytest.mark.parametrize("method", SEARCHES)
def test_one_candidate_without_chance_is_greedy_on_a_random_model(
    method: Method, random_assistant: Assistant
) -> None:
    """Runs the engine, with the last step of each plan forked from one path."""
    picture = Image.effect_noise((60, 30), 90).convert("RGB")
    greedy = random_assistant.ask(picture, "How many?", max_tokens=40)
    plan = make_plan(Settings(method, 1, temperature=0.0))
    several = (*plan.steps[:-1], dataclasses.replace(plan.steps[-1], candidates=2))
    forked = dataclasses.replace(plan, steps=several, judge="logprob")
    trace = random_assistant.ask(picture, "How many?", search=forked, max_tokens=40)
    assert trace.search.nodes
    assert trace.token_ids == greedy.token_ids


@pytest.fixture(scope="module")
def never_good_enough(assistant: Assistant) -> Found:
    """A search that goes back three times, the maximum, and writes something new each time."""
    plan = planned(Method.SWIRES, Sampling(temperature=1.6, top_p=1.0), None)
    assert plan.retrace is not None
    never = dataclasses.replace(plan, retrace=dataclasses.replace(plan.retrace, threshold=1e9))
    return search(assistant, never)


@pytest.mark.slow
def test_a_retrace_computes_nothing_again_and_forgets_nothing(never_good_enough: Found) -> None:
    """Three rounds that are never good enough; all rounds' reasonings stay in the pool."""
    engine, usage, events = never_good_enough
    retraces = [event for event in events if isinstance(event, Retraced)]
    assert [event.round for event in retraces] == [1, 2, 3]
    assert {event.stage for event in retraces} == {Stage.CAPTION}
    assert {(e.after, e.rank, e.threshold) for e in retraces} == {(Stage.REASONING, 2, 1e9)}
    first = sorted(n.score for n in engine.nodes if n.step == 2 and n.round == 0 and n.score)
    assert retraces[0].score == first[-2]
    assert len(engine.nodes) == 1 + 4 * (4 + 4) + 2
    assert usage.decoded_tokens == sum(len(node.token_ids) for node in engine.nodes)
    summary = engine.nodes[0]
    captions = [node for node in engine.nodes if node.parent is summary]
    assert [node.round for node in captions] == [0] * 4 + [1] * 4 + [2] * 4 + [3] * 4
    assert len({node.key for node in engine.nodes}) == len(engine.nodes)
    # ScoreByNumber likes the last round's best, and the first round's were compared with it.
    kept = [event.nodes for event in events if isinstance(event, CandidatesKept)]
    pooled = kept[-2]
    reasonings = [node for node in engine.nodes if node.step == 2]
    highest = sorted((node.score for node in reasonings), reverse=True)  # type: ignore[type-var]
    assert [engine.nodes[number].score for number in pooled] == highest[:2]


@pytest.mark.slow
def test_a_pool_prefers_what_an_earlier_round_did_better(assistant: Assistant) -> None:
    """Scores fall from round to round, so the first round's reasonings win in the end."""

    class Falling:
        def scores(self, nodes: Sequence[Node]) -> list[float | None]:
            return [-float(node.round) for node in nodes]

    plan = planned(Method.SWIRES, WARM, 2)
    assert plan.retrace is not None
    never = dataclasses.replace(plan, retrace=dataclasses.replace(plan.retrace, threshold=1e9))
    engine, _, events = search(assistant, never, Falling())
    kept = [event.nodes for event in events if isinstance(event, CandidatesKept)]
    rounds = {node.id: node.round for node in engine.nodes}
    assert [rounds[node] for node in kept[-2]] == [0]


@pytest.mark.parametrize(
    ("sampling", "retraces"),
    [
        (Sampling(temperature=0.01, top_p=1.0), 1),  # as good as never anything else
        (Sampling(temperature=0.0, top_p=1.0), 0),
    ],
)
def test_a_search_that_learns_nothing_new_stops(
    sampling: Sampling, retraces: int, assistant: Assistant
) -> None:
    """One more round shows that nothing else comes; without sampling, it need not be tried."""
    plan = planned(Method.SWIRES, sampling, None)
    assert plan.retrace is not None
    never = dataclasses.replace(plan, retrace=dataclasses.replace(plan.retrace, threshold=1e9))
    engine, _, events = search(assistant, never)
    assert [event.round for event in events if isinstance(event, Retraced)] == [1][:retraces]
    assert engine.retraces == retraces
    (notice,) = [
        event.text
        for event in events
        if isinstance(event, Noticed) and event.text.startswith("all candidates alike:")
    ]
    assert "--temperature" in notice
    assert "greedy" in notice
    assert notice in engine.record().notices
    assert [record.stage for record in engine.best_stages] == list(Stage)
    greedy = assistant.ask(demo.example_path(), QUESTION)
    assert tuple(engine.best_ids) == greedy.token_ids


def test_a_round_with_one_new_candidate_goes_on(assistant: Assistant) -> None:
    """What was there before may come again beside something new."""
    plan = planned(Method.SWIRES, Sampling(temperature=1.35, top_p=1.0), 2)
    assert plan.retrace is not None
    never = dataclasses.replace(plan, retrace=dataclasses.replace(plan.retrace, threshold=1e9))
    mixed = 0
    for seed in range(4):
        engine, _, _ = search(assistant, never, seed=seed)
        paths = [
            {tuple(n.path_ids) for n in engine.nodes if n.step == 2 and n.round == number}
            for number in range(engine.retraces + 1)
        ]
        news = [bool(new - set().union(*paths[:at])) for at, new in enumerate(paths)]
        mixed += sum(bool(new & set().union(*paths[:at])) for at, new in enumerate(paths[:-1]))
        assert all(news[:-1])  # gone back only after something new
        assert engine.retraces == 3 or not news[-1]
    assert mixed


def test_good_enough_does_not_go_back(assistant: Assistant) -> None:
    plan = planned(Method.SWIRES, WARM, None)
    engine, _, events = search(assistant, plan)  # ScoreByNumber is above 0.5 from the second on
    assert not [event for event in events if isinstance(event, Retraced)]
    assert engine.retraces == 0
    assert len(engine.nodes) == 1 + 4 + 4 + 2


@pytest.mark.slow
@pytest.mark.parametrize("method", SEARCHES)
def test_the_same_seed_gives_the_same_tree(method: Method, assistant: Assistant) -> None:
    def tree(seed: int) -> list[tuple[str, list[int]]]:
        plan = planned(method, HOT, 3)
        engine, _, _ = search(assistant, plan, seed=seed, max_tokens=48)
        return [(node.key, node.token_ids) for node in engine.nodes]

    assert tree(1) == tree(1)
    assert tree(1) != tree(2)


@pytest.mark.slow
def test_more_candidates_leave_the_first_ones_as_they_are(assistant: Assistant) -> None:
    few, _, _ = search(assistant, planned(Method.BEST_OF_N, WARM, 2))
    many, _, _ = search(assistant, planned(Method.BEST_OF_N, WARM, 6))
    assert [node.token_ids for node in few.nodes] == [node.token_ids for node in many.nodes[:2]]


def test_the_events_tell_the_whole_tree(assistant: Assistant) -> None:
    engine, _, events = search(assistant, planned(Method.STAGE_BEAM, WARM, 2))
    assert [e.node for e in events if isinstance(e, CandidateStarted)] == list(range(8))
    assert [e.stage for e in events if isinstance(e, CandidateStarted)] == [
        stage for stage in Stage for _ in range(2)
    ]
    for node in engine.nodes:
        texts = [e.text for e in events if isinstance(e, CandidateText) and e.node == node.id]
        assert "".join(texts) == node.text
        (ended,) = [e for e in events if isinstance(e, CandidateEnded) and e.node == node.id]
        assert ended == CandidateEnded(
            node.id, node.stage, node.closed, len(node.token_ids), node.finish
        )
        (scored,) = [e for e in events if isinstance(e, CandidateScored) and e.node == node.id]
        assert scored.score == node.score
    kept = [event.nodes[0] for event in events if isinstance(event, CandidatesKept)]
    assert kept == [node.id for node in engine.nodes if node.kept]
    parents = [event.parent for event in events if isinstance(event, CandidateStarted)]
    assert parents == [None, None, *(number for number in kept[:-1] for _ in range(2))]


def test_a_stage_that_never_closes_comes_last(assistant: Assistant) -> None:
    """Candidates are cut off at the token limit; one that closed its stage ranks above them."""
    stages = (
        [StageRecord(Stage.CONCLUSION, "2", closed=True, tokens=9)],
        [StageRecord(Stage.REASONING, "1, 2, 3", closed=False, tokens=9)],
        [StageRecord(Stage.CONCLUSION, "3", closed=True, tokens=9)],
        [],
    )
    scores = (0.1, 0.9, 0.4, 0.8)
    nodes = [
        Node(
            number,
            None,
            str(number),
            0,
            0,
            None,
            stages=done,
            closed=bool(done) and done[-1].closed,
            score=score,
        )
        for number, (done, score) in enumerate(zip(stages, scores, strict=True))
    ]
    assert [node.id for node in keep_best(nodes, 4)] == [2, 0, 1, 3]
    assert [node.kept for node in nodes] == [True] * 4
    limited, _, _ = search(assistant, planned(Method.BEST_OF_N, WARM, 2), max_tokens=60)
    assert [(len(node.token_ids), node.closed) for node in limited.nodes] == [(60, False)] * 2


def test_a_candidate_that_goes_round_in_a_circle_loses(assistant: Assistant) -> None:
    """Whatever its score, and also to one that was cut off."""
    done = [StageRecord(Stage.CAPTION, "x", closed=True, tokens=1)]
    nodes = [
        Node(
            number,
            None,
            str(number),
            0,
            0,
            None,
            stages=done,
            closed=closed,
            score=score,
            repeats=repeats,
        )
        for number, (closed, score, repeats) in enumerate(
            [(True, 0.9, True), (False, 0.1, False), (True, 0.5, False), (True, None, False)]
        )
    ]
    assert [node.id for node in keep_best(nodes, 4)] == [2, 3, 1, 0]


def test_a_looping_candidate_makes_the_search_go_back(
    assistant: Assistant, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No score makes it good enough, and the reason says so."""
    monkeypatch.setattr(
        "llavacot_mlx.search.engine.RepetitionDetector",
        lambda: SimpleNamespace(push=lambda token_id: None, repeating=True),
    )
    plan = planned(Method.SWIRES, WARM, 2)
    assert plan.retrace is not None
    plan = dataclasses.replace(
        plan, retrace=dataclasses.replace(plan.retrace, threshold=-1.0, max_retraces=1)
    )
    engine, _, events = search(assistant, plan, repetition_stop=False)
    (back,) = [event for event in events if isinstance(event, Retraced)]
    assert back.cut_off
    assert engine.retraces == 1


def test_no_verdict_is_no_end(assistant: Assistant) -> None:
    engine, _, events = search(assistant, planned(Method.STAGE_BEAM, WARM, 2), NoVerdict())
    assert len([event for event in events if isinstance(event, CandidatesKept)]) == 4
    assert [record.stage for record in engine.best_stages] == list(Stage)


def test_the_self_judge_counts_its_tokens_apart(assistant: Assistant) -> None:
    trace = assistant.ask(demo.example_path(), QUESTION, search="stage-beam", judge="self")
    assert trace.usage.judge_tokens > 0
    scores = [node.score for node in trace.search.nodes]
    assert len(scores) == 8
    assert all(score is not None and 0 < score < 1 for score in scores)
    assert all(record.closed for record in trace.stages)
    assert [record.candidates for record in trace.stages] == [2, 2, 2, 2]
    kept = [node.score for node in trace.search.nodes if node.kept]
    assert [record.score for record in trace.stages] == kept


def test_the_majority_is_of_conclusions() -> None:
    """Conclusions are compared without case and white space; a candidate without one has no
    vote."""

    def node(number: int, conclusion: str | None) -> Node:
        stages = (
            []
            if conclusion is None
            else [StageRecord(Stage.CONCLUSION, conclusion, closed=True, tokens=1)]
        )
        return Node(number, None, str(number), 0, 0, None, stages=stages)

    answers = ["Two  shapes", "two shapes", None, "three"]
    nodes = [node(number, answer) for number, answer in enumerate(answers)]
    assert MajorityJudge().scores(nodes) == [0.5, 0.5, None, 0.25]


def test_a_quantized_model_is_searched(quantizable: Path, tmp_path: Path) -> None:
    """Candidates decoded together write what each writes alone, over weights in 4 bits."""
    convert(quantizable, tmp_path / "few", quantization=Quantization(32, 4))
    assistant = Assistant.load(tmp_path / "few", dtype="float32")
    picture = Image.effect_noise((60, 30), 90).convert("RGB")
    plan = make_plan(Settings("best-of-n", 8, judge="logprob"))
    trace = assistant.ask(picture, "How many?", search=plan, max_tokens=20)
    alone = make_plan(Settings("best-of-n", 2, judge="logprob"))
    two = assistant.ask(picture, "How many?", search=alone, max_tokens=20)
    texts = [node.text for node in trace.search.nodes]
    assert texts[:2] == [node.text for node in two.search.nodes]
    assert len(set(texts)) > 2


@pytest.mark.slow
def test_a_trace_is_replayed(assistant: Assistant) -> None:
    """A trace is replayed from its file: the same tokens, and the same tree."""
    plan = make_plan(
        Settings("swires", 3, temperature=1.3, top_p=1.0, threshold=1.0, max_retraces=1)
    )
    picture = demo.example_path()
    first = assistant.ask(picture, QUESTION, search=plan, seed=5, max_tokens=150)
    kept = Trace.from_dict(json.loads(json.dumps(first.to_dict_with_log())))
    again = assistant.replay(kept, picture)
    assert again.token_ids == first.token_ids
    assert again.search == first.search


# --- What goes wrong. ---


class Broken:
    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        raise JudgeError("judge broken failed: it was tired")


class NoNumber:
    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        return [float("nan"), *(float(node.id) for node in nodes[1:])]


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (Broken(), "judge broken failed: it was tired; the search continues without its scores"),
        (NoNumber(), "gave a score that is not a number; it counts as no verdict"),
    ],
)
def test_a_judge_that_fails_is_told_once_and_the_search_goes_on(
    assistant: Assistant, judge: object, said: str
) -> None:
    engine, _, events = search(assistant, planned(Method.STAGE_BEAM, WARM, 3), judge)
    (notice,) = [event.text for event in events if isinstance(event, Noticed)]
    assert notice.endswith(said)
    assert engine.record().notices == (notice,)
    assert [node.score for node in engine.nodes[:1]] == [None]
    assert len(engine.best_stages) == 4


class Counting:
    """Records the candidates that it is asked about."""

    def __init__(self) -> None:
        self.asked: list[int] = []

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        self.asked += [node.id for node in nodes]
        return [0.25 for _ in nodes]


def test_twins_are_judged_once(assistant: Assistant) -> None:
    """The model is sure of its summary, so all four candidates are the same."""
    judge = Counting()
    plan = planned(Method.STAGE_BEAM, Sampling(0.1, 0.5), 4)
    engine, _, _ = search(assistant, plan, judge)
    assert len({tuple(node.token_ids) for node in engine.nodes[:4]}) == 1
    assert [number for number in judge.asked if number < 4] == [0]
    assert all(node.score == 0.25 for node in engine.nodes)


def test_without_chance_each_candidate_is_written_once(assistant: Assistant) -> None:
    engine, usage, events = search(assistant, planned(Method.SWIRES, Sampling(), None))
    assert len(engine.nodes) == 4
    (notice,) = [event.text for event in events if isinstance(event, Noticed)]
    assert "temperature 0" in notice
    assert usage.decoded_tokens == len(engine.best_ids)


@pytest.mark.slow
def test_what_nothing_will_follow_is_let_go(assistant: Assistant, never_good_enough: Found) -> None:
    """K/V of dropped candidates are freed, or they would add up; those of kept ones stay."""
    engine, usage, _ = never_good_enough
    assert {node.kept for node in engine.nodes if node.state is not None} == {True}
    assert engine.retraces == 3
    plan = planned(Method.SWIRES, WARM, None)
    _, once, _ = search(assistant, dataclasses.replace(plan, retrace=None))
    assert usage.kv_bytes < 1.5 * once.kv_bytes


def test_a_step_has_a_limit_of_its_own(assistant: Assistant) -> None:
    steps = (Step(Unit.STAGE), Step(Unit.STAGE, 2, max_tokens=7), Step(Unit.ANSWER, 2))
    engine, _, _ = search(assistant, Plan("short", steps, WARM, "self"))
    captions = [node for node in engine.nodes if node.step == 1]
    assert [len(node.token_ids) for node in captions] == [7, 7]
    assert not any(node.closed for node in captions)
    assert all(node.ended for node in captions)
    assert not [node for node in engine.nodes if node.step == 2]


def test_sentences_are_chosen_one_by_one(assistant: Assistant) -> None:
    """Each candidate stops at a sentence's end, is judged in the stage that it stopped in, and the
    answer is whole."""
    engine, _, _ = search(assistant, planned(Method.SENTENCE_BEAM, WARM, 2))
    kept = [node for node in engine.nodes if node.kept]
    assert "".join(node.text for node in kept) == kept[-1].answer
    assert [record.stage for record in engine.best_stages] == list(Stage)
    assert all(record.closed for record in engine.best_stages)
    assert all(node.text.rstrip().endswith((".", "!", "?")) for node in kept[:-1])
    assert {node.stage for node in kept} >= {Stage.SUMMARY, Stage.CAPTION, Stage.REASONING}
    captions = [node for node in kept if node.stage is Stage.CAPTION]
    assert captions[-1].stage_text.count(".") == len(captions) > 1
    choices = engine.record().choices
    assert [choice.kept for choice in choices] == [(node.id,) for node in kept]
    assert sorted(number for choice in choices for number in choice.nodes) == list(
        range(len(engine.nodes))
    )


def test_what_there_is_when_it_is_stopped(assistant: Assistant) -> None:
    """An interrupted search has the stages chosen so far, and is marked as interrupted."""
    answering = assistant.stream(demo.example_path(), QUESTION, search="swires", judge="self")
    assert answering.so_far().stages == ()
    chosen = 0
    for event in answering:
        chosen += isinstance(event, CandidatesKept)
        if chosen == 2:
            break
    trace = answering.so_far()
    assert trace.interrupted
    assert [record.stage for record in trace.stages] == [Stage.SUMMARY, Stage.CAPTION]
    assert trace.answer is None
    assert [choice.step for choice in trace.search.choices] == [0, 1]
    answering.close()
