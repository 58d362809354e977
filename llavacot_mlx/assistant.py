"""The public API: a loaded model that answers questions about pictures."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx
from PIL import Image

from .cache import VisionMemory
from .config import load_config
from .decode import decode, prefill
from .device import on_generation_stream, wired_memory
from .errors import UserError
from .events import (
    Answered,
    CandidateText,
    Event,
    FreeText,
    Prepared,
    StageEnded,
    StageStarted,
    StageText,
)
from .judges import Judge
from .judges.logprob import LogprobJudge
from .judges.majority import MajorityJudge
from .judges.self_judge import SelfJudge
from .model.mllama import Mllama
from .pictures import ImageSource, TileCutter, open_picture
from .plans import JudgeName, plan_of
from .prompt import Prompt
from .reader import Reader
from .sampling import Sampling
from .search import Search
from .stages import Closed, Opened, StageEvent
from .tokenizer import Tokenizer, Turn
from .trace import SearchRecord, Timings, Trace, Usage
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
        search: str | None = None,
        candidates: int | None = None,
        judge: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int = 2048,
        seed: int = 0,
    ) -> Trace:
        """Answers a question about a picture, and returns the record of the answer.

        `image` is a path, the bytes of a file, a PIL image, or None for a question without one.

        `search` is the name of a method (`plans.Method`); by default "sample" where a temperature
        is given and "greedy" otherwise. `candidates` and `judge` ("self", "logprob", "majority")
        change a method's own. Temperature 0 always takes the likeliest token; above it, tokens are
        drawn from the `top_p` nucleus, the same ones for the same `seed`. Everything but greedy
        draws at temperature 0.6 and top-p 0.9 unless told otherwise.

        Raises UserError for a picture that cannot be read, an empty question, or settings that
        make no sense.
        """
        for event in self.stream(
            image,
            question,
            search=search,
            candidates=candidates,
            judge=judge,
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
        search: str | None = None,
        candidates: int | None = None,
        judge: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int = 2048,
        seed: int = 0,
    ) -> Iterator[Event]:
        """Like `ask`, but yields the events of the answer as they happen; the last is Answered."""
        plan = plan_of(search, candidates, judge, temperature, top_p)
        _check(question, plan.sampling, max_tokens)
        mx.reset_peak_memory()
        started = time.perf_counter()
        usage, timings = Usage(), Timings(load_s=self._load_s)
        pictures = () if image is None else (self._cutter.cut(open_picture(image)),)
        ids = self._tokenizer.prompt([Turn("user", question, images=len(pictures))])
        prompt = Prompt(tuple(ids), pictures)
        usage.prompt_tokens = len(ids)
        # A prompt and its answer share the model's context.
        limit = min(max_tokens, self._model.config.text.max_position_embeddings - len(ids))

        reader = Reader(self._tokenizer)
        record = SearchRecord(plan.method)
        with wired_memory():
            with on_generation_stream():
                context = prefill(self._model, prompt, usage, timings)
            yield Prepared(len(ids), sum(len(picture.pixels) for picture in pictures))
            if plan.single:
                tokens = decode(
                    self._model,
                    context,
                    plan.sampling,
                    seed,
                    self._tokenizer.stop_ids,
                    limit,
                    usage,
                )
                for token_id in tokens:
                    if not reader.token_ids:
                        timings.first_token_s = time.perf_counter() - started
                    yield from _told(reader.push(token_id), reader)
                yield from _told(reader.finish(), reader)
            else:
                chooser = self._judge(plan.judge, context.memory, usage)
                engine = Search(
                    self._model, self._tokenizer, context.memory, plan, chooser, seed, limit, usage
                )
                for event in engine.run(context.ready()):
                    if isinstance(event, CandidateText) and not timings.first_token_s:
                        timings.first_token_s = time.perf_counter() - started
                    yield event
                record = engine.record()
                reader = Reader.after(self._tokenizer, engine.chosen_ids)
                reader.finish()
                reader.records = engine.chosen_stages
        timings.total_s = time.perf_counter() - started
        timings.decode_s = timings.total_s - timings.first_token_s
        yield Answered(
            Trace(
                question=question,
                image=_image_name(image),
                model=self._name,
                seed=seed,
                stages=tuple(reader.records),
                text=reader.text,
                prompt_token_ids=tuple(ids),
                token_ids=tuple(reader.token_ids),
                search=record,
                usage=usage,
                timings=timings,
                peak_memory_bytes=mx.get_peak_memory(),
            )
        )

    def _judge(self, name: JudgeName, memory: VisionMemory | None, usage: Usage) -> Judge:
        if name is JudgeName.SELF:
            return SelfJudge(self._model, self._tokenizer, memory, usage)
        return MajorityJudge() if name is JudgeName.MAJORITY else LogprobJudge()


def _told(events: list[StageEvent], reader: Reader) -> Iterator[Event]:
    """What the reader found, as the events of an answer."""
    ended = len(reader.records) - sum(isinstance(event, Closed) for event in events)
    for event in events:
        if isinstance(event, Opened):
            yield StageStarted(event.stage)
        elif isinstance(event, Closed):
            yield StageEnded(event.stage, event.by_tag, reader.records[ended].tokens)
            ended += 1
        elif event.stage is None:
            yield FreeText(event.text)
        else:
            yield StageText(event.stage, event.text)


def _check(question: str, sampling: Sampling, max_tokens: int) -> None:
    if not question.strip():
        raise UserError("the question is empty")
    if not 0 <= sampling.temperature < float("inf"):
        raise UserError(f"temperature must be 0 or more, not {sampling.temperature}")
    if not 0 < sampling.top_p <= 1:
        raise UserError(f"top_p must be above 0 and at most 1, not {sampling.top_p}")
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
