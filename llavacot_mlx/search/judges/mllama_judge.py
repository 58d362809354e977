"""A second Mllama as a judge, run by this package because mlx-vlm misreads small images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from llavacot_mlx.checkpoint.completeness import check_complete
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.generate.context import DecodeContext
from llavacot_mlx.generate.device import on_generation_stream
from llavacot_mlx.generate.prefill import prefill
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.model.shared_prefix import KVPath
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.prompt.tokenizer import Tokenizer, Turn
from llavacot_mlx.search.judges.base import Candidate
from llavacot_mlx.search.judges.batched_question import ask_each
from llavacot_mlx.search.judges.prompts import yes_or_no_question
from llavacot_mlx.search.judges.yes_or_no import YesOrNo
from llavacot_mlx.usage import Timings, Usage


@dataclass(frozen=True)
class _PrefilledPrefix:
    """The common beginning of the prompts about one image and question, prefilled."""

    image: Image.Image | None
    token_ids: list[int]
    context: DecodeContext
    path: KVPath


class MllamaJudge:
    """Scores a stage by the probability that the model answers "yes" to whether it is right.

    A prompt that exceeds the model's context has no score. The image and the question are read
    once for all stages of an answer.
    """

    def __init__(
        self, model: Mllama, tokenizer: Tokenizer, image_processor: ImageProcessor
    ) -> None:
        self._model, self._tokenizer, self._image_processor = model, tokenizer, image_processor
        self._words = YesOrNo.of(tokenizer.encode)
        self._prefix: _PrefilledPrefix | None = None

    @classmethod
    def load(cls, folder: Path) -> MllamaJudge:
        """Loads a model folder. Raises UserError when it is not a complete Mllama."""
        check_complete(folder)
        config = load_config(folder)
        tokenizer = Tokenizer.load(folder, config)
        image_processor = ImageProcessor.load(folder, config.vision)
        return cls(load_model(folder, "auto"), tokenizer, image_processor)

    def scores(
        self, image: Image.Image | None, question: str, candidates: Sequence[Candidate]
    ) -> list[float | None]:
        context = self._model.config.text.max_position_embeddings
        prompts = [
            self._prompt(image, question, candidate.stage, candidate.judged_text)
            for candidate in candidates
        ]
        fitting = [index for index, ids in enumerate(prompts) if len(ids) <= context]
        scores: list[float | None] = [None] * len(candidates)
        if fitting:
            prefix = self._prefill_prefix(image, question, [prompts[index] for index in fitting])
            rest = [prompts[index][len(prefix.token_ids) :] for index in fitting]
            logits = ask_each(prefix.context, [prefix.path] * len(fitting), rest)
            probabilities = self._words.yes_probabilities(logits)
            for index, probability in zip(fitting, probabilities, strict=True):
                scores[index] = probability
        return scores

    def _prompt(
        self, image: Image.Image | None, question: str, stage: Stage | None, text: str
    ) -> list[int]:
        text = yes_or_no_question(question, stage, text)
        return self._tokenizer.prompt([Turn("user", text, images=int(image is not None))])

    def _prefill_prefix(
        self, image: Image.Image | None, question: str, prompts: list[list[int]]
    ) -> _PrefilledPrefix:
        """Prefills what all prompts of this question start with, whatever the stage."""
        last = self._prefix
        if (
            last is None
            or last.image is not image
            or any(ids[: len(last.token_ids)] != last.token_ids for ids in prompts)
        ):
            others = [self._prompt(image, question, stage, "") for stage in (None, *Stage)]
            token_ids = _common_prefix(prompts + others)
            images = () if image is None else (self._image_processor(image),)
            with on_generation_stream():
                prompt = Prompt(tuple(token_ids), images)
                context = prefill(self._model, prompt, Usage(), Timings())
            last = _PrefilledPrefix(image, token_ids, context, context.state().path)
            self._prefix = last
        return last


def _common_prefix(prompts: Sequence[Sequence[int]]) -> list[int]:
    """Returns the longest token sequence that all prompts start with."""
    length = 0
    while all(len(ids) > length and ids[length] == prompts[0][length] for ids in prompts):
        length += 1
    return list(prompts[0][:length])
