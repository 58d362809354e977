"""Decides with a grading model what the rules leave open; nothing is guessed where it cannot."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from llavacot_mlx.checked import checked, named
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.benchmark_set import Task
from llavacot_mlx.evaluate.grade import GradedBy, math_answer
from llavacot_mlx.evaluate.grade_file import GradeRow
from llavacot_mlx.evaluate.grading_prompts import (
    grade_prompt,
    option_prompt,
    value_prompt,
    yes_no_prompt,
)
from llavacot_mlx.evaluate.mathvista_answer import check_official, check_value, prefetch
from llavacot_mlx.evaluate.option_inference import Scorer, infer_option
from llavacot_mlx.evaluate.question_file import StoredQuestion, read_lines
from llavacot_mlx.evaluate.yes_no_inference import infer_yes_or_no

CACHE_NAME = "replies.jsonl"

_TEMPERATURES = (0.0, 0.5, 1.0, 1.5, 2.0)
_OPTION_TRIES = 3  # all at temperature 0
_UNKNOWN = "Unknown"
_SCORE = re.compile(r"\s*([01](?:\.\d+)?)\s*")


class GradingModel(Protocol):
    """A model that replies to texts."""

    @property
    def name(self) -> str:
        """What the verdicts say about who gave them."""

    def reply(self, prompt: str, temperature: float, max_tokens: int) -> str:
        """Returns the reply. Raises UserError where there will be none."""


@dataclass(frozen=True)
class OpenAnswer:
    """An answer, what is scored of it, and the verdict of the rules."""

    question: StoredQuestion
    grade: GradeRow
    text: str


@dataclass(frozen=True)
class _Reply:
    key: str
    reply: str


class ReplyCache:
    """The replies in a run's folder, by what was asked; nothing is asked twice."""

    def __init__(self, folder: Path) -> None:
        """Raises UserError that names a line that is none of these."""
        self._file = folder / CACHE_NAME
        self._lock = threading.Lock()
        self._replies: dict[str, str] = {}
        self.asked = self.found = 0
        for number, value in read_lines(self._file):
            with named(f"{self._file}: line {number}"):
                row = checked(_Reply, value)
            self._replies[row.key] = row.reply
        if self._file.exists():  # without a line that was cut off
            data = self._file.read_bytes()
            if not data.endswith(b"\n"):
                self._file.write_bytes(data[: data.rfind(b"\n") + 1])

    def reply(
        self, model: GradingModel, prompt: str, number: int, temperature: float, max_tokens: int
    ) -> str:
        """The reply of a model to try `number` of a prompt. Raises UserError."""
        asked = json.dumps([model.name, prompt, number, temperature, max_tokens])
        key = hashlib.sha256(asked.encode()).hexdigest()
        with self._lock:
            if key in self._replies:
                self.found += 1
                return self._replies[key]
        reply = model.reply(prompt, temperature, max_tokens)
        line = json.dumps({"key": key, "reply": reply}, ensure_ascii=False) + "\n"
        with self._lock:
            self.asked += 1
            self._replies[key] = reply
            try:
                with self._file.open("ab") as stream:
                    stream.write(line.encode(errors="backslashreplace"))
            except OSError as problem:
                raise UserError(f"{self._file}: cannot be written: {problem.strerror}") from None
        return reply


