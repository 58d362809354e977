"""One answer: its events as they happen, and its record at any time."""

from __future__ import annotations

import dataclasses
import math
import time
from collections.abc import Generator, Iterator
from contextlib import nullcontext
from dataclasses import dataclass, field
from datetime import datetime

import mlx.core as mx
from PIL import Image

from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.decode import decode
from llavacot_mlx.generate.device import on_generation_stream, wired_memory
from llavacot_mlx.generate.ngram_draft import DraftMemory, NgramDraft
from llavacot_mlx.generate.prefill import PrefilledPrompt, prefill
from llavacot_mlx.generate.repetition import RepetitionDetector
from llavacot_mlx.generate.shared_decoder import SharedDecoder
from llavacot_mlx.generate.waiting import Waiting
from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.plan.plan import SELF, Plan
from llavacot_mlx.plan.plan_yaml import plan_to_dict
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.image_source import RefusedImage, image_name
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.prompt.images import ImageSource, OpenedImage, open_with_notes
from llavacot_mlx.prompt.stages import Closed, Opened, Stage, StageEvent, StageRecord
from llavacot_mlx.prompt.tokenizer import Tokenizer, Turn
from llavacot_mlx.request import Request
from llavacot_mlx.search.calibration import Calibration
from llavacot_mlx.search.context import SearchContext
from llavacot_mlx.search.engine import Search
from llavacot_mlx.search.judges.plugins import ExternalJudges
from llavacot_mlx.search.judges.registry import make_judge
from llavacot_mlx.trace.answer_events import Answered, Event
from llavacot_mlx.trace.event_log import EventLog
from llavacot_mlx.trace.events import (
    CandidateText,
    FreeText,
    LoggedEvent,
    Noticed,
    Prepared,
    StageEnded,
    StageStarted,
    StageText,
)
from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.trace.record import SearchRecord, Trace
from llavacot_mlx.trace.stage_reader import StageReader
from llavacot_mlx.usage import Timings, Usage

_EVEN_CHANCE = 0.5


@dataclass(frozen=True)
class LoadedModel:
    """A model in memory, with everything that it needs to answer."""

    model: Mllama
    tokenizer: Tokenizer
    image_processor: ImageProcessor
    calibration: Calibration
    name: str
    adapter: str | None
    """The name of its adapter; None without one."""
    load_s: float
    external_judges: ExternalJudges = field(default_factory=ExternalJudges)
    draft_memory: DraftMemory = field(default_factory=DraftMemory)
    """The last answers, from which the tokens of the next are guessed."""


