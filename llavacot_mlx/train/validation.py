"""How a model does on rows that it does not learn from."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from llavacot_mlx.answering import AnswerStream, LoadedModel
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.plans import Settings, plan_of
from llavacot_mlx.request import Request
from llavacot_mlx.stages import Stage, StageParser, Text

from .events import Answer, KindFigures, Validated
from .forward import sums
from .head import Sums
from .rows import Question, Rows
from .sample import Target
from .settings import TrainSettings
from .workers import Workers


@dataclass(frozen=True)
class Validation:
    """The rows that are looked at, and the questions of them that are answered as well."""

    rows: Rows
    batches: int
    questions: Sequence[Question]
    loaded: LoadedModel
    """The model that learns, with what it needs to answer."""
    max_tokens: int

    def look(
        self, model: Mllama, settings: TrainSettings, step: int, workers: Workers
    ) -> Validated:
        """Without dropout, and without a change to anything."""
        started = time.perf_counter()
        model.eval()
        try:
            seen = self._sums(model, settings, workers)
            answers = tuple(self._answer(question) for question in self.questions)
        finally:
            model.train()
        return Validated(
            step,
            float(seen.loss) / max(1.0, float(seen.learned)),
            time.perf_counter() - started,
            kind_figures(seen),
            answers,
        )

    def _sums(self, model: Mllama, settings: TrainSettings, workers: Workers) -> Sums:
        total = Sums.zero()
        with self.rows.batches(model, settings, 0, workers) as batches:
            for _ in range(self.batches):
                inputs = next(batches)
                if inputs is not None:
                    total = total + sums(model, inputs)
        arrays = workers.sum(total.arrays)
        mx.eval(arrays)
        return Sums(*arrays)

    def _answer(self, question: Question) -> Answer:
        request = Request(question.image, question.text, plan_of(Settings()), self.max_tokens)
        trace = AnswerStream(self.loaded, request).result()
        wanted = conclusion_of(question.reference)
        return Answer(
            where=question.where,
            question=question.text,
            text=trace.text,
            reference=question.reference if wanted is None else wanted,
            conclusion=trace.answer,
            well_formed=trace.well_formed,
            right=trace.answer is not None
            and wanted is not None
            and _plain(trace.answer) == _plain(wanted),
        )


def kind_figures(seen: Sums) -> dict[Target, KindFigures]:
    """The figures of every kind of token that there was."""
    figures: dict[Target, KindFigures] = {}
    losses, counts, hits = (np.array(array) for array in seen.arrays)
    for kind in Target:
        if kind is not Target.MASKED and counts[kind]:
            count = int(counts[kind])
            figures[kind] = KindFigures(
                float(losses[kind]) / count, float(hits[kind]) / count, count
            )
    return figures


def conclusion_of(text: str) -> str | None:
    """The text of an answer's CONCLUSION; None where it has none."""
    parser = StageParser()
    parts = [
        event.text
        for event in (*parser.feed(text), *parser.finish())
        if isinstance(event, Text) and event.stage is Stage.CONCLUSION
    ]
    return "".join(parts).strip() if parts else None


def _plain(answer: str) -> str:
    return " ".join(answer.casefold().split()).rstrip(".")