@dataclass(frozen=True)
class LLMGrader:
    """Asks an extractor about options, words and values, and a grader about free answers."""

    cache: ReplyCache
    extractor: GradingModel | None = None
    grader: GradingModel | None = None
    grader_runs: int = 1
    """Number of scores of which the mean is taken."""
    concurrency: int = 1
    """Number of prompts that are asked at once."""

    def resolve(
        self, answers: Sequence[OpenAnswer], report: Callable[[], None] = lambda: None
    ) -> list[GradeRow]:
        """Returns the verdicts, in order; those that no model could give are as they were.

        Calls `report` after each answer. Raises UserError when a model cannot be asked any more;
        its replies so far are kept.
        """
        found = [each.grade for each in answers]
        wanted = [number for number, each in enumerate(answers) if self._is_asked(each)]

        def decide(number: int) -> None:
            found[number] = self._decide(answers[number])
            report()

        if self.concurrency == 1:
            for number in wanted:
                decide(number)
            return found
        with ThreadPoolExecutor(self.concurrency) as pool:
            futures = [pool.submit(decide, number) for number in wanted]
            done, _ = wait(futures, return_when=FIRST_EXCEPTION)
            for future in futures:
                future.cancel()
            for future in done:
                future.result()
        return found

    def count(self, answers: Sequence[OpenAnswer]) -> int:
        """How many answers a model is asked about."""
        return sum(map(self._is_asked, answers))

    def _is_asked(self, each: OpenAnswer) -> bool:
        if each.grade.by is GradedBy.FAILED:
            return False
        if each.question.task is Task.GRADED:
            return self.grader is not None
        if self.extractor is None:
            return False
        if each.question.task is Task.MATHVISTA:  # our own rule is for when there is no model
            is_official = each.grade.scorer == Scorer.MATHVISTA_OFFICIAL
            return is_official or prefetch(each.text, math_answer(each.question)) is None
        return each.grade.by is GradedBy.NONE

    def _decide(self, each: OpenAnswer) -> GradeRow:
        if each.question.task is Task.GRADED:
            return self._score(each)
        assert self.extractor is not None
        model, last, number = self.extractor, "", 0
        prompt, temperatures, max_tokens = _extraction(each)
        for number, temperature in enumerate(temperatures, start=1):
            last = self.cache.reply(model, prompt, number, temperature, max_tokens)
            verdict = _verdict(each, last)
            if verdict is not None:
                value, right = verdict
                return dataclasses.replace(
                    each.grade,
                    by=GradedBy.LLM,
                    value=value,
                    right=None if each.question.answer is None else right,
                    model=model.name,
                    reply=last,
                    tries=number,
                )
        return dataclasses.replace(
            each.grade,
            by=GradedBy.NONE,
            value=None,
            right=None,
            model=model.name,
            reply=last,
            tries=number,
        )

    def _score(self, each: OpenAnswer) -> GradeRow:
        assert self.grader is not None
        question = each.question
        prompt = grade_prompt(question.question, question.answer or "", each.text)
        scores, last, tries = [], "", 0
        for _ in range(self.grader_runs):
            for temperature in _TEMPERATURES:
                tries += 1
                last = self.cache.reply(self.grader, prompt, tries, temperature, 16)
                score = _SCORE.fullmatch(last)
                if score and float(score[1]) <= 1:
                    scores.append(float(score[1]))
                    break
        asked = dataclasses.replace(each.grade, model=self.grader.name, reply=last, tries=tries)
        if len(scores) < self.grader_runs:
            return asked
        mean = round(sum(scores) / len(scores), 6)
        return dataclasses.replace(asked, by=GradedBy.LLM, value=last.strip(), score=mean)


def _extraction(each: OpenAnswer) -> tuple[str, Sequence[float], int]:
    """The prompt, the temperatures of the tries, and the limit on tokens."""
    question = each.question
    match question.task:
        case Task.CHOICE:
            prompt = option_prompt(question.question, question.options, each.text)
            return prompt, (0.0,) * _OPTION_TRIES, 32
        case Task.MATHVISTA:
            return value_prompt(question.prompt, each.text), _TEMPERATURES, 128
        case _:
            return yes_no_prompt(question.question, each.text), _TEMPERATURES, 32


def _verdict(each: OpenAnswer, reply: str) -> tuple[str, bool] | None:
    """What a reply says the answer is, and whether that is right; None if it says nothing."""
    question, reply = each.question, reply.strip()
    if not reply:
        return None
    match question.task:
        case Task.CHOICE:
            letter = infer_option(reply, question.options)
            return None if letter is None else (letter, letter == question.answer)
        case Task.MATHVISTA:
            answer = math_answer(question)
            is_official = each.grade.scorer == Scorer.MATHVISTA_OFFICIAL
            check = check_official if is_official else check_value
            return reply, check(reply, answer)
        case _:
            said = infer_yes_or_no(reply)
            if said is None and _UNKNOWN.casefold() in reply.casefold():
                said = _UNKNOWN
            return None if said is None else (said, said == question.answer)
