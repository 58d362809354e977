"""The public API: a loaded model that answers questions about pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
from PIL import Image

from .config import load_config
from .decode import decode, prefill
from .device import on_generation_stream, wired_memory
from .errors import UserError
from .events import (
    Answered,
    Event,
    FreeText,
    Prepared,
    StageEnded,
    StageStarted,
    StageText,
)
from .model.mllama import Mllama
from .pictures import ImageSource, TileCutter, open_picture
from .prompt import Prompt
from .sampling import Sampling
from .stages import Closed, Opened, Stage, StageEvent, StageParser
from .tokenizer import Tokenizer, Turn
from .trace import SearchRecord, StageRecord, Timings, Trace, Usage
from .weights import load_model


class Assistant:
    """A model in memory, ready for questions."""

    def __init__(
        self, model: Mllama, tokenizer: Tokenizer, cutter: TileCutter, name: str, load_s: float
    ) -> None:
        self._model = model
        self._tokenizer = tokenizer
        self._cutter = cutter
        self._name = name
        self._load_s = load_s

    @classmethod
    def load(cls, path: str | Path, *, dtype: str = "auto") -> Assistant:
        """Loads a model folder: one that `llavacot convert` wrote, mlx-vlm's, or Hugging Face's.

        `dtype` is "auto" (float32 on the CPU, 16 bits on a GPU), "float32", "float16" or
        "bfloat16". Raises UserError when the folder is no whole Mllama.
        """
        started = time.perf_counter()
        folder = Path(path).expanduser()
        config = load_config(folder)
        tokenizer = Tokenizer.load(folder, config)
        cutter = TileCutter.load(folder, config.vision)
        model = load_model(folder, dtype)
        return cls(model, tokenizer, cutter, str(path), time.perf_counter() - started)

    def ask(
        self,
        image: ImageSource | None,
        question: str,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int = 2048,
        seed: int = 0,
    ) -> Trace:
        """Answers a question about a picture, and returns the record of the answer.

        `image` is a path, the bytes of a file, a PIL image, or None for a question without one.
        At temperature 0 the likeliest token is always taken; above it, tokens are drawn from the
        `top_p` nucleus, the same ones for the same `seed`. Raises UserError for a picture that
        cannot be read, an empty question, or settings that make no sense.
        """
        for event in self.stream(
            image,
            question,
            temperature=temperature,
            top_p=top_p,
            max_tokens=max_tokens,
            seed=seed,
        ):
            if isinstance(event, Answered):
                return event.trace
        raise AssertionError("the stream ended without an answer")

    def stream(
        self,
        image: ImageSource | None,
        question: str,
        *,
        temperature: float = 0.0,
        top_p: float = 1.0,
        max_tokens: int = 2048,
        seed: int = 0,
    ) -> Iterator[Event]:
        """Like `ask`, but yields the events of the answer as they happen; the last is Answered."""
        _check(question, temperature, top_p, max_tokens)
        mx.reset_peak_memory()
        started = time.perf_counter()
        usage, timings = Usage(), Timings(load_s=self._load_s)
        pictures = () if image is None else (self._cutter.cut(open_picture(image)),)
        ids = self._tokenizer.prompt([Turn("user", question, images=len(pictures))])
        prompt = Prompt(tuple(ids), pictures)
        usage.prompt_tokens = len(ids)

        with wired_memory():
            with on_generation_stream():
                context = prefill(self._model, prompt, usage, timings)
            yield Prepared(len(ids), sum(len(picture.pixels) for picture in pictures))
            # A prompt and its answer share the model's context.
            room = self._model.config.text.max_position_embeddings - len(ids)
            tokens = decode(
                self._model,
                context,
                Sampling(temperature, top_p),
                seed,
                self._tokenizer.stop_ids,
                min(max_tokens, room),
                usage,
            )
            answer = _Answer(self._tokenizer)
            for token_id in tokens:
                if not answer.token_ids:
                    timings.first_token_s = time.perf_counter() - started
                yield from answer.push(token_id)
            yield from answer.finish()
        timings.total_s = time.perf_counter() - started
        timings.decode_s = timings.total_s - timings.first_token_s
        yield Answered(
            Trace(
                question=question,
                image=_image_name(image),
                model=self._name,
                seed=seed,
                stages=tuple(answer.records),
                text=answer.text,
                prompt_token_ids=tuple(ids),
                token_ids=tuple(answer.token_ids),
                search=SearchRecord("greedy" if temperature == 0 else "sample"),
                usage=usage,
                timings=timings,
                peak_memory_bytes=mx.get_peak_memory(),
            )
        )


class _Answer:
    """The answer while it is generated: ids to text, text to stages, stages to records."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.token_ids: list[int] = []
        self.text = ""
        self.records: list[StageRecord] = []
        self._stop_ids = tokenizer.stop_ids
        self._decoder = tokenizer.stream()
        self._parser = StageParser()
        self._stage_text = ""
        self._counted = 0  # tokens that belong to the stages that ended

    def push(self, token_id: int) -> Iterator[Event]:
        self.token_ids.append(token_id)
        if token_id not in self._stop_ids:
            yield from self._read(self._decoder.push(token_id))

    def finish(self) -> Iterator[Event]:
        yield from self._read(self._decoder.finish())
        yield from self._told(self._parser.finish())

    def _read(self, text: str) -> Iterator[Event]:
        self.text += text
        yield from self._told(self._parser.feed(text))

    def _told(self, events: list[StageEvent]) -> Iterator[Event]:
        for event in events:
            if isinstance(event, Opened):
                self._stage_text = ""
                yield StageStarted(event.stage)
            elif isinstance(event, Closed):
                yield self._ended(event.stage, event.by_tag)
            elif event.stage is None:
                yield FreeText(event.text)
            else:
                self._stage_text += event.text
                yield StageText(event.stage, event.text)

    def _ended(self, stage: Stage, closed: bool) -> StageEnded:
        tokens = len(self.token_ids) - self._counted
        self._counted = len(self.token_ids)
        self.records.append(StageRecord(stage, self._stage_text.strip(), closed, tokens))
        return StageEnded(stage, closed, tokens)


def _check(question: str, temperature: float, top_p: float, max_tokens: int) -> None:
    if not question.strip():
        raise UserError("the question is empty")
    if not 0 <= temperature < float("inf"):
        raise UserError(f"temperature must be 0 or more, not {temperature}")
    if not 0 < top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, not {top_p}")
    if max_tokens < 1:
        raise UserError(f"max_tokens must be at least 1, not {max_tokens}")


def _image_name(image: ImageSource | None) -> str | None:
    if image is None:
        return None
    if isinstance(image, bytes):
        return "-"
    if isinstance(image, Image.Image):
        return getattr(image, "filename", None) or "image"
    return str(image)
