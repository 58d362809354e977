"""The public API: a loaded model that answers questions about pictures."""

from __future__ import annotations

import time
from pathlib import Path

from .adapters import load_adapter
from .answering import Answering, Asked, Loaded
from .calibration import load_calibration
from .config_json import load_config
from .errors import UserError
from .events import Answered
from .kv_meter import KVLimits
from .pictures import ImageSource, TileCutter
from .plan_file import plan_from
from .plans import Plan, Settings, plan_of
from .tokenizer import Tokenizer
from .trace import Trace
from .weights import load_model

_NO_LIMITS = KVLimits()


class Assistant:
    """A model in memory, ready for questions."""

    def __init__(self, loaded: Loaded) -> None:
        self._loaded = loaded

    @classmethod
    def load(
        cls, path: str | Path, *, adapter: str | Path | None = None, dtype: str = "auto"
    ) -> Assistant:
        """Loads a model folder: one that `llavacot convert` wrote, mlx-vlm's, or Hugging Face's.

        `adapter` is the folder of an adapter that was trained on it; its calibration, where it has
        one, goes before the model's.

        `dtype` is "auto" (float32 on the CPU, 16 bits on a GPU), "float32", "float16" or
        "bfloat16". Raises UserError when the folder is no whole Mllama, or when the adapter
        is none for it.
        """
        started = time.perf_counter()
        folder = Path(path).expanduser()
        config = load_config(folder)
        tokenizer = Tokenizer.load(folder, config)
        cutter = TileCutter.load(folder, config.vision)
        calibration = load_calibration(folder)
        model = load_model(folder, dtype)
        if adapter is not None:
            place = Path(adapter).expanduser()
            load_adapter(model, place, folder)
            calibration = {**calibration, **load_calibration(place)}
        seconds = time.perf_counter() - started
        name = None if adapter is None else str(adapter)
        return cls(Loaded(model, tokenizer, cutter, calibration, str(path), name, seconds))

    def ask(
        self,
        image: ImageSource | None,
        question: str,
        *,
        search: str | Plan | None = None,
        candidates: int | None = None,
        judge: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int = 2048,
        seed: int = 0,
        limits: KVLimits = _NO_LIMITS,
    ) -> Trace:
        """Answers a question about a picture, and returns the record of the answer.

        `image` is a path, the bytes of a file, a PIL image, or None for a question without one.

        `search` is the name of a method (`plans.Method`); by default "sample" where a temperature
        is given and "greedy" otherwise. `candidates` and `judge` ("self", "logprob", "pairwise",
        "majority", or a judge from outside) change a method's own. Temperature 0 always takes the
        likeliest token; above it, tokens are drawn from the `top_p` nucleus, the same ones for the
        same `seed`. Everything but greedy draws at temperature 0.6 and top-p 0.9 unless told
        otherwise. `search` may also be a whole plan, such as `plan_of(Settings(…))` or
        `read_plan(file)` makes one; all of that then stands in the plan.

        Raises UserError for a picture that cannot be read, an empty question, settings that make
        no sense, or keys and values beyond the limits.
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
            limits=limits,
        ):
            if isinstance(event, Answered):
                return event.trace
        raise AssertionError("the stream ended without an answer")

    def replay(self, trace: Trace, image: ImageSource | None) -> Trace:
        """Asks again what a trace was asked, with its plan, its seed and its limits.

        In float32 on a CPU the same tokens come again. Raises UserError as `ask` does.
        """
        return self.ask(
            image,
            trace.question,
            search=plan_from(trace.search.plan),
            max_tokens=trace.max_tokens,
            seed=trace.seed,
            limits=KVLimits(trace.kv_bits),
        )

    def stream(
        self,
        image: ImageSource | None,
        question: str,
        *,
        search: str | Plan | None = None,
        candidates: int | None = None,
        judge: str | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        max_tokens: int = 2048,
        seed: int = 0,
        limits: KVLimits = _NO_LIMITS,
    ) -> Answering:
        """Like `ask`, but yields the events of the answer as they happen; the last is Answered."""
        if isinstance(search, Plan):
            if any(value is not None for value in (candidates, judge, temperature, top_p)):
                raise UserError("a plan says its candidates, judge, temperature and top_p itself")
            plan = search
        else:
            plan = plan_of(
                Settings(
                    search=search,
                    candidates=candidates,
                    judge=judge,
                    temperature=temperature,
                    top_p=top_p,
                )
            )
        if not question.strip():
            raise UserError("the question is empty")
        if max_tokens < 1:
            raise UserError(f"max_tokens must be at least 1, not {max_tokens}")
        return Answering(self._loaded, Asked(image, question, plan, max_tokens, seed, limits))
