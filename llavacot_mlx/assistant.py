"""The public API: a loaded model that answers questions about images."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Unpack, overload

from llavacot_mlx.answer import AnswerStream, LoadedModel
from llavacot_mlx.batch.answer_batch import answer_all
from llavacot_mlx.batch.size import default_batch_size
from llavacot_mlx.checkpoint.adapters import load_adapter
from llavacot_mlx.checkpoint.completeness import check_complete
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.hub import find
from llavacot_mlx.checkpoint.safetensors import weights_note
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.ngram_draft import DraftMemory
from llavacot_mlx.model.kv_budget import KVLimits
from llavacot_mlx.plan.plan_yaml import plan_from_dict
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.images import ImageSource
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.request import AskOptions, Request, make_request
from llavacot_mlx.search.calibration import load_calibration
from llavacot_mlx.trace.record import Trace

_TAGS = "\n\n".join(f"{stage.opening} {stage.closing}" for stage in Stage)


class Assistant:
    """A model in memory, ready for questions."""

    def __init__(self, loaded: LoadedModel) -> None:
        self._loaded = loaded

    @classmethod
    def load(
        cls, path: str | Path, *, adapter: str | Path | None = None, dtype: str = "auto"
    ) -> Assistant:
        """Loads a model: one that `llavacot convert` wrote, mlx-vlm's, or Hugging Face's.

        `path` is a folder, or an id on the hub such as "owner/name" or "owner/name@revision", which
        is downloaded if it is not here yet. What is odd about the files is a Python warning.

        `adapter` is the folder of an adapter that was trained on the model; its calibration, if it
        has one, takes precedence over the model's.

        `dtype` is "auto" (float32 on the CPU, 16 bits on a GPU), "float32", "float16" or
        "bfloat16". Raises UserError when the folder is not a complete Mllama, or when the adapter
        does not fit it.
        """
        started = time.perf_counter()
        folder = find(str(path))
        if note := weights_note(folder):
            warnings.warn(note, stacklevel=2)
        check_complete(folder)
        config = load_config(folder)
        tokenizer = Tokenizer.load(folder, config)
        image_processor = ImageProcessor.load(folder, config.vision)
        calibration = load_calibration(folder)
        model = load_model(folder, dtype)
        if adapter is not None:
            adapter_folder = Path(adapter).expanduser()
            load_adapter(model, adapter_folder, folder)
            calibration = {**calibration, **load_calibration(adapter_folder)}
        seconds = time.perf_counter() - started
        return cls(
            LoadedModel(
                model=model,
                tokenizer=tokenizer,
                image_processor=image_processor,
                calibration=calibration,
                name=str(path),
                adapter=None if adapter is None else str(adapter),
                load_s=seconds,
                draft_memory=DraftMemory([tokenizer.encode(_TAGS)]),
            )
        )

    def ask(self, image: ImageSource | None, question: str, **options: Unpack[AskOptions]) -> Trace:
        """Answers a question about an image, and returns the record of the answer.

        `image` is a path, the bytes of a file, a PIL image, or None for a question without one. The
        keywords are search, candidates, judge, temperature, top_p, max_tokens, seed, limits,
        repetition_stop and speculation, see `request.AskOptions`. The same seed gives the same
        answer.

        Raises UserError for an image that cannot be read, an empty question, settings that
        contradict each other, or keys and values beyond the limits.
        """
        return self.stream(image, question, **options).result()

    def ask_many(
        self,
        requests: Iterable[Request],
        *,
        batch_size: int | None = None,
        kv_budget: int | None = None,
    ) -> Iterator[tuple[int, Trace | UserError]]:
        """Answers many requests together, each as it would be answered alone.

        Yields each request's index with its trace as it ends, or with the UserError that ended it;
        the others go on. Requests are taken from the iterable as there is room for them.

        At most `batch_size` rows are decoded at once; a search of n candidates is n rows. By
        default it is `batch_size_for` the first request. All keys and values together stay within
        `kv_budget` bytes, if it is given. Raises UserError for a batch size or budget below 1.
        """
        return answer_all(self._loaded, requests, batch_size, kv_budget)

    def batch_size_for(self, request: Request, kv_budget: int | None = None) -> int:
        """Returns how many rows like a request's fit into memory, and into `kv_budget` bytes."""
        return default_batch_size(self._loaded, request, kv_budget)

    def replay(self, trace: Trace, image: ImageSource | None) -> Trace:
        """Asks a trace's question again, with its plan, seed and limits.

        In float32 on a CPU this gives the same tokens. Raises UserError as `ask` does.
        """
        return self.ask(
            image,
            trace.question,
            search=plan_from_dict(trace.search.plan),
            max_tokens=trace.max_tokens,
            seed=trace.seed,
            limits=KVLimits(trace.kv_bits),
            repetition_stop=trace.repetition_stop,
        )

    @overload
    def stream(self, request: Request, /) -> AnswerStream: ...

    @overload
    def stream(
        self, image: ImageSource | None, question: str, **options: Unpack[AskOptions]
    ) -> AnswerStream: ...

    def stream(
        self,
        image: Request | ImageSource | None,
        question: str = "",
        **options: Unpack[AskOptions],
    ) -> AnswerStream:
        """Like `ask`, but yields the events of the answer as they happen; the last is Answered.

        A `Request` may take the place of all arguments.
        """
        if not isinstance(image, Request):
            return AnswerStream(self._loaded, make_request(image, question, **options))
        if question or options:
            raise TypeError("a Request already has the question and all options")
        return AnswerStream(self._loaded, image)
