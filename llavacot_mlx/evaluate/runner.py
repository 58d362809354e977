"""Asks a model the questions of a run that have no answer yet."""

from __future__ import annotations

import dataclasses
import hashlib
import io
import itertools
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from PIL import Image

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.answer_file import (
    FAILED,
    AnswerFile,
    AnswerKey,
    AnswerRow,
    read_answers,
    write_answers,
)
from llavacot_mlx.evaluate.benchmark_set import BenchmarkSet, Task
from llavacot_mlx.evaluate.conclusion import prediction
from llavacot_mlx.evaluate.grade import Grade, GradedBy, grade_by_rule
from llavacot_mlx.evaluate.question import BenchmarkQuestion
from llavacot_mlx.evaluate.question_file import StoredQuestion, write_questions
from llavacot_mlx.evaluate.run_folder import RunRecord
from llavacot_mlx.evaluate.statistics import wilson
from llavacot_mlx.model.kv_budget import KVLimits
from llavacot_mlx.plan.plan import Plan
from llavacot_mlx.plan.plan_yaml import plan_from_dict
from llavacot_mlx.prompt.images import open_with_notes
from llavacot_mlx.request import Request
from llavacot_mlx.trace.file import write_trace
from llavacot_mlx.trace.record import Trace
from llavacot_mlx.train.distributed import Workers

BLOCK = 50
"""Questions after which a run that goes on until its score is certain enough looks at it."""
TRACES = "traces"

_Groups = list[list[BenchmarkQuestion]]


@dataclass(frozen=True)
class NewAnswer:
    """An answer that was just written down, and the verdict of the rules on it."""

    row: AnswerRow
    grade: Grade


@dataclass(frozen=True)
class Limits:
    """How many answers are decoded at once, and in how much memory. They change no answer."""

    batch_size: int | None = None
    kv_budget: int | None = None


def run_sets(
    load: Callable[[], Assistant],
    folder: Path,
    record: RunRecord,
    sets: Sequence[BenchmarkSet],
    workers: Workers,
    limits: Limits = Limits(),
) -> Iterator[NewAnswer]:
    """Answers what has no answer yet, and yields each answer when it is on the disk.

    `load` loads the model; it is called only if there is something to ask.

    At the end `answers.jsonl` has all answers in the order of the questions, so that a run that was
    stopped and one that was not leave the same file. Each process takes a share of the questions.
    Raises UserError when an answer cannot be written.
    """
    runner = _Runner(load, folder, record, workers, limits)
    if workers.is_main:  # so that a run that was stopped can be scored
        planned = [_stored(each, each.take(record.limit)) for each in sets]
        write_questions(folder, itertools.chain(*planned))
    questions: list[StoredQuestion] = []
    with AnswerFile(folder, workers.rank) as file:
        for each in sets:
            asked = yield from runner.run(each, file)
            questions += _stored(each, asked)
    workers.wait()
    if workers.is_main:
        order = {
            (question.set, question.index, question.rotation): place
            for place, question in enumerate(questions)
        }
        rows = [row for row in read_answers(folder).values() if row.key[:3] in order]
        rows.sort(key=lambda row: (order[row.key[:3]], row.repeat))
        write_questions(folder, questions)
        write_answers(folder, rows)
    workers.wait()


def _stored(each: BenchmarkSet, groups: _Groups) -> list[StoredQuestion]:
    """The questions of these groups, in the order of the set's file."""
    taken = {group[0].group for group in groups}
    return [
        StoredQuestion.of(each.task, question)
        for question in each.questions
        if question.group in taken
    ]


