"""Measures many questions in one batch: `python -m benchmarks.batched_questions questions|steps`.

`questions`: questions a second on the demo world, answered one by one (`Assistant.ask`) and
together (`Assistant.ask_many`) at several batch sizes, from the picture to the last token.
Processor time is measured too: on cores that others use as well, seconds depend on them.

`steps`: decoded tokens a second on a random checkpoint of a real picture's geometry (4 tiles of 560
px, 6404 image tokens) with the real vocabulary, for one path alone and for paths about as many
different pictures, with what the parts of a step cost. A picture is random features here: the
vision tower takes no part in decoding.

All ways take turns, and a ratio is the median of the rounds' ratios. Everything is printed and
written to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import mlx.core as mx

from benchmarks.checkpoint import TILES, write_checkpoint
from benchmarks.machine import machine
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import TEST, draw, questions, scene
from llavacot_mlx.generate.decode import decode
from llavacot_mlx.generate.prefill import PrefilledPrompt
from llavacot_mlx.generate.sampling import row_keys, sample
from llavacot_mlx.generate.sampling_params import PUBLISHED_SAMPLING, Sampling
from llavacot_mlx.generate.shared_decoder import SharedDecoder
from llavacot_mlx.generate.waiting import Waiting
from llavacot_mlx.model.images_by_row import ImagesByRow
from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.kv_cache import ImageKV, KVCache, span_of_all
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.tokenizer import Tokenizer, Turn
from llavacot_mlx.request import Request, make_request
from llavacot_mlx.trace.record import Trace
from llavacot_mlx.usage import Usage

RESULTS = Path(__file__).parent / "results"
VOCABULARY = 128256
WARM_UP = 2  # steps at the beginning of a run that are not counted
SAMPLINGS = {"greedy": Sampling(), "sampled": PUBLISHED_SAMPLING}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("part", choices=("questions", "steps"))
    parser.add_argument("--questions", type=int, default=200, help="of the demo world, in a round")
    parser.add_argument("--batch-sizes", type=int, nargs="+", default=[1, 16, 32])
    parser.add_argument("--pictures", type=int, nargs="+", default=[1, 2, 4, 8])
    parser.add_argument("--steps", type=int, default=24, help="decode steps of one run")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    result: dict[str, object] = {
        "machine": machine(),
        "OPENBLAS_NUM_THREADS": os.environ.get("OPENBLAS_NUM_THREADS", ""),
        "load average before": os.getloadavg(),
        "rounds": arguments.rounds,
    }
    print(json.dumps(result["machine"]))
    if arguments.part == "questions":
        result |= _questions(arguments.questions, arguments.batch_sizes, arguments.rounds)
    else:
        with tempfile.TemporaryDirectory() as scratch:
            model, read = _read_pictures(Path(scratch), max(arguments.pictures))
        for title, sampling in SAMPLINGS.items():
            result[f"seconds of a step, {title}"] = _steps(
                read, arguments.pictures, sampling, arguments.rounds, arguments.steps, title
            )
        result["seconds of its parts"] = _parts(
            model, read, arguments.pictures, arguments.rounds, arguments.steps
        )
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / f"batched_{arguments.part}.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {file}")


def _questions(count: int, sizes: Sequence[int], rounds: int) -> dict[str, object]:
    """Seconds for `count` questions of the demo world, one by one and at each batch size."""
    assistant = Assistant.load(model_path())
    requests = [_demo_request(index) for index in range(count)]

    def one_by_one() -> list[Trace]:
        return [assistant.stream(request).result() for request in requests]

    def together(size: int) -> list[Trace]:
        answers = dict(assistant.ask_many(requests, batch_size=size))
        return [trace for _, trace in sorted(answers.items()) if isinstance(trace, Trace)]

    runs: dict[str, Callable[[], list[Trace]]] = {"one by one": one_by_one}
    runs |= {f"batch size {size}": partial(together, size) for size in sizes}
    seconds: dict[str, list[float]] = {title: [] for title in runs}
    processor: dict[str, list[float]] = {title: [] for title in runs}
    expected: list[Trace] = []
    for _ in range(rounds):
        for title, run in runs.items():
            began, began_processor = time.perf_counter(), time.process_time()
            traces = run()
            seconds[title].append(time.perf_counter() - began)
            processor[title].append(time.process_time() - began_processor)
            print(f"{title}: {seconds[title][-1]:.1f} s", flush=True)
            expected = expected or traces  # of the first run, one by one
            differing = sum(
                one.token_ids != other.token_ids
                for one, other in zip(expected, traces, strict=True)
            )
            assert not differing, f"{title}: {differing} answers differ"
    print(f"\n{count} questions of the demo world, every token equal")
    print(f"{'':16}{'questions/s':>12}{'ratio':>8}{'ratio of processor time':>26}")
    summary: dict[str, object] = {"questions": count}
    for title, values in seconds.items():
        ratio = _median_ratio(seconds["one by one"], values)
        work = _median_ratio(processor["one by one"], processor[title])
        summary[title] = {
            "seconds": values,
            "processor_seconds": processor[title],
            "median_ratio": ratio,
            "median_ratio_of_processor_seconds": work,
        }
        print(f"{title:16}{count / statistics.median(values):12.2f}{ratio:8.2f}{work:26.2f}")
    summary["shares of one by one"] = shares = _shares(expected)
    print("one by one: " + ", ".join(f"{name} {share:.0%}" for name, share in shares.items()))
    return summary


def _demo_request(index: int) -> Request:
    content = scene(TEST.seed(index))
    asked = questions(content, random.Random(f"rows {TEST.seed(index)}"))[0]
    return make_request(draw(content), asked.text)


def _shares(traces: Sequence[Trace]) -> dict[str, float]:
    """What part of the time the stages of answering take."""
    total = sum(trace.timings.total_s for trace in traces)
    return {
        name: sum(getattr(trace.timings, name) for trace in traces) / total
        for name in ("vision_s", "prefill_s", "decode_s")
    }


def _read_pictures(scratch: Path, count: int) -> tuple[Mllama, list[PrefilledPrompt]]:
    """Reads a prompt about each of some pictures, with the random checkpoint."""
    folder = scratch / "model"
    write_checkpoint(folder, VOCABULARY)
    config = load_config(folder)
    model = load_model(folder)
    tokenizer = Tokenizer.load(folder, config)
    tokens = TILES * config.vision.tokens_per_tile
    read = []
    for number in range(count):
        features = mx.random.normal((1, tokens, config.text.hidden_size), key=mx.random.key(number))
        image_kv = model.language_model.project_image_kv(features, (tokens,))
        ids = tokenizer.prompt([Turn("user", f"{'What ' * number}is it?", images=1)])
        cache = model.language_model.new_cache()
        hidden = model.hidden(mx.array([ids]), cache, span_of_all(image_kv, len(ids)))
        logits = model.logits(hidden[:, -1])
        mx.eval(logits, cache.state(), image_kv.arrays)
        usage = Usage()
        read.append(
            PrefilledPrompt(
                model=model,
                image_kv=image_kv,
                usage=usage,
                kv_budget=KVBudget(usage),
                cache=cache,
                logits=logits,
            )
        )
    return model, read


@dataclass(frozen=True)
class _Reader:
    """Prompts that were read, to be decoded any number of times."""

    read: Sequence[PrefilledPrompt]
    sampling: Sampling
    steps: int

    def alone(self) -> Iterator[float]:
        """Yields the time after each token of the first prompt, decoded alone."""
        for _ in decode(self._fresh(0, None), self.sampling, 0, frozenset(), self.steps):
            yield time.perf_counter()

    def together(self, count: int) -> Iterator[float]:
        """Yields the time after each step of `count` prompts."""
        decoder = SharedDecoder(self.read[0].model)
        paths = [
            decode(self._fresh(row, decoder), self.sampling, row, frozenset(), self.steps)
            for row in range(count)
        ]
        for _ in range(self.steps):
            for path in paths:
                while not isinstance(next(path), Waiting):
                    pass
            decoder.step()
            yield time.perf_counter()

    def _fresh(self, row: int, decoder: SharedDecoder | None) -> PrefilledPrompt:
        (prefix,) = self.read[row].state().path.segments
        plain = [
            [kv for kv in pair if isinstance(kv, mx.array)] for pair in (prefix.keys, prefix.values)
        ]
        return replace(self.read[row], cache=KVCache.of(*plain), decoder=decoder)


def _steps(
    read: Sequence[PrefilledPrompt],
    counts: Sequence[int],
    sampling: Sampling,
    rounds: int,
    steps: int,
    title: str,
) -> dict[str, object]:
    reader = _Reader(read, sampling, steps)
    runs: dict[str, Callable[[], Iterator[float]]] = {"alone": reader.alone}
    runs |= {str(count): partial(reader.together, count) for count in counts}
    seconds: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            gaps = [after - before for before, after in itertools.pairwise(run())]
            seconds[name].append(statistics.median(gaps[WARM_UP:]))
    print(f"\na decode step, pictures of {TILES} tiles, vocabulary {VOCABULARY}, {title}")
    print(f"{'pictures':10}{'ms':>8}{'tokens/s':>10}{'ratio':>8}")
    summary: dict[str, object] = {}
    for name, values in seconds.items():
        rows = int(name) if name.isdigit() else 1
        ratio = rows * _median_ratio(seconds["alone"], values)
        median = statistics.median(values)
        summary[name] = {"seconds": values, "median_ratio_of_tokens_per_second": ratio}
        print(f"{name:10}{median * 1e3:8.1f}{rows / median:10.1f}{ratio:8.2f}")
    return summary


def _parts(
    model: Mllama,
    read: Sequence[PrefilledPrompt],
    counts: Sequence[int],
    rounds: int,
    steps: int,
) -> dict[str, object]:
    """Seconds of the parts of a step that are worth naming, each on its own."""
    text = model.config.text
    summary: dict[str, object] = {}
    print(f"\n{'pictures':10}{'head':>10}{'pictures':>10}{'sampling':>10}   ms of a step")
    for count in counts:
        hidden = mx.random.normal((count, 1, text.hidden_size))
        logits = model.logits(hidden)[:, 0]
        queries = mx.random.normal((count, text.num_attention_heads, 1, text.head_dim))
        images = ImagesByRow([_image_kv(each) for each in read[:count]])
        layers = range(len(text.cross_attention_layers))
        keys = row_keys([(row, "0", 0) for row in range(count)])
        mx.eval(hidden, logits, queries, keys)
        parts: dict[str, Callable[[], object]] = {
            "output head": lambda: mx.eval(model.logits(hidden)),  # noqa: B023
            "attention to pictures": lambda: mx.eval(
                [images.attend(layer, queries) for layer in layers]  # noqa: B023
            ),
            "sampling": lambda: mx.eval(sample(logits, PUBLISHED_SAMPLING, keys)),  # noqa: B023
        }
        medians = {name: _median_seconds(part, rounds * steps) for name, part in parts.items()}
        summary[str(count)] = medians
        print(f"{count:<10}" + "".join(f"{1e3 * value:10.1f}" for value in medians.values()))
    return summary


def _image_kv(read: PrefilledPrompt) -> ImageKV:
    assert read.image_kv is not None
    return read.image_kv


def _median_seconds(run: Callable[[], object], times: int) -> float:
    seconds = []
    for _ in range(times):
        began = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)


def _median_ratio(ours: Sequence[float], others: Sequence[float]) -> float:
    return statistics.median(one / other for one, other in zip(ours, others, strict=True))


if __name__ == "__main__":
    main()
