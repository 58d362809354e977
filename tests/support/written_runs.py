"""Run folders with answers that a test made up, as `llavacot eval run` leaves them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from llavacot_mlx.evaluate.answer_file import AnswerRow, write_answers
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet
from llavacot_mlx.evaluate.profile import PROFILES
from llavacot_mlx.evaluate.question import BenchmarkQuestion
from llavacot_mlx.evaluate.question_file import StoredQuestion, write_questions
from llavacot_mlx.evaluate.run_folder import ModelRecord, RunRecord, SetRecord, begin
from llavacot_mlx.plan.plan_yaml import plan_to_dict
from llavacot_mlx.prompt.stages import Stage, StageRecord

Say = Callable[[BenchmarkQuestion], str | None]
"""From a question to the model's text; None where it was not asked."""


def concluded(text: str) -> str:
    return f"<REASONING> So. </REASONING>\n\n<CONCLUSION> {text} </CONCLUSION>"


def four_stages(text: str) -> tuple[StageRecord, ...]:
    texts = ("I look.", "A picture.", "So.", text)
    return tuple(
        StageRecord(stage, written, True, 4) for stage, written in zip(Stage, texts, strict=True)
    )


def write_run(folder: Path, sets: Sequence[BenchmarkSet], say: Say, **more: Any) -> Path:
    """Writes a run in which every question of the sets has the answer that `say` gives."""
    folder.mkdir(parents=True)
    profile = more.pop("profile", PROFILES["paper"])
    record = RunRecord(
        sets={each.name: SetRecord.of(each) for each in sets},
        model=ModelRecord("models/small", "f"),
        profile=profile,
        plan=plan_to_dict(profile.plan()),
        **more,
    )
    begin(folder, record)
    questions, rows = [], []
    for each in sets:
        for question in each.questions:
            questions.append(StoredQuestion.of(each.task, question))
            text = say(question)
            if text is not None:
                rows.append(answer_row(question, text))
    write_questions(folder, questions)
    write_answers(folder, rows)
    return folder


def answer_row(question: BenchmarkQuestion, text: str) -> AnswerRow:
    return AnswerRow(
        set=question.set,
        index=question.index,
        rotation=question.rotation,
        repeat=0,
        prompt_sha256="p",
        picture_sha256="q",
        text=text,
        stages=four_stages(text),
        finish="stop",
        prompt_tokens=10,
        decoded_tokens=16,
        judge_tokens=0,
        seconds=0.5,
        seed=1,
    )
