"""The benchmark of the search: that its shortcuts change nothing, and that it can be resumed."""

from __future__ import annotations

import json
import random
from collections import defaultdict
from dataclasses import asdict
from pathlib import Path

import pytest

from benchmarks.search_quality import (
    Contender,
    Examiner,
    Oracle,
    Outcome,
    Outcomes,
    as_costly,
    contenders,
    read_rows,
    report,
    table,
)
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import VALIDATION, draw, questions, scene
from llavacot_mlx.plan.plan import SELF, Method
from llavacot_mlx.prompt.stages import Stage, StageRecord
from llavacot_mlx.search.node import Node


def outcome(question: int, contender: Contender, right: bool, decoded: int) -> Outcome:
    return Outcome(question, contender, right, "A", decoded, 0, 0, None)


def written(stage: Stage, text: str, ended: bool) -> Node:
    node = Node(0, None, "0", 0, 0, None, stage=stage, stage_text=f" {text} ")
    if ended:
        node.stages.append(StageRecord(stage, text, True, 1))
    return node


@pytest.mark.slow
def test_the_first_of_many_answers_are_those_of_best_of_n() -> None:
    seed = VALIDATION.seed(5)
    world = scene(seed)
    asked = questions(world, random.Random(f"rows {seed}"))[0]
    wanted = contenders([Method.SAMPLE, Method.BEST_OF_N, Method.MAJORITY], [SELF], 4)
    found = {one.contender: one for one in Examiner(model_path()).outcomes(VALIDATION, 5, wanted)}
    assert list(found) == [*dict.fromkeys(found)]
    assert set(found) == set(wanted)
    assistant = Assistant.load(model_path(), dtype="float32")
    for method, judge, count in (("sample", "", 1), ("best-of-n", SELF, 3), ("majority", "", 3)):
        trace = assistant.ask(
            draw(world),
            asked.text,
            search=method,
            candidates=count,
            judge=judge or None,
            max_tokens=320,
        )
        mine = found[Contender(method, judge, count)]
        assert mine.answer == trace.answer
        assert mine.decoded == trace.usage.decoded_tokens
        assert mine.judge_tokens == trace.usage.judge_tokens


def test_the_oracle_knows_what_is_right_so_far() -> None:
    seed = VALIDATION.seed(0)
    asked = questions(scene(seed), random.Random(f"rows {seed}"))[0]
    truth = asked.stage_text(Stage.CAPTION)
    nodes = [
        written(Stage.CAPTION, truth, ended=True),
        written(Stage.CAPTION, truth[:20], ended=False),
        written(Stage.CAPTION, truth[:20], ended=True),
        written(Stage.CAPTION, "Nothing.", ended=False),
    ]
    assert Oracle(asked).scores(nodes) == [1.0, 1.0, 0.0, 0.0]


def test_a_stopped_run_goes_on_behind_its_last_whole_row(tmp_path: Path) -> None:
    whole = outcome(7, Contender("swires", SELF, 4), True, 400)
    line = json.dumps(asdict(whole))
    (tmp_path / "rows.jsonl").write_text(f"{line}\n{line[:30]}")
    assert read_rows(tmp_path / "rows.jsonl") == {whole.contender: {7: whole}}
    assert read_rows(tmp_path / "none.jsonl") == {}


def test_best_of_n_gets_no_fewer_tokens_than_its_rival() -> None:
    leader = Contender("swires", SELF, 4)
    outcomes: Outcomes = defaultdict(dict)
    outcomes[leader] = {q: outcome(q, leader, True, 450) for q in range(4)}
    for count in range(2, 7):
        rival = Contender("best-of-n", SELF, count)
        outcomes[rival] = {q: outcome(q, rival, False, 110 * count) for q in range(3)}
    assert as_costly(outcomes, leader, "best-of-n", SELF).candidates == 5


def test_the_table_compares_on_shared_questions() -> None:
    greedy, swires = Contender("greedy"), Contender("swires", SELF, 4)
    outcomes: Outcomes = defaultdict(dict)
    outcomes[greedy] = {q: outcome(q, greedy, q % 2 == 0, 100) for q in range(40)}
    outcomes[swires] = {q: outcome(q, swires, True, 400) for q in range(20)}
    lines = report(outcomes)
    against = next(one for one in lines if one.contender == swires).against["greedy"]
    assert (against.wins, against.losses) == (10, 0)
    assert against.p == pytest.approx(2 / 2**10)
    assert "| swires | self | 4 | 100.0% |" in table(lines)