class AnswerStream:
    """An iterator over the events of one answer, of which the last is Answered.

    If you stop early, `so_far` has the record up to that point.
    """

    def __init__(
        self, loaded: LoadedModel, request: Request, decoder: SharedDecoder | None = None
    ) -> None:
        """With a `decoder` the answer is decoded together with others, see `until_waiting`.

        Raises UserError if the plan needs a calibration that the model does not have.
        """
        self._loaded, self._request, self._decoder = loaded, request, decoder
        self._plan, self._notices = _resolve_threshold(request.plan, loaded)
        self._image_notices: tuple[str, ...] = ()
        self._usage, self._timings = Usage(), Timings(load_s=loaded.load_s)
        self._prompt_ids: list[int] = []
        self._reader = StageReader(loaded.tokenizer)
        self._search: Search | None = None
        self._finish = Finish.INTERRUPTED
        self._started = 0.0
        self._asked_at = ""
        self._log = EventLog()
        self._events = self._run()

    def __iter__(self) -> Iterator[Event]:
        return self

    def __next__(self) -> Event:
        event = next(self._events)
        assert not isinstance(event, Waiting), "a shared decoder's answers are not iterated"
        if isinstance(event, LoggedEvent):
            self._log.add(event)
        return event

    def until_waiting(self) -> Iterator[Event]:
        """Yields the events that are possible before the shared decoder's next step."""
        for event in self._events:
            if isinstance(event, Waiting):
                return
            if isinstance(event, LoggedEvent):
                self._log.add(event)
            yield event

    def close(self) -> None:
        """Stops the answer; has no effect once it has ended."""
        self._events.close()

    def result(self) -> Trace:
        """Runs the answer to its end, and returns its record."""
        for event in self:
            if isinstance(event, Answered):
                return event.trace
        raise AssertionError("the stream ended without an answer")

    def so_far(self) -> Trace:
        """Returns the record of an answer that is stopped now, with the stages of the best path."""
        return dataclasses.replace(self._trace(), interrupted=True, finish=Finish.INTERRUPTED)

    def _run(self) -> Generator[Event | Waiting, None, None]:
        request, loaded, plan = self._request, self._loaded, self._plan
        if self._decoder is None:
            mx.reset_peak_memory()
        self._started = time.perf_counter()
        self._asked_at = datetime.now().astimezone().isoformat(timespec="seconds")
        for notice in self._notices:
            yield Noticed(notice)
        opened = None if request.image is None else open_with_notes(request.image)
        image = None if opened is None else opened.image
        tiles = () if image is None else (loaded.image_processor(image),)
        ids = loaded.tokenizer.prompt([Turn("user", request.question, images=len(tiles))])
        self._prompt_ids = ids
        self._usage.prompt_tokens = len(ids)
        # A prompt and its answer share the model's context.
        limit = min(request.max_tokens, loaded.model.config.text.max_position_embeddings - len(ids))
        kv_budget = KVBudget(self._usage, request.limits)
        # Where answers are decoded together, memory stays wired for all of them.
        with wired_memory() if self._decoder is None else nullcontext():
            prompt = yield from self._prefill(Prompt(tuple(ids), tiles), kv_budget)
            yield Prepared(len(ids), sum(len(each.pixels) for each in tiles))
            if plan.is_single_path:
                yield from self._decode_path(prompt, limit)
            else:
                yield from self._run_search(prompt, limit, image)
        for note in opened.all_notes() if opened is not None else ():
            self._image_notices += (note,)
            yield Noticed(note)  # here, so that it stands under the answer
        yield Answered(self._trace())

    def _prefill(
        self, prompt: Prompt, kv_budget: KVBudget
    ) -> Generator[Waiting, None, PrefilledPrompt]:
        """Reads the prompt, together with those of others if the decoder is shared."""
        if self._decoder is None:
            with on_generation_stream():
                return prefill(self._loaded.model, prompt, self._usage, self._timings, kv_budget)
        return (yield from self._decoder.prefill(prompt, self._usage, self._timings, kv_budget))

    def _decode_path(self, prompt: PrefilledPrompt, limit: int) -> Iterator[Event | Waiting]:
        """Decodes a single path, stage by stage."""
        loaded, reader = self._loaded, self._reader
        sampling = self._plan.sampling_for(self._plan.steps[0])
        draft = NgramDraft(loaded.draft_memory, self._prompt_ids)
        detector = RepetitionDetector()
        finish = Finish.LENGTH
        # No name holds the iterator, so a path that is stopped leaves a shared decoder at once.
        for token_id in decode(
            prompt,
            sampling,
            self._request.seed,
            loaded.tokenizer.stop_ids,
            limit,
            draft if self._request.speculation else None,
        ):
            if isinstance(token_id, Waiting):
                yield token_id
                continue
            if not reader.token_ids:
                self._first_token()
            yield from _stage_events(reader.push(token_id), reader)
            detector.push(token_id)
            if detector.repeating and self._request.repetition_stop:
                finish = Finish.REPETITION
                break
        self._finish = Finish.STOP if reader.turn_ended else finish
        loaded.draft_memory.add(reader.token_ids)
        yield from _stage_events(reader.finish(), reader)

    def _run_search(
        self, prompt: PrefilledPrompt, limit: int, image: Image.Image | None
    ) -> Iterator[Event | Waiting]:
        """Searches over many paths, as the plan says."""
        loaded = self._loaded
        context = SearchContext(
            model=loaded.model,
            image_kv=prompt.image_kv,
            usage=self._usage,
            kv_budget=prompt.kv_budget,
            tokenizer=loaded.tokenizer,
            timings=self._timings,
            image=image,
            question=self._request.question,
            decoder=self._decoder,
        )
        judges = {
            name: make_judge(name, context, loaded.external_judges) for name in self._plan.judges
        }
        self._search = Search(
            context,
            self._plan,
            judges,
            self._request.seed,
            limit,
            repetition_stop=self._request.repetition_stop,
        )
        first = True
        for event in self._search.run(prompt.state()):
            if first and isinstance(event, CandidateText):
                self._first_token()
                first = False
            yield event
        self._finish = self._search.finish

    def _first_token(self) -> None:
        self._timings.first_token_s = time.perf_counter() - self._started

    def _trace(self) -> Trace:
        timings = self._timings
        timings.total_s = time.perf_counter() - self._started
        timings.decode_s = max(0.0, timings.total_s - timings.first_token_s - timings.judge_s)
        request, reader = self._request, self._reader
        record = SearchRecord(self._plan.method, plan=plan_to_dict(self._plan))
        stages: list[StageRecord] = reader.records
        if self._search is not None:
            record = self._search.record()
            reader = StageReader.after(self._loaded.tokenizer, self._search.best_ids)
            reader.finish()
            chosen = self._search.best_stages
            stages = chosen + reader.records[len(chosen) :]
        return Trace(
            question=request.question,
            image=_image_name(request.image),
            model=self._loaded.name,
            adapter=self._loaded.adapter,
            seed=request.seed,
            stages=tuple(stages),
            text=reader.text,
            prompt_token_ids=tuple(self._prompt_ids),
            token_ids=tuple(reader.token_ids),
            search=dataclasses.replace(
                record, notices=(*self._notices, *record.notices, *self._image_notices)
            ),
            max_tokens=request.max_tokens,
            repetition_stop=request.repetition_stop,
            finish=self._finish,
            kv_bits=request.limits.bits,
            asked_at=self._asked_at,
            usage=dataclasses.replace(self._usage),
            timings=dataclasses.replace(timings),
            peak_memory_bytes=mx.get_peak_memory(),
            events=self._log.events,
        )


