"""A second Mllama as a judge, in our own runtime: mlx-vlm misreads small images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

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
from llavacot_mlx.search.judges.prompts import is_it_right
from llavacot_mlx.search.judges.yes_or_no import YesOrNo
from llavacot_mlx.usage import Timings, Usage


@dataclass(frozen=True)
class _Read:
    """An image and a question that were prefilled."""

    image: Image.Image | None
    token_ids: list[int]
    context: DecodeContext
    path: KVPath


class MllamaJudge:
    """Scores a stage by the probability of "yes" to whether it is right; None if the text is too
    long.

    The image and the question are read once for all stages of an answer.
    """

    def __init__(
        self, model: Mllama, tokenizer: Tokenizer, image_processor: ImageProcessor
    ) -> None:
        self._model, self._tokenizer, self._image_processor = model, tokenizer, image_processor
        self._words = YesOrNo.of(tokenizer.encode)
        self._read: _Read | None = None

    @classmethod
    def load(cls, folder: Path) -> MllamaJudge:
        """Loads a model folder. Raises UserError when it is not a complete Mllama."""
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
        asked = [row for row, ids in enumerate(prompts) if len(ids) <= context]
        scores: list[float | None] = [None] * len(candidates)
        if asked:
            read = self._reading(image, question, [prompts[row] for row in asked])
            rest = [prompts[row][len(read.token_ids) :] for row in asked]
            paths = [read.path] * len(asked)
            logits = ask_each(read.context, paths, rest)
            for row, chance in zip(asked, self._words.yes_probabilities(logits), strict=True):
                scores[row] = chance
        return scores

    def _prompt(
        self, image: Image.Image | None, question: str, stage: Stage | None, text: str
    ) -> list[int]:
        asked = is_it_right(question, stage, text)
        return self._tokenizer.prompt([Turn("user", asked, images=int(image is not None))])

    def _reading(self, image: Image.Image | None, question: str, prompts: list[list[int]]) -> _Read:
        """Prefills the prefix that all prompts of this question share, whatever the stage."""
        read = self._read
        if (
            read is None
            or read.image is not image
            or any(ids[: len(read.token_ids)] != read.token_ids for ids in prompts)
        ):
            others = [self._prompt(image, question, stage, "") for stage in (None, *Stage)]
            beginning = _common(prompts + others)
            images = () if image is None else (self._image_processor(image),)
            with on_generation_stream():
                prompt = Prompt(tuple(beginning), images)
                context = prefill(self._model, prompt, Usage(), Timings())
            read = _Read(image, beginning, context, context.state().path)
            self._read = read
        return read


def _common(rows: Sequence[Sequence[int]]) -> list[int]:
    """Returns the longest common prefix."""
    length = 0
    while all(len(row) > length and row[length] == rows[0][length] for row in rows):
        length += 1
    return list(rows[0][:length])
