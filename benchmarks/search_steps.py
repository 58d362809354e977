"""Measures a decode step with many candidates: `python -m benchmarks.search_steps`.

On a random checkpoint with a real picture's geometry (4 tiles of 560 px, 6404 image tokens):
seconds of a step for 1 to 16 candidates that are decoded together from one prompt, and for a single
path with `decode`; and bytes of K/V. Runs of all sizes take turns, and a ratio is the median of the
rounds' ratios. Tokens are sampled at the published temperature and top-p.

K/V are counted as memory that MLX has allocated for arrays: the picture's, the prompt's, and what
the candidates' own tokens add. Everything is printed and written to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlx.core as mx

from benchmarks.checkpoint import TILES, write_checkpoint, write_picture
from benchmarks.machine import machine
from benchmarks.sizes import CANDIDATES
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.generate.batch_decode import Token, decode_batch
from llavacot_mlx.generate.decode import decode
from llavacot_mlx.generate.decode_state import CandidateStart, DecodeState
from llavacot_mlx.generate.prefill import PrefilledPrompt, prefill
from llavacot_mlx.generate.sampling_params import PUBLISHED_SAMPLING
from llavacot_mlx.model.kv_cache import span_of_all
from llavacot_mlx.model.quantized_kv import dequantized
from llavacot_mlx.model.shared_prefix import SharedPrefixCache
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.prompt.images import open_image
from llavacot_mlx.prompt.tokenizer import Tokenizer, Turn
from llavacot_mlx.usage import Timings, Usage

QUESTION = "What is in the picture?"
RESULTS = Path(__file__).parent / "results"
WARM_UP = 2  # steps at the beginning of a run that are not counted


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=32, help="steps of one run")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[2048, 128256])
    parser.add_argument(
        "--own-tokens", type=int, nargs="+", default=[64, 256], help="at which K/V are counted"
    )
    arguments = parser.parse_args()
    result: dict[str, object] = {"machine": machine(), "rounds": arguments.rounds}
    print(json.dumps(result["machine"]))
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "noise.png"
        write_picture(picture, TILES)
        for vocabulary in arguments.vocabularies:
            folder = Path(scratch) / f"vocabulary-{vocabulary}"
            write_checkpoint(folder, vocabulary)
            asked = Asked.of(folder, picture)
            result[f"seconds of a step, vocabulary {vocabulary}"] = _steps(
                asked, vocabulary, arguments.rounds, arguments.steps
            )
        for tokens in arguments.own_tokens:
            result[f"bytes of K/V, {tokens} own tokens"] = _bytes(asked, tokens)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "search_steps.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {file}")


@dataclass(frozen=True)
class Asked:
    """A model that has read a picture and a question."""

    prompt: Prompt
    read: PrefilledPrompt
    state: DecodeState

    @classmethod
    def of(cls, folder: Path, picture: Path) -> Asked:
        config = load_config(folder)
        tokenizer, image_processor = (
            Tokenizer.load(folder, config),
            ImageProcessor.load(folder, config.vision),
        )
        ids = tokenizer.prompt([Turn("user", QUESTION, images=1)])
        prompt = Prompt(tuple(ids), (image_processor(open_image(picture)),))
        model = load_model(folder)
        read = prefill(model, prompt, Usage(), Timings())
        return cls(prompt, read, read.state())

    def together(self, candidates: int, steps: int) -> Iterable[object]:
        """Yields a token of the first candidate for each step of all candidates."""
        starts = [CandidateStart(self.state, str(number), steps) for number in range(candidates)]
        events = decode_batch(self.read, starts, PUBLISHED_SAMPLING, 0, lambda _: False)
        return (event for event in events if isinstance(event, Token) and event.candidate == 0)

    def alone(self, steps: int) -> Iterable[object]:
        """Yields the tokens of a single path, decoded without a search."""
        cache = self.read.model.language_model.new_cache()
        (prefix,) = self.state.path.segments
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            cache.extend(layer, dequantized(keys), dequantized(values))
        cache.advance(prefix.length)
        return decode(replace(self.read, cache=cache), PUBLISHED_SAMPLING, 0, frozenset(), steps)


def _steps(asked: Asked, vocabulary: int, rounds: int, steps: int) -> dict[str, object]:
    runs: dict[str, Callable[[], Iterable[object]]] = {
        str(count): partial(asked.together, count, steps) for count in CANDIDATES
    }
    runs["single path"] = partial(asked.alone, steps)
    seconds: dict[str, list[float]] = {title: [] for title in runs}
    for _ in range(rounds):
        for title, run in runs.items():
            times = [time.perf_counter() for _ in run()]
            gaps = [after - before for before, after in itertools.pairwise(times)]
            seconds[title].append(statistics.median(gaps[WARM_UP:]))
    print(f"\na decode step, {len(asked.prompt.token_ids)} prompt tokens, vocabulary {vocabulary}")
    print(f"{'candidates':14}{'seconds':>10}{'ratio to one':>14}{'each':>10}")
    summary: dict[str, object] = {}
    for title, values in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(values, seconds["1"], strict=True))
        summary[title] = {"seconds": values, "median_ratio": ratio}
        each = ratio / int(title) if title.isdigit() else ratio
        print(f"{title:14}{statistics.median(values):10.4f}{ratio:14.2f}{each:10.2f}")
    return summary


def _bytes(asked: Asked, tokens: int) -> dict[str, object]:
    print(f"\nK/V of a picture, a prompt and candidates of {tokens} tokens each")
    print(f"{'candidates':14}{'MB':>10}{'ratio to one':>14}")
    image_kv = asked.read.image_kv
    assert image_kv is not None
    shared = sum(kv.nbytes for kv in (*image_kv.keys, *image_kv.values))
    shared += sum(segment.nbytes for segment in asked.state.path.segments)
    sizes = [shared + _own_bytes(asked, count, tokens) for count in CANDIDATES]
    summary: dict[str, object] = {}
    for count, size in zip(CANDIDATES, sizes, strict=True):
        summary[str(count)] = {"bytes": size, "ratio": size / sizes[0]}
        print(f"{count:<14}{size / 1e6:10.2f}{size / sizes[0]:14.2f}")
    return summary


def _own_bytes(asked: Asked, candidates: int, tokens: int) -> int:
    """Bytes that MLX allocates in addition while candidates decode tokens together."""
    before = mx.get_active_memory()
    batch = SharedPrefixCache([asked.state.path] * candidates)
    spans = span_of_all(asked.read.image_kv, 1)
    for _ in range(tokens):
        mx.eval(asked.read.model.hidden(mx.zeros((candidates, 1), mx.int32), batch, spans))
    return mx.get_active_memory() - before


if __name__ == "__main__":
    main()
