"""Validates a model in training: the loss on held-out rows, and answers to some questions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx
import numpy as np

from llavacot_mlx.answer import AnswerStream, LoadedModel
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.plan.plan import Settings, make_plan
from llavacot_mlx.prompt.image_source import LocatedImage
from llavacot_mlx.prompt.stages import conclusion_among, stages_of
from llavacot_mlx.request import Request
from llavacot_mlx.train.data.sample import TokenKind
from llavacot_mlx.train.distributed import Workers
from llavacot_mlx.train.events import Answer, KindMetrics, Validated
from llavacot_mlx.train.loss.cross_entropy import LossSums
from llavacot_mlx.train.loss.inputs_loader import InputsLoader
from llavacot_mlx.train.loss.loss_and_grad import loss_sums
from llavacot_mlx.train.settings import TrainSettings


@dataclass(frozen=True)
class ValidationQuestion:
    """The first question of a conversation, with the reference answer."""

    where: str
    image: LocatedImage | None
    text: str
    reference: str


@dataclass(frozen=True)
class Validation:
    """The held-out rows, and those of their questions that the model answers."""

    inputs: InputsLoader
    batches: int
    questions: Sequence[ValidationQuestion]
    loaded: LoadedModel
    """The model in training, with what it needs to answer."""
    max_tokens: int

    def evaluate(
        self, model: Mllama, settings: TrainSettings, step: int, workers: Workers
    ) -> Validated:
        """Computes loss and answers without dropout; changes nothing."""
        started = time.perf_counter()
        model.eval()
        try:
            sums = self._loss_sums(model, settings, workers)
            answers = tuple(self._answer(question) for question in self.questions)
        finally:
            model.train()
        return Validated(
            step,
            float(sums.loss) / max(1.0, float(sums.tokens)),
            time.perf_counter() - started,
            kind_metrics(sums),
            answers,
        )

    def _loss_sums(self, model: Mllama, settings: TrainSettings, workers: Workers) -> LossSums:
        total = LossSums.zero()
        with self.inputs.batches(model, settings, 0, workers) as batches:
            for _ in range(self.batches):
                inputs = next(batches)
                if inputs is not None:
                    total = total + loss_sums(model, inputs)
        arrays = workers.all_sum(total.arrays)
        mx.eval(arrays)
        return LossSums(*arrays)

    def _answer(self, question: ValidationQuestion) -> Answer:
        request = Request(question.image, question.text, make_plan(Settings()), self.max_tokens)
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


def kind_metrics(sums: LossSums) -> dict[TokenKind, KindMetrics]:
    """The metrics of every token kind that occurred."""
    metrics: dict[TokenKind, KindMetrics] = {}
    losses, counts, correct = (np.array(array) for array in sums.arrays)
    for kind in TokenKind:
        if kind is not TokenKind.MASKED and counts[kind]:
            count = int(counts[kind])
            metrics[kind] = KindMetrics(
                float(losses[kind]) / count, float(correct[kind]) / count, count
            )
    return metrics


def conclusion_of(text: str) -> str | None:
    """The text of an answer's CONCLUSION; None where it has none."""
    found = conclusion_among(stages_of(text))
    return None if found is None else found.text


def _plain(answer: str) -> str:
    return " ".join(answer.casefold().split()).rstrip(".")