class _Runner:
    def __init__(
        self,
        load: Callable[[], Assistant],
        folder: Path,
        record: RunRecord,
        workers: Workers,
        limits: Limits,
    ) -> None:
        self._load, self._folder, self._record = cache(load), folder, record
        self._workers, self._limits = workers, limits
        self._plan = plan_from_dict(record.plan)
        self._answers = read_answers(folder)

    def run(self, each: BenchmarkSet, file: AnswerFile) -> Generator[NewAnswer, None, _Groups]:
        """Asks the questions of a set, and returns the groups that were asked."""
        groups = each.take(self._record.limit)
        until = self._record.until
        size = len(groups) if until is None else BLOCK
        done = 0
        while done < len(groups):
            block = groups[done : done + size]
            done += len(block)
            share = self._workers.shard(tuple(block))
            yield from self._ask_block(each.task, share, file)
            if until is not None and self._is_certain(each.task, groups[:done], until):
                break
        return groups[:done]

    def _ask_block(
        self, task: Task, groups: Sequence[list[BenchmarkQuestion]], file: AnswerFile
    ) -> Iterator[NewAnswer]:
        """Asks every question of these groups; of a group that is lost, no further rotation.

        A question counts only if every rotation is right, so the score is the same.
        """
        waves = 1 if self._record.all_rotations else max(map(len, groups), default=0)
        for wave in range(waves):
            pending = []
            for group in groups:
                rotations = group if self._record.all_rotations else group[wave : wave + 1]
                for repeat in range(self._record.repeats):
                    if not self._is_lost(task, group[:wave], repeat):
                        pending += [(question, repeat) for question in rotations]
            missing = [
                (question, repeat)
                for question, repeat in pending
                if _key(question, repeat) not in self._answers
            ]
            # Questions about one picture follow each other, so that it is encoded once.
            first: dict[str, int] = {}
            for place, (question, _) in enumerate(missing):
                first.setdefault(question.picture.digest, place)
            missing.sort(key=lambda each: first[each[0].picture.digest])
            yield from self._ask(task, missing, file)

    def _is_lost(self, task: Task, rotations: Sequence[BenchmarkQuestion], repeat: int) -> bool:
        for question in rotations:
            row = self._answers[_key(question, repeat)]
            if row.is_failed or self._grade(task, question, row).right is False:
                return True
        return False

    def _ask(
        self, task: Task, missing: Sequence[tuple[BenchmarkQuestion, int]], file: AnswerFile
    ) -> Iterator[NewAnswer]:
        if not missing:
            return
        requests = _Requests(self._record, self._limits, self._plan, missing)
        many = self._load().ask_many(
            requests,
            batch_size=self._limits.batch_size,
            kv_budget=self._limits.kv_budget,
        )
        for index, found in many:
            yield from self._write(task, requests.take_failed(), file)
            asked = requests.asked[index]
            if isinstance(found, UserError):
                row = asked.failed(found)
            else:
                if not self._plan.is_single_path:
                    self._keep_trace(asked, found)
                row = asked.answered(found)
            yield from self._write(task, [(asked.question, row)], file)
        yield from self._write(task, requests.take_failed(), file)

    def _write(
        self, task: Task, rows: Iterable[tuple[BenchmarkQuestion, AnswerRow]], file: AnswerFile
    ) -> Iterator[NewAnswer]:
        for question, row in rows:
            file.append(row)
            self._answers[row.key] = row
            yield NewAnswer(row, self._grade(task, question, row))

    def _grade(self, task: Task, question: BenchmarkQuestion, row: AnswerRow) -> Grade:
        if row.is_failed:
            return Grade(GradedBy.FAILED)
        profile = self._record.profile
        stored = StoredQuestion.of(task, question)
        return grade_by_rule(stored, prediction(row.text, profile.answer_from), profile.scorer)

    def _keep_trace(self, asked: _Asked, trace: Trace) -> None:
        """Saves the search behind an answer, without the picture, for `llavacot trace`."""
        folder = self._folder / TRACES / asked.question.set.replace(":", "-")
        folder.mkdir(parents=True, exist_ok=True)
        question = asked.question
        name = f"{question.index}.{question.rotation}.{asked.repeat}.json".replace("/", "_")
        write_trace(folder / name, trace, None)

    def _is_certain(self, task: Task, groups: _Groups, until: float) -> bool:
        """Whether the score of these groups is known to `until` points."""
        self._workers.wait()  # for the answers of the others
        self._answers = read_answers(self._folder)
        self._workers.wait()
        hits: list[float] = []
        for group in groups:
            for repeat in range(self._record.repeats):
                rows = [(each, self._answers.get(_key(each, repeat))) for each in group]
                grades = [self._grade(task, each, row) for each, row in rows if row is not None]
                if not any(grade.by is GradedBy.FAILED for grade in grades):
                    hits.append(min(float(grade.right or 0) for grade in grades))
        if not hits:
            return False
        low, high = wilson(sum(hits) / self._record.repeats, len(hits) // self._record.repeats)
        return 100 * (high - low) / 2 <= until


@dataclass(frozen=True)
class _Asked:
    """A question on its way, and what its row says whatever the answer."""

    question: BenchmarkQuestion
    repeat: int
    seed: int
    picture_sha256: str = ""

    def answered(self, trace: Trace) -> AnswerRow:
        return dataclasses.replace(
            self._row(),
            text=trace.text,
            stages=trace.stages,
            finish=str(trace.finish),
            prompt_tokens=trace.usage.prompt_tokens,
            decoded_tokens=trace.usage.decoded_tokens,
            judge_tokens=trace.usage.judge_tokens,
            seconds=round(trace.timings.total_s, 3),
        )

    def failed(self, problem: UserError) -> AnswerRow:
        return dataclasses.replace(self._row(), error=str(problem))

    def _row(self) -> AnswerRow:
        question = self.question
        return AnswerRow(
            set=question.set,
            index=question.index,
            rotation=question.rotation,
            repeat=self.repeat,
            prompt_sha256=hashlib.sha256(question.prompt.encode(errors="replace")).hexdigest(),
            picture_sha256=self.picture_sha256,
            text="",
            stages=(),
            finish=FAILED,
            prompt_tokens=0,
            decoded_tokens=0,
            judge_tokens=0,
            seconds=0.0,
            seed=self.seed,
        )


class _Requests:
    """Makes the requests of questions one by one, and holds back those that cannot be asked."""

    def __init__(
        self,
        record: RunRecord,
        limits: Limits,
        plan: Plan,
        missing: Sequence[tuple[BenchmarkQuestion, int]],
    ) -> None:
        self.asked: list[_Asked] = []
        self._record, self._limits, self._plan, self._missing = record, limits, plan, missing
        self._failed: list[tuple[BenchmarkQuestion, AnswerRow]] = []

    def __iter__(self) -> Iterator[Request]:
        profile = self._record.profile
        for question, repeat in self._missing:
            asked = _Asked(question, repeat, answer_seed(self._record.seed, question, repeat))
            try:
                data = question.picture.read()
                if question.picture.is_file and profile.jpeg_quality is not None:
                    data = as_jpeg(data, profile.jpeg_quality)
                asked = dataclasses.replace(asked, picture_sha256=hashlib.sha256(data).hexdigest())
                request = Request(
                    image=open_with_notes(data),
                    question=question.prompt,
                    plan=self._plan,
                    max_tokens=profile.max_tokens,
                    seed=asked.seed,
                    limits=KVLimits(self._record.kv_bits, self._limits.kv_budget),
                )
            except UserError as problem:
                self._failed.append((question, asked.failed(problem)))
                continue
            self.asked.append(asked)
            yield request

    def take_failed(self) -> list[tuple[BenchmarkQuestion, AnswerRow]]:
        """The questions since the last call that could not be asked."""
        taken, self._failed = self._failed, []
        return taken


def answer_seed(seed: int, question: BenchmarkQuestion, repeat: int) -> int:
    """The seed of one answer, which depends on nothing but what it answers."""
    text = f"{seed} {question.set} {question.index} {question.rotation} {repeat}"
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:4]) >> 1


def as_jpeg(data: bytes, quality: int) -> bytes:
    """Saves a picture as JPEG, as VLMEvalKit of 2024 does before the model reads it.

    Raises UserError if it is not a complete picture.
    """
    try:
        with Image.open(io.BytesIO(data)) as image:
            rgb = image if image.mode in ("RGB", "L", "CMYK") else image.convert("RGB")
            file = io.BytesIO()
            rgb.save(file, "JPEG", quality=quality)
            return file.getvalue()
    except Exception:  # decoders raise whatever they stumble over
        open_with_notes(data)  # which says what is wrong
        raise


def _key(question: BenchmarkQuestion, repeat: int) -> AnswerKey:
    return (question.set, question.index, question.rotation, repeat)