def _resolve_threshold(plan: Plan, loaded: LoadedModel) -> tuple[Plan, tuple[str, ...]]:
    """Fills in the retrace threshold from the calibration; returns the plan and its notices."""
    retrace = plan.retrace
    if retrace is None or retrace.threshold is not None:
        return plan, ()
    judge = plan.judge_for(plan.steps[retrace.after])
    stats = loaded.calibration.get(judge, {}).get(list(Stage)[retrace.after])
    notices: tuple[str, ...] = ()
    if stats is not None:
        threshold = stats.threshold(retrace.deviations)
    elif judge == SELF:
        threshold = _EVEN_CHANCE
        notices = (
            "the judge self is not calibrated for this model, so the search goes back below an "
            "even chance; llavacot calibrate measures better",
        )
    else:
        raise UserError(
            f"the judge {judge} is not calibrated for this model, so nobody knows which of its "
            "scores are good: give a threshold, or run llavacot calibrate"
        )
    if not math.isfinite(threshold):
        raise UserError(
            f"the threshold of judge {judge} is {threshold}: its calibration or the plan's "
            "deviations are beyond all scores; give a threshold, or run llavacot calibrate"
        )
    filled = dataclasses.replace(retrace, threshold=threshold)
    return dataclasses.replace(plan, retrace=filled), notices


def _stage_events(events: list[StageEvent], reader: StageReader) -> Iterator[Event]:
    """Converts the reader's stage events to events of the answer."""
    ended = len(reader.records) - sum(isinstance(event, Closed) for event in events)
    for event in events:
        if isinstance(event, Opened):
            yield StageStarted(event.stage)
        elif isinstance(event, Closed):
            record = reader.records[ended]
            yield StageEnded(event.stage, event.by_tag, record.tokens, record.note)
            ended += 1
        elif event.stage is None:
            yield FreeText(event.text)
        else:
            yield StageText(event.stage, event.text)


def _image_name(image: ImageSource | None) -> str | None:
    if image is None:
        return None
    if isinstance(image, bytes | OpenedImage):
        return "-"
    if isinstance(image, Image.Image):
        return getattr(image, "filename", None) or "image"
    return image_name(image.name if isinstance(image, RefusedImage) else image)
