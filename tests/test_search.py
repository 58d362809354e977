"""The search over stages, on the demo model, which writes real ones."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence

import pytest

from llavacot_mlx import demo
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.cache import VisionMemory
from llavacot_mlx.candidates import Ready
from llavacot_mlx.decode import prefill
from llavacot_mlx.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    Retraced,
)
from llavacot_mlx.judges.majority import MajorityJudge
from llavacot_mlx.kv_meter import KVMeter
from llavacot_mlx.pictures import open_picture
from llavacot_mlx.plans import Method, Plan, Settings, plan_of
from llavacot_mlx.prompt import Prompt
from llavacot_mlx.sampling import Sampling
from llavacot_mlx.search import Engine, Node, Search, best
from llavacot_mlx.stages import Stage
from llavacot_mlx.tokenizer import Turn
from llavacot_mlx.trace import StageRecord, Timings, Trace, Usage

QUESTION = "How many red shapes are there?"
WARM = Sampling(temperature=1.2, top_p=1.0)
HOT = Sampling(temperature=2.5, top_p=1.0)  # so that even a model as sure as this one wavers
SEARCHES = [method for method in Method if method not in (Method.GREEDY, Method.SAMPLE)]


@pytest.fixture(scope="module")
def assistant() -> Assistant:
    return Assistant.load(demo.model_path(), dtype="float32")


def planned(method: Method, sampling: Sampling, candidates: int | None) -> Plan:
    plan = plan_of(Settings(method, candidates))
    return dataclasses.replace(plan, sampling=sampling)


class ScoreByNumber:
    """Likes later candidates better, and none enough for a threshold above 1000."""

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        return [float(node.id) for node in nodes]


class NoVerdict:
    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        return [None for _ in nodes]


@functools.cache  # nothing in it is ever written to, so all searches may begin from one
def read_prompt(assistant: Assistant) -> tuple[VisionMemory | None, Ready]:
    loaded = assistant._loaded
    ids = loaded.tokenizer.prompt([Turn("user", QUESTION, images=1)])
    picture = loaded.cutter.cut(open_picture(demo.example_path()))
    context = prefill(loaded.model, Prompt(tuple(ids), (picture,)), Usage(), Timings())
    return context.memory, context.ready()


def search(
    assistant: Assistant,
    plan: Plan,
    judge: object = None,
    seed: int = 0,
    max_tokens: int = 400,
    budget: int | None = None,
) -> tuple[Search, Usage, list[object]]:
    """A search through the engine itself, whatever the plan."""
    usage, loaded = Usage(), assistant._loaded
    memory, ready = read_prompt(assistant)
    meter = KVMeter(usage, budget)
    engine = Engine(loaded.model, loaded.tokenizer, memory, usage, Timings(), meter)
    if plan.retrace is not None and plan.retrace.threshold is None:
        plan = dataclasses.replace(plan, retrace=dataclasses.replace(plan.retrace, threshold=0.5))
    chooser = judge or ScoreByNumber()
    judges = dict.fromkeys(plan.judges, chooser)
    found = Search(engine, plan, judges, seed, max_tokens)  # type: ignore[arg-type]
    return found, usage, list(found.run(ready))


@pytest.fixture(scope="module")
def greedy(assistant: Assistant) -> Trace:
    return assistant.ask(demo.example_path(), QUESTION)


@pytest.mark.parametrize("method", list(Method))
def test_one_candidate_without_chance_is_greedy(
    method: Method, assistant: Assistant, greedy: Trace
) -> None:
    """Token for token, through the engine and through the assistant."""
    plan = planned(method, Sampling(), 1)
    engine, usage, _ = search(assistant, plan)
    assert tuple(engine.best_ids) == greedy.token_ids
    assert usage.decoded_tokens == len(greedy.token_ids)
    assert [record.stage for record in greedy.stages] == list(Stage)
    through = assistant.ask(
        demo.example_path(), QUESTION, search=method, candidates=1, temperature=0.0
    )
    assert through.token_ids == greedy.token_ids
    assert through.search.method == method


@pytest.mark.parametrize("method", SEARCHES)
def test_usage_is_the_sum_over_the_tree(method: Method, assistant: Assistant) -> None:
    trace = assistant.ask(
        demo.example_path(), QUESTION, search=method, candidates=3, temperature=1.2, top_p=1.0
    )
    assert trace.usage.images_encoded == 1
    assert trace.usage.prefilled_tokens == len(trace.prompt_token_ids)
    assert trace.usage.decoded_tokens == sum(node.tokens for node in trace.search.nodes)
    assert trace.usage.reused_tokens > 0
    path = [node for node in trace.search.nodes if node.kept]
    assert sum(node.tokens for node in path) >= len(trace.token_ids)


def test_a_retrace_computes_nothing_again_and_forgets_nothing(assistant: Assistant) -> None:
    """Three rounds that are never good enough; all rounds' reasonings stay in the pool."""
    plan = planned(Method.SWIRES, WARM, None)
    assert plan.retrace is not None
    never = dataclasses.replace(plan, retrace=dataclasses.replace(plan.retrace, threshold=1e9))
    engine, usage, events = search(assistant, never)
    retraces = [event for event in events if isinstance(event, Retraced)]
    assert [event.round for event in retraces] == [1, 2, 3]
    assert {event.stage for event in retraces} == {Stage.CAPTION}
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


