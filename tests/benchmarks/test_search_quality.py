"""The benchmark of the search: that its shortcuts change nothing, and that it can be resumed."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

from benchmarks.search_quality import (
    ORACLE,
    Contender,
    Oracle,
    Outcome,
    Outcomes,
    as_costly,
    contenders,
    load,
    read_outcomes,
    report,
    run,
    table,
)
from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import TEST, draw, scene
from llavacot_mlx.evaluate.runner import answer_seed
from llavacot_mlx.evaluate.shapes import open_shapes, world_question
from llavacot_mlx.plan.plan import LOGPROB, SELF, Method
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.search.judges.base import Candidate


def outcome(question: int, contender: Contender, right: bool, decoded: int) -> Outcome:
    return Outcome(question, contender, right, "A", decoded, 0, 0, None)


@pytest.mark.slow
def test_the_first_of_many_answers_are_those_of_best_of_n(tmp_path: Path) -> None:
    questions = open_shapes("shapes", first=5, count=1)
    wanted = contenders([Method.SAMPLE, Method.BEST_OF_N, Method.MAJORITY], [SELF], 4)
    assert wanted == [Contender(Method.BEST_OF_N, SELF, 4)]
    folder = run(wanted[0], tmp_path, model_path(), questions)
    outcomes = read_outcomes([(wanted[0], folder)])
    assert set(outcomes) == {
        Contender(Method.SAMPLE),
        *(Contender(Method.BEST_OF_N, SELF, count) for count in (2, 3, 4)),
        *(Contender(Method.MAJORITY, "", count) for count in (2, 3, 4)),
    }
    (question,) = questions.questions
    assistant = load(model_path(), [5])
    for method, judge, count in (("sample", "", 1), ("best-of-n", SELF, 3), ("majority", "", 3)):
        trace = assistant.ask(
            draw(scene(TEST.seed(5))),
            question.prompt,
            search=method,
            candidates=count,
            judge=judge or None,
            max_tokens=320,
            seed=answer_seed(0, question, 0),
        )
        mine = outcomes[Contender(method, judge, count)][5]
        assert mine.answer == trace.answer
        assert mine.decoded == trace.usage.decoded_tokens
        assert mine.judge_tokens == trace.usage.judge_tokens
    before = (folder / "answers.jsonl").read_bytes()
    run(wanted[0], tmp_path, model_path(), questions)  # which has nothing left to ask
    assert (folder / "answers.jsonl").read_bytes() == before


def test_the_oracle_knows_what_is_right_so_far() -> None:
    asked = world_question(TEST, 0)
    assert asked is not None
    truth = asked.stage_text(Stage.CAPTION)

    def written(text: str, ended: bool) -> Candidate:
        end = f" {Stage.CAPTION.closing}" if ended else ""
        return Candidate(Stage.CAPTION, f" {text} ", f"{Stage.CAPTION.opening} {text}{end}\n\n")

    candidates = [
        written(truth, ended=True),
        written(truth[:20], ended=False),
        written(truth[:20], ended=True),
        written("Nothing.", ended=False),
    ]
    image = draw(scene(TEST.seed(0)))
    assert Oracle([0, 1]).scores(image, asked.text, candidates) == [1.0, 1.0, 0.0, 0.0]


def test_whole_answers_are_decoded_once_a_judge() -> None:
    found = contenders(list(Method), [SELF, LOGPROB, ORACLE], 10)
    whole = [each for each in found if each.method in (Method.SAMPLE, Method.MAJORITY)]
    assert whole == []
    assert sum(each.method == Method.BEST_OF_N for each in found) == 3
    assert found[0] == Contender(Method.GREEDY)


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
