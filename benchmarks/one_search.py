"""Measures one search in its own process: `python -m benchmarks.one_search together|…|mlx-vlm …`.

There are four ways to decode the same tree of candidates (see `search_tree.py`):

- together: our engine. The picture is read once, and each round is decoded as one batch.
- one-by-one: our engine with one candidate at a time. The picture and every prefix are still read
  once, but each candidate is decoded in a batch of its own.
- cold: our engine, in the reference's way. For every candidate the picture is encoded and
  the question and the prefix are read again.
- mlx-vlm: the reference's way, with mlx-vlm.

The clock starts when the model is loaded. Prints one JSON object on the last line of stdout.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from benchmarks.search_tree import Planned, swires_rounds
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.generate.batch_decode import Ended, decode_batch
from llavacot_mlx.generate.decode import decode
from llavacot_mlx.generate.decode_state import CandidateStart, DecodeState
from llavacot_mlx.generate.prefill import prefill
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.prompt.images import open_image
from llavacot_mlx.prompt.tokenizer import Tokenizer, Turn
from llavacot_mlx.usage import Timings, Usage

QUESTION = "What is in the picture?"
WORD = " red"  # one token, also when repeated: n of them stand for any prefix of n tokens


@dataclass
class Measured:
    """The time and memory of one search, and the tokens that it computed."""

    total_s: float
    picture_and_prefix_s: float
    """Seconds of the total before the first token of each candidate that began with the picture."""
    decoded_tokens: int
    prefilled_tokens: int
    images_encoded: int


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("way", choices=WAYS)
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--candidates", type=int, required=True)
    parser.add_argument("--retraces", type=int, required=True)
    arguments = parser.parse_args()
    rounds = swires_rounds(arguments.candidates, arguments.retraces)
    measured = WAYS[arguments.way](arguments.model, arguments.picture, rounds)
    assert measured.decoded_tokens == sum(one.tokens for planned in rounds for one in planned)
    print(json.dumps(asdict(measured)))


def _together(folder: Path, picture: Path, rounds: list[list[Planned]]) -> Measured:
    return _shared(folder, picture, rounds)


def _one_by_one(folder: Path, picture: Path, rounds: list[list[Planned]]) -> Measured:
    return _shared(folder, picture, [[one] for planned in rounds for one in planned])


def _shared(folder: Path, picture: Path, batches: list[list[Planned]]) -> Measured:
    """Runs our engine: a candidate continues its parent."""
    loaded, usage = _Loaded(folder), Usage()
    started = time.perf_counter()
    context = prefill(loaded.model, loaded.prompt(picture, 0), usage, Timings())
    prepared = time.perf_counter() - started
    state: dict[str | None, DecodeState] = {None: context.state()}
    for batch in batches:
        starts = [CandidateStart(state[one.parent], one.key, one.tokens) for one in batch]
        events = decode_batch(context, starts, Sampling(), 0, lambda _: False)
        for event in events:
            if isinstance(event, Ended):
                state[batch[event.candidate].key] = event.state
    total = time.perf_counter() - started
    return Measured(
        total, prepared, usage.decoded_tokens, usage.prefilled_tokens, usage.images_encoded
    )


def _cold(folder: Path, picture: Path, rounds: list[list[Planned]]) -> Measured:
    """Runs our engine: every candidate begins with the picture, the question and its prefix."""
    loaded, usage = _Loaded(folder), Usage()
    prepared = 0.0
    started = time.perf_counter()
    for one in (one for planned in rounds for one in planned):
        begun = time.perf_counter()
        prompt = loaded.prompt(picture, one.prefix_tokens)
        context = prefill(loaded.model, prompt, usage, Timings())
        prepared += time.perf_counter() - begun
        for _ in decode(context, Sampling(), 0, frozenset(), one.tokens):
            pass
    total = time.perf_counter() - started
    return Measured(
        total, prepared, usage.decoded_tokens, usage.prefilled_tokens, usage.images_encoded
    )


def _mlx_vlm(folder: Path, picture: Path, rounds: list[list[Planned]]) -> Measured:
    """Runs mlx-vlm's generation: every candidate begins with the picture."""
    from mlx_vlm import load
    from mlx_vlm.generate import stream_generate

    model, processor = load(str(folder))
    measured = Measured(0.0, 0.0, 0, 0, 0)
    started = time.perf_counter()
    for one in (one for planned in rounds for one in planned):
        begun = time.perf_counter()
        responses = stream_generate(
            model,
            processor,
            "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>"
            f"{QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
            + WORD
            * one.prefix_tokens,
            image=[str(picture)],
            max_tokens=one.tokens,
            temperature=0.0,
        )
        response = next(responses)
        measured.picture_and_prefix_s += time.perf_counter() - begun
        for response in responses:  # noqa: B007
            pass
        measured.decoded_tokens += response.generation_tokens
        measured.prefilled_tokens += response.prompt_tokens
        measured.images_encoded += 1
    measured.total_s = time.perf_counter() - started
    return measured


class _Loaded:
    """Our engine's model, and its tokenizer and image processor."""

    def __init__(self, folder: Path) -> None:
        config = load_config(folder)
        self.model = load_model(folder)
        self._tokenizer = Tokenizer.load(folder, config)
        self._image_processor = ImageProcessor.load(folder, config.vision)

    def prompt(self, picture: Path, prefix_tokens: int) -> Prompt:
        """The picture, the question, and a prefix of the answer."""
        ids = self._tokenizer.prompt([Turn("user", QUESTION, images=1)])
        ids += self._tokenizer.encode(WORD) * prefix_tokens
        return Prompt(tuple(ids), (self._image_processor(open_image(picture)),))


WAYS: dict[str, Callable[[Path, Path, list[list[Planned]]], Measured]] = {
    "together": _together,
    "one-by-one": _one_by_one,
    "cold": _cold,
    "mlx-vlm": _mlx_vlm,
}


if __name__ == "__main__":
    main()
