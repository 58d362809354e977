"""A run over a model without weights: what is asked, in which order, and what is kept."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import choice_rows, mmbench_rows, picture, write_set, write_tsv
from PIL import Image

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.answer_file import AnswerFile, read_answers
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet
from llavacot_mlx.evaluate.open_sets import open_sets
from llavacot_mlx.evaluate.profile import PROFILES
from llavacot_mlx.evaluate.run_folder import (
    ModelRecord,
    RunRecord,
    SetRecord,
    begin,
    read_run,
    writing_to,
)
from llavacot_mlx.evaluate.runner import NewAnswer, answer_seed, as_jpeg, run_sets
from llavacot_mlx.evaluate.score_run import score_by_rule
from llavacot_mlx.plan.plan_yaml import plan_to_dict
from llavacot_mlx.prompt.images import OpenedImage
from llavacot_mlx.prompt.stages import Stage, StageRecord
from llavacot_mlx.request import Request
from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.trace.record import SearchRecord, Trace
from llavacot_mlx.train.distributed import Workers

ALONE = Workers(0, 1)


class Answerer:
    """A model that answers what `say` says, and remembers what it was asked."""

    def __init__(self, say: Callable[[Request], str]) -> None:
        self.say = say
        self.asked: list[Request] = []

    def ask_many(
        self, requests: Iterable[Request], **_: object
    ) -> Iterator[tuple[int, Trace | UserError]]:
        for index, request in enumerate(requests):
            self.asked.append(request)
            try:
                yield index, self.answer(request)
            except UserError as problem:
                yield index, problem

    def answer(self, request: Request) -> Trace:
        text = f"<CONCLUSION> {self.say(request)} </CONCLUSION>"
        return Trace(
            question=request.question,
            image=None,
            model="m",
            seed=request.seed,
            stages=(StageRecord(Stage.CONCLUSION, self.say(request), True, 3),),
            text=text,
            prompt_token_ids=(1,),
            token_ids=(1, 2, 3),
            search=SearchRecord("greedy"),
            finish=Finish.STOP,
        )


def letter_by_seed(request: Request) -> str:
    """An answer that depends on what was asked and on the seed, as a sampled one does."""
    return random.Random(f"{request.question} {request.seed}").choice("ABCD")


def record_of(*sets: BenchmarkSet, **more: Any) -> RunRecord:
    profile = PROFILES["paper"]
    return RunRecord(
        sets={each.name: SetRecord.of(each) for each in sets},
        model=ModelRecord("m", "f"),
        profile=profile,
        plan=plan_to_dict(profile.plan()),
        **more,
    )


def run(
    folder: Path,
    model: Any,
    *sets: BenchmarkSet,
    workers: Workers = ALONE,
    stop_after: int | None = None,
    **more: Any,
) -> list[NewAnswer]:
    record = record_of(*sets, **more)
    with writing_to(folder):
        begin(folder, record)
        answers: Iterator[NewAnswer] = run_sets(lambda: model, folder, record, sets, workers)
        return list(itertools.islice(answers, stop_after))


def opened(path: Path | str, data: Path | None = None, **options: Any) -> BenchmarkSet:
    (found,) = open_sets(str(path), data, **options)
    return found


def test_a_stopped_run_goes_on_and_leaves_the_same_files(tmp_path: Path) -> None:
    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(30)))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    run(whole, Answerer(letter_by_seed), own, repeats=2)
    asked = 0
    for count in (1, 7, 2, 20, None):
        model = Answerer(letter_by_seed)
        run(parts, model, own, repeats=2, stop_after=count)
        asked += len(model.asked)
        file = parts / "answers.jsonl"
        if count is not None:  # a line that a kill cut off
            file.write_bytes(file.read_bytes() + b'{"set": "own", "ind')
    assert asked == 60
    score_by_rule(whole)
    score_by_rule(parts)
    for name in ("answers.jsonl", "grades.jsonl", "score.json", "questions.jsonl"):
        assert (whole / name).read_bytes() == (parts / name).read_bytes(), name


def test_scoring_twice_gives_equal_bytes(tmp_path: Path) -> None:
    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(12)))
    run(tmp_path / "run", Answerer(letter_by_seed), own)
    found = []
    for _ in range(2):
        score_by_rule(tmp_path / "run")
        found.append([(tmp_path / "run" / n).read_bytes() for n in ("grades.jsonl", "score.json")])
    assert found[0] == found[1]


def test_the_rows_have_the_fields_that_others_rely_on(tmp_path: Path) -> None:
    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(2)))
    run(tmp_path / "run", Answerer(letter_by_seed), own)
    score_by_rule(tmp_path / "run")
    answers, grades = (
        [json.loads(line) for line in (tmp_path / "run" / name).read_text().splitlines()]
        for name in ("answers.jsonl", "grades.jsonl")
    )
    fields = (
        "set index rotation repeat text stages finish prompt_tokens decoded_tokens seconds seed"
    )
    assert set(fields.split()) <= set(answers[0])
    assert [answers[0][name] for name in ("set", "index", "rotation", "repeat")] == ["own", 0, 0, 0]
    assert {"set", "index", "rotation", "repeat", "by", "value", "right"} <= set(grades[0])


def test_a_lost_question_is_asked_in_no_further_rotation(tmp_path: Path) -> None:
    rows = mmbench_rows(4)
    write_set(tmp_path, "mmbench", rows)
    mmbench = opened("mmbench", tmp_path)
    answers = {each.prompt: each.answer or "" for each in mmbench.questions}
    wrong = {mmbench.questions[4 + 2].prompt}  # question 2 in its second rotation

    def say(request: Request) -> str:
        return "Z" if request.question in wrong else answers[request.question]

    model, every = Answerer(say), Answerer(say)
    run(tmp_path / "run", model, mmbench)
    run(tmp_path / "every", every, mmbench, all_rotations=True)
    assert (len(model.asked), len(every.asked)) == (4 + 4 + 3 + 3, 16)
    for folder in ("run", "every"):
        (found,) = score_by_rule(tmp_path / folder).sets
        assert (found.score, found.n) == (75.0, 4)


def test_questions_about_one_picture_follow_each_other(tmp_path: Path) -> None:
    rows = choice_rows(9)
    for row in rows[3:]:
        row["image"] = rows[row["index"] % 3]["image"]
    model = Answerer(lambda _: "A")
    run(tmp_path / "run", model, opened(write_tsv(tmp_path / "own.tsv", rows)))
    pixels = [request.image.image.tobytes() for request in model.asked]  # type: ignore[union-attr]
    assert len([key for key, _ in itertools.groupby(pixels)]) == 3


def test_a_picture_that_does_not_open_is_counted_as_failed_and_not_as_wrong(
    tmp_path: Path,
) -> None:
    import base64

    rows = choice_rows(4)
    rows[1]["image"] = base64.b64encode(b"no picture at all" * 9).decode()
    answers = run(
        tmp_path / "run",
        Answerer(lambda _: "A"),
        opened(write_tsv(tmp_path / "own.tsv", rows)),
    )
    failed = [each.row for each in answers if each.row.is_failed]
    assert [(row.index, row.finish) for row in failed] == [(1, "failed")]
    assert "is not a picture that can be read" in failed[0].error
    (found,) = score_by_rule(tmp_path / "run").sets
    assert (found.failed, found.n, found.score) == (1, 3, pytest.approx(100 / 3, abs=1e-3))


def test_an_answer_that_fails_does_not_end_the_run(tmp_path: Path) -> None:
    def say(request: Request) -> str:
        if "number 2" in request.question:
            raise UserError("the prompt is too long")
        return "A"

    answers = run(
        tmp_path / "run", Answerer(say), opened(write_tsv(tmp_path / "own.tsv", choice_rows(4)))
    )
    assert sorted(each.row.error for each in answers) == ["", "", "", "the prompt is too long"]


def test_the_paper_s_profile_shows_pictures_as_jpeg(tmp_path: Path) -> None:
    model = Answerer(lambda _: "A")
    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(1)))
    run(tmp_path / "run", model, own)
    shown = model.asked[0].image
    assert isinstance(shown, OpenedImage)
    import io

    file = io.BytesIO()
    Image.open(io.BytesIO(picture(0))).save(file, "JPEG", quality=75)
    assert shown.image.tobytes() == Image.open(file).convert("RGB").tobytes()
    assert shown.image.tobytes() != Image.open(io.BytesIO(picture(0))).tobytes()


@pytest.mark.parametrize("mode", ["RGBA", "P", "LA", "L"])
def test_pictures_of_every_mode_become_jpeg(mode: str) -> None:
    assert as_jpeg(picture(5, "PNG", mode), 75).startswith(b"\xff\xd8\xff")


def test_shapes_are_shown_as_they_are_drawn(tmp_path: Path) -> None:
    model = Answerer(lambda _: "2")
    shapes = opened("shapes", limit=1)
    run(tmp_path / "run", model, shapes, limit=1)
    shown = model.asked[0].image
    import io

    assert isinstance(shown, OpenedImage)
    drawn = Image.open(io.BytesIO(shapes.questions[0].picture.read()))
    assert shown.image.tobytes() == drawn.tobytes()


def test_a_seed_depends_on_nothing_but_what_it_answers() -> None:
    (shapes,) = open_sets("shapes", None, limit=3)
    (count,) = open_sets("shapes:count", None, limit=3)
    seeds = {
        answer_seed(seed, question, repeat)
        for seed in (0, 1)
        for question in (*shapes.questions, *count.questions)
        for repeat in (0, 1)
    }
    assert len(seeds) == 24
    assert answer_seed(0, shapes.questions[0], 0) == 1412216854


def test_a_longer_run_keeps_the_answers_of_a_shorter_one(tmp_path: Path) -> None:
    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(12)))
    model = Answerer(letter_by_seed)
    run(tmp_path / "run", model, own, limit=4)
    run(tmp_path / "run", model, own, limit=10)
    assert len(model.asked) == 10
    assert read_run(tmp_path / "run").limit == 10
    run(tmp_path / "once", Answerer(letter_by_seed), own, limit=10)
    same = [(tmp_path / name / "answers.jsonl").read_bytes() for name in ("run", "once")]
    assert same[0] == same[1]
    with pytest.raises(UserError, match="holds a run of 10"):
        run(tmp_path / "run", model, own, limit=5)


def test_a_run_ends_when_its_score_is_certain_enough(tmp_path: Path) -> None:
    shapes = opened("shapes", limit=400)
    answers = {each.prompt: each.answer or "" for each in shapes.questions}
    model = Answerer(lambda request: answers[request.question])
    run(tmp_path / "run", model, shapes, until=4.0)
    (found,) = score_by_rule(tmp_path / "run").sets
    assert found.n == len(model.asked)
    assert 50 < found.n < 400
    assert found.n % 50 == 0
    assert (found.high or 0) - (found.low or 0) <= 8.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"seed": 1}, "--seed is 0 there and 1 here"),
        ({"repeats": 2}, "--repeats is 1 there and 2 here"),
        ({"model": ModelRecord("other", "g")}, "the model is"),
        ({"profile": PROFILES["paper-greedy"]}, "the profile's temperature is 0.6 there and 0.0"),
    ],
)
def test_another_run_into_the_same_folder_says_what_differs(
    change: dict[str, Any], named: str, tmp_path: Path
) -> None:
    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(2)))
    run(tmp_path / "run", Answerer(letter_by_seed), own)
    with pytest.raises(UserError, match="holds another run") as caught:
        begin(tmp_path / "run", dataclasses.replace(record_of(own), **change))
    assert named in str(caught.value)


def test_a_model_that_was_moved_is_the_same_model(tmp_path: Path) -> None:
    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(2)))
    run(tmp_path / "run", Answerer(letter_by_seed), own)
    moved = dataclasses.replace(record_of(own), model=ModelRecord("elsewhere/m", "f"))
    begin(tmp_path / "run", moved)


def test_other_data_into_the_same_folder_says_so(tmp_path: Path) -> None:
    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(2)))
    run(tmp_path / "run", Answerer(letter_by_seed), own)
    changed = opened(write_tsv(tmp_path / "own.tsv", choice_rows(3)))
    with pytest.raises(UserError, match=r"own's md5 is .*; own's rows is 2 there and 3 here"):
        begin(tmp_path / "run", record_of(changed))


def test_two_runs_into_one_folder_at_once(tmp_path: Path) -> None:
    with (
        writing_to(tmp_path / "run"),
        pytest.raises(UserError, match="another run writes into it"),
        writing_to(tmp_path / "run"),
    ):
        pass
    with writing_to(tmp_path / "run"):
        pass


def test_a_folder_of_something_else_is_not_written_into(tmp_path: Path) -> None:
    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(2)))
    with pytest.raises(UserError, match="not the folder of a run"):
        run(tmp_path, Answerer(letter_by_seed), own)


def test_a_full_disk_keeps_the_answers_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import errno
    import os

    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(6)))
    write, written = os.write, []

    def full(descriptor: int, data: bytes) -> int:
        written.append(data)
        if len(written) == 4:
            write(descriptor, data[:40])
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(descriptor, data)

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(UserError, match="No space left on device; the answers in it are kept"):
        run(tmp_path / "run", Answerer(letter_by_seed), own)
    monkeypatch.undo()
    assert len((tmp_path / "run" / "answers.jsonl").read_text().splitlines()) == 3
    model = Answerer(letter_by_seed)
    run(tmp_path / "run", model, own)
    assert len(model.asked) == 3


def test_two_processes_leave_the_files_of_one(tmp_path: Path) -> None:
    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(11)))
    run(tmp_path / "one", Answerer(letter_by_seed), own)

    class Waiting(Workers):
        def wait(self) -> None:
            pass

    run(tmp_path / "two", Answerer(letter_by_seed), own, workers=Waiting(1, 2))
    assert not (tmp_path / "two" / "answers.jsonl").exists()
    assert len(read_answers(tmp_path / "two")) == 5
    model = Answerer(letter_by_seed)
    run(tmp_path / "two", model, own, workers=Waiting(0, 2))
    assert len(model.asked) == 6
    for folder in ("one", "two"):
        score_by_rule(tmp_path / folder)
    for name in ("answers.jsonl", "grades.jsonl", "score.json"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    assert not list((tmp_path / "two").glob("answers.rank*"))


def test_a_broken_line_amid_the_answers_is_named(tmp_path: Path) -> None:
    own = opened(write_tsv(tmp_path / "own.tsv", choice_rows(3)))
    run(tmp_path / "run", Answerer(letter_by_seed), own)
    file = tmp_path / "run" / "answers.jsonl"
    first, second, third = file.read_text().splitlines(keepends=True)
    file.write_text(f"{first}{second[:50]}\n{third}")
    with pytest.raises(UserError, match=r"answers\.jsonl: line 2: not JSON"):
        read_answers(tmp_path / "run")
    with AnswerFile(tmp_path / "run", 3) as own_file:
        assert own_file is not None


def test_assistants_have_what_the_runner_calls() -> None:
    assert callable(Assistant.ask_many)