def test_good_enough_does_not_go_back(assistant: Assistant) -> None:
    plan = planned(Method.SWIRES, WARM, None)
    engine, _, events = search(assistant, plan)  # ScoreByNumber is above 0.5 from the second on
    assert not [event for event in events if isinstance(event, Retraced)]
    assert engine.retraces == 0
    assert len(engine.nodes) == 1 + 4 + 4 + 2


@pytest.mark.parametrize("method", SEARCHES)
def test_the_same_seed_gives_the_same_tree(method: Method, assistant: Assistant) -> None:
    def tree(seed: int) -> list[tuple[str, list[int]]]:
        plan = planned(method, HOT, 3)
        engine, _, _ = search(assistant, plan, seed=seed, max_tokens=48)
        return [(node.key, node.token_ids) for node in engine.nodes]

    assert tree(1) == tree(1)
    assert tree(1) != tree(2)


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
        told = [e.text for e in events if isinstance(e, CandidateText) and e.node == node.id]
        assert "".join(told) == node.text
        (ended,) = [e for e in events if isinstance(e, CandidateEnded) and e.node == node.id]
        assert ended == CandidateEnded(node.id, node.stage, node.closed, len(node.token_ids))
        (scored,) = [e for e in events if isinstance(e, CandidateScored) and e.node == node.id]
        assert scored.score == node.score
    kept = [event.nodes[0] for event in events if isinstance(event, CandidatesKept)]
    assert kept == [node.id for node in engine.nodes if node.kept]
    parents = [event.parent for event in events if isinstance(event, CandidateStarted)]
    assert parents == [None, None, *(number for number in kept[:-1] for _ in range(2))]


def test_a_stage_that_never_closes_comes_last(assistant: Assistant) -> None:
    """At the token limit candidates are cut; one that closed its stage wins over a better score."""
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
    assert [node.id for node in best(nodes, 4)] == [2, 0, 1, 3]
    assert [node.kept for node in nodes] == [True] * 4
    limited, _, _ = search(assistant, planned(Method.BEST_OF_N, WARM, 2), max_tokens=60)
    assert all(len(node.token_ids) == 60 for node in limited.nodes)
    assert all(not node.closed for node in limited.nodes)


def test_no_verdict_is_no_end(assistant: Assistant) -> None:
    engine, _, events = search(assistant, planned(Method.STAGE_BEAM, WARM, 2), NoVerdict())
    assert len([event for event in events if isinstance(event, CandidatesKept)]) == 4
    assert engine.best_ids


def test_the_self_judge_counts_its_tokens_apart(assistant: Assistant) -> None:
    trace = assistant.ask(demo.example_path(), QUESTION, search="stage-beam", judge="self")
    assert trace.usage.judge_tokens > 0
    assert all(0 < node.score < 1 for node in trace.search.nodes if node.score is not None)
    assert all(record.closed for record in trace.stages)
    assert [record.candidates for record in trace.stages] == [2, 2, 2, 2]
    kept = [node.score for node in trace.search.nodes if node.kept]
    assert [record.score for record in trace.stages] == kept


def test_the_majority_is_of_conclusions() -> None:
    """White space and case aside; a candidate without a conclusion has no vote."""

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
