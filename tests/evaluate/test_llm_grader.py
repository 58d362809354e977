"""Grading models behind a URL: what they are asked, how they fail, and what stays open."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from chat_server import chat_server

from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.benchmark_set import Task
from llavacot_mlx.evaluate.chat_client import ChatClient
from llavacot_mlx.evaluate.grade import GradedBy, grade_by_rule
from llavacot_mlx.evaluate.grade_file import GradeRow
from llavacot_mlx.evaluate.llm_grader import LLMGrader, OpenAnswer, ReplyCache
from llavacot_mlx.evaluate.option_inference import Scorer
from llavacot_mlx.evaluate.question_file import StoredQuestion

OPTIONS = {"A": "a red bus", "B": "a blue car"}


def open_answer(
    task: Task,
    text: str,
    answer: str,
    scorer: Scorer = Scorer.VLMEVAL_2024,
    number: int = 0,
    **more: Any,
) -> OpenAnswer:
    question = StoredQuestion(
        set="own",
        task=task,
        index=number,
        rotation=0,
        group=number,
        question=f"What is it in {number}?",
        prompt=f"What is it in {number}?",
        options=OPTIONS if task is Task.CHOICE else {},
        answer=answer,
        fields=more,
        picture="p",
    )
    grade = grade_by_rule(question, text, scorer)
    row = GradeRow("own", number, 0, 0, grade.by, grade.value, grade.right, scorer=str(scorer))
    return OpenAnswer(question, row, text)


def client(url: str, patience: float = 5.0) -> ChatClient:
    return ChatClient(url, "small", patience=patience, sleep=lambda seconds: None)


def integer(text: str, answer: str) -> OpenAnswer:
    more = {"question_type": "free_form", "answer_type": "integer"}
    return open_answer(Task.MATHVISTA, text, answer, **more)


@pytest.mark.parametrize(
    ("answer", "reply", "value", "right"),
    [
        (open_answer(Task.CHOICE, "the vehicle", "A"), "A", "A", True),
        (open_answer(Task.CHOICE, "the vehicle", "A"), "The output is B.", "B", False),
        (open_answer(Task.CHOICE, "the vehicle", "A"), "Z", "Z", False),
        (open_answer(Task.YES_NO, "maybe", "Yes"), "Yes", "Yes", True),
        (open_answer(Task.YES_NO, "maybe", "Yes"), "Unknown", "Unknown", False),
        (integer("about fourteen", "14"), "14", "14", True),
        (integer("15 or 14", "14"), "14.0", "14.0", False),
    ],
)
def test_an_extractor_decides_what_the_rules_leave_open(
    answer: OpenAnswer, reply: str, value: str, right: bool, tmp_path: Path
) -> None:
    with chat_server(lambda body, number: reply) as server:
        grader = LLMGrader(ReplyCache(tmp_path), extractor=client(server.url))
        (found,) = grader.resolve([answer])
    assert (found.by, found.value, found.right) == (GradedBy.LLM, value, right)
    assert found.model == f"small at {server.url}"
    (body,) = server.requests
    assert body["model"] == "small"
    assert body["temperature"] == 0
    assert answer.text in body["messages"][0]["content"]


def test_what_the_rules_decided_is_not_asked(tmp_path: Path) -> None:
    decided = [
        open_answer(Task.CHOICE, "B", "A"),
        open_answer(Task.YES_NO, "yes", "Yes"),
        integer("14", "14"),
        open_answer(Task.GRADED, "a bus", "a bus"),
    ]
    with chat_server(lambda body, number: "A") as server:
        grader = LLMGrader(ReplyCache(tmp_path), extractor=client(server.url))
        assert grader.resolve(decided) == [each.grade for each in decided]
    assert server.requests == []


def test_the_model_and_not_our_rule_decides_about_mathvista_s_numbers(tmp_path: Path) -> None:
    answer = integer("14 cm", "14")
    assert (answer.grade.by, answer.grade.right) == (GradedBy.RULE, True)
    with chat_server(lambda body, number: "41") as server:
        grader = LLMGrader(ReplyCache(tmp_path), extractor=client(server.url))
        (found,) = grader.resolve([answer])
    assert (found.by, found.right) == (GradedBy.LLM, False)


def test_mathvista_s_official_scorer_with_a_model(tmp_path: Path) -> None:
    more = {"question_type": "free_form", "answer_type": "list"}
    found = []
    with chat_server(lambda body, number: "[1, 2]") as server:
        for scorer in (Scorer.VLMEVAL_2024, Scorer.MATHVISTA_OFFICIAL):
            answer = open_answer(Task.MATHVISTA, "one and two", "[1, 2]", scorer, **more)
            grader = LLMGrader(ReplyCache(tmp_path), extractor=client(server.url))
            found += grader.resolve([answer])
    assert [grade.right for grade in found] == [False, True]


def test_nonsense_stays_unresolved_and_is_not_guessed(tmp_path: Path) -> None:
    answers = [
        open_answer(Task.CHOICE, "the vehicle", "A"),
        open_answer(Task.YES_NO, "maybe", "Yes", number=1),
        open_answer(Task.GRADED, "a bus", "a bus", number=2),
    ]
    with chat_server(lambda body, number: "I like A and B") as server:
        model = client(server.url)
        grader = LLMGrader(ReplyCache(tmp_path), extractor=model, grader=model)
        found = grader.resolve(answers)
    assert [grade.by for grade in found] == [GradedBy.NONE] * 3
    assert [grade.tries for grade in found] == [3, 5, 5]
    assert {grade.right for grade in found} == {None}
    assert [body["temperature"] for body in server.requests[3:8]] == [0, 0.5, 1, 1.5, 2]


def test_a_grader_scores_free_answers(tmp_path: Path) -> None:
    answer = open_answer(Task.GRADED, "x = -1", "-1<AND>-5")
    replies = ["very good", "1.5", "0.5", "1.0"]
    with chat_server(lambda body, number: replies[number - 1]) as server:
        grader = LLMGrader(ReplyCache(tmp_path), grader=client(server.url), grader_runs=2)
        (found,) = grader.resolve([answer])
    assert (found.by, found.score, found.tries) == (GradedBy.LLM, 0.75, 4)
    assert "| -1 <AND> -5 | x = -1 |" in server.requests[0]["messages"][0]["content"]
    assert "score" in found.to_dict()
    assert "right" not in found.to_dict()


def test_replies_are_kept_and_nothing_is_asked_twice(tmp_path: Path) -> None:
    answers = [open_answer(Task.CHOICE, f"vehicle {n}", "A", number=n) for n in range(5)]
    with chat_server(lambda body, number: "A") as server:
        for _ in range(2):
            cache = ReplyCache(tmp_path)
            grader = LLMGrader(cache, extractor=client(server.url), concurrency=3)
            assert all(grade.right for grade in grader.resolve(answers))
        assert (cache.asked, cache.found) == (0, 5)
    assert len(server.requests) == 5


def test_a_busy_server_is_waited_for_as_long_as_it_says(tmp_path: Path) -> None:
    waits: list[float] = []

    def say(body: dict[str, Any], number: int) -> str | tuple[int, dict[str, str], str]:
        if number == 1:
            return (429, {"Retry-After": "7"}, "slow down")
        return (503, {}, "") if number == 2 else "A"

    with chat_server(say) as server:
        model = ChatClient(server.url, "m", patience=60, sleep=waits.append)
        assert model.reply("p", 0.0, 5) == "A"
    assert waits == [7.0, 2.0]


@pytest.mark.parametrize(
    ("say", "said"),
    [
        (lambda body, number: (429, {"Retry-After": "600"}, ""), "HTTP 429 for 5 s"),
        (lambda body, number: (500, {}, ""), "HTTP 500 for 5 s"),
        (lambda body, number: (401, {}, '{"error": "no key"}'), "HTTP 401: "),
        (lambda body, number: (200, {}, "<html>"), "does not answer as OpenAI's chat interface"),
        (lambda body, number: (200, {}, '{"choices": []}'), "does not answer as OpenAI's"),
        (lambda body, number: (200, {}, '{"choices": [{"message": {"content": null}}]}'), "null"),
    ],
)
def test_a_server_that_does_not_work_is_one_line(say: Any, said: str, tmp_path: Path) -> None:
    answers = [open_answer(Task.CHOICE, f"vehicle {n}", "A", number=n) for n in range(9)]
    with chat_server(say) as server:
        now = [0.0]

        def sleep(seconds: float) -> None:
            now[0] += seconds

        model = ChatClient(server.url, "m", patience=5, sleep=sleep, clock=lambda: now[0])
        grader = LLMGrader(ReplyCache(tmp_path), extractor=model, concurrency=4)
        with pytest.raises(UserError, match=said) as caught:
            grader.resolve(answers)
    assert "\n" not in str(caught.value)
    assert server.url in str(caught.value)


def test_a_server_that_never_answers_or_is_not_there(tmp_path: Path) -> None:
    release = threading.Event()

    def say(body: dict[str, Any], number: int) -> str:
        release.wait(10)
        return "A"

    with chat_server(say) as server:
        model = ChatClient(server.url, "m", patience=0.2)
        began = time.monotonic()
        with pytest.raises(UserError, match="no answer for 0 s"):
            model.reply("p", 0.0, 5)
        assert time.monotonic() - began < 5
        release.set()
    with pytest.raises(UserError, match="no connection"):
        ChatClient(server.url, "m", patience=0.2).reply("p", 0.0, 5)


def test_prompts_are_asked_at_once_up_to_a_bound(tmp_path: Path) -> None:
    answers = [open_answer(Task.CHOICE, f"vehicle {n}", "A", number=n) for n in range(12)]
    together = threading.Barrier(3, timeout=5)

    def say(body: dict[str, Any], number: int) -> str:
        together.wait()  # breaks unless three are asked at once
        return "A"

    with chat_server(say) as server:
        grader = LLMGrader(ReplyCache(tmp_path), extractor=client(server.url), concurrency=3)
        grader.resolve(answers)
    assert server.at_once == 3


def test_the_key_is_sent_where_there_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "secret")
    with chat_server(lambda body, number: "A") as server:
        client(server.url).reply("p", 0.0, 5)
        monkeypatch.delenv("OPENAI_API_KEY")
        client(f"{server.url}/chat/completions").reply("p", 0.0, 5)
    assert server.keys == ["Bearer secret", None]


def test_a_line_of_the_cache_that_was_cut_off_is_forgotten(tmp_path: Path) -> None:
    answers = [open_answer(Task.CHOICE, f"vehicle {n}", "A", number=n) for n in range(2)]
    with chat_server(lambda body, number: "A") as server:
        LLMGrader(ReplyCache(tmp_path), extractor=client(server.url)).resolve(answers)
        file = tmp_path / "replies.jsonl"
        file.write_bytes(file.read_bytes()[:-20])
        LLMGrader(ReplyCache(tmp_path), extractor=client(server.url)).resolve(answers)
    assert len(server.requests) == 3
    assert [json.loads(line)["reply"] for line in file.read_text().splitlines()] == ["A", "A"]
