"""Measures the size and the error of each quantization recipe: `python -m benchmarks.recipes`.

Every recipe converts the demo model, which then answers held-out questions of its little world, and
a random checkpoint with the 11B's widths. For each, the table has bits per weight and size; the
error of every token's logits, when both models read the tokens that the unquantized one wrote; how
often the token ranked first stays the same; and for the demo model the fraction of right answers.
Random weights have no clear first token, so their agreement is a lower bound.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image

from benchmarks.checkpoint import write_picture
from benchmarks.machine import machine
from benchmarks.real_widths import write_real_widths
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.convert.convert import Estimate, convert
from llavacot_mlx.convert.recipes import RECIPES, Recipe, with_vision
from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import TEST, draw, questions, scene
from llavacot_mlx.evaluate.statistics import wilson
from llavacot_mlx.generate.decode import decode
from llavacot_mlx.generate.prefill import prefill
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.model.kv_cache import span_of_all
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_processor import ImageProcessor, Tiles
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.prompt.tokenizer import Tokenizer, Turn
from llavacot_mlx.usage import Timings, Usage

RESULT = Path(__file__).parent / "results" / "recipes.json"
MOST_TOKENS = 320  # reference answers have at most about 200
DEFAULT = "4bit"  # group size of `llavacot convert -q`


@dataclass(frozen=True)
class Asked:
    picture: Image.Image
    question: str
    answer: str | None
    """The right answer, if there is one."""


@dataclass(frozen=True)
class Reading:
    """A prompt, what the unquantized model wrote after it, and its logits of every token."""

    prompt: tuple[int, ...]
    tiles: Tiles
    written: list[int]
    logits: np.ndarray


@dataclass(frozen=True)
class Row:
    recipe: str
    bits_per_weight: float
    weight_bytes: int
    mean_drift: float
    """Largest difference of a token's logits over its largest logit; mean over tokens."""
    largest_drift: float
    same_token: float
    tokens: int
    right: int | None
    questions: int | None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=100, help="questions for the demo model")
    parser.add_argument(
        "--readings", type=int, default=20, help="answers whose logits are compared"
    )
    parser.add_argument("--recipes", nargs="+", choices=RECIPES, default=list(RECIPES))
    parser.add_argument(
        "--text-layers", type=int, default=4, help="of the random checkpoint; 0 leaves it out"
    )
    parser.add_argument("--max-tokens", type=int, default=32, help="tokens of the random model")
    arguments = parser.parse_args()
    plans: list[Recipe | None] = [None]
    for name in arguments.recipes:
        plans += [RECIPES[name], *([with_vision(RECIPES[name])] if name == DEFAULT else [])]
    result: dict[str, object] = {"machine": machine()}
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        asked = _demo_questions(arguments.questions)
        result["demo"] = _table(
            "demo model", model_path(), plans, asked, arguments.readings, MOST_TOKENS, place
        )
        if arguments.text_layers:
            picture = place / "noise.png"
            write_picture(picture, 1)
            folder = place / "real-widths"
            write_real_widths(folder, arguments.text_layers, 5, 1)
            noise = [Asked(Image.open(picture), "What is in the picture?", None)]
            title = f"random, the 11B's widths, {arguments.text_layers} text layers"
            result["random"] = _table(title, folder, plans, noise, 1, arguments.max_tokens, place)
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULT}")


def _demo_questions(count: int) -> list[Asked]:
    asked = []
    for index in range(count):
        seed = TEST.seed(index)
        world = scene(seed)
        question = questions(world, random.Random(f"recipes {seed}"))[0]
        asked.append(Asked(draw(world), question.text, question.answer))
    return asked


def _table(
    title: str,
    source: Path,
    plans: Sequence[Recipe | None],
    asked: Sequence[Asked],
    readings: int,
    max_tokens: int,
    place: Path,
) -> list[dict[str, object]]:
    """Prints and returns a row for every recipe."""
    print(f"\n{title}\n")
    print("| recipe | bits per weight | size | mean drift | largest | same token | right | 95% |")
    print("|---|---:|---:|---:|---:|---:|---:|---:|", flush=True)
    written = _written(source, asked[:readings], max_tokens)
    rows = []
    for recipe in plans:
        row = _row(recipe, source, asked, written, place)
        rows.append(asdict(row))
        right = share = ""
        if row.right is not None and row.questions:
            low, high = wilson(row.right, row.questions)
            right = f"{row.right} of {row.questions}"
            share = f"{100 * low:.0f}–{100 * high:.0f}%"
        print(
            f"| {row.recipe} | {row.bits_per_weight:.2f} | {row.weight_bytes / 1e6:,.1f} MB "
            f"| {row.mean_drift:.4f} | {row.largest_drift:.4f} | {row.same_token:.1%} "
            f"| {right} | {share} |",
            flush=True,
        )
    return rows


def _row(
    recipe: Recipe | None,
    source: Path,
    asked: Sequence[Asked],
    written: Sequence[Reading],
    place: Path,
) -> Row:
    estimates: list[Estimate] = []
    target = place / "converted"
    convert(
        source,
        target,
        dtype="bfloat16",
        quantization=recipe,
        force=True,
        estimated=estimates.append,
    )
    drifts, same = _drift(target, written)
    right = None
    if asked[0].answer is not None:
        assistant = Assistant.load(target, dtype="float32")
        right = sum(
            assistant.ask(one.picture, one.question, max_tokens=MOST_TOKENS).answer == one.answer
            for one in asked
        )
    return Row(
        recipe.name if recipe else "bfloat16",
        estimates[0].bits_per_weight,
        estimates[0].weight_bytes,
        float(drifts.mean()),
        float(drifts.max()),
        float(same.mean()),
        len(drifts),
        right,
        None if right is None else len(asked),
    )


def _written(folder: Path, asked: Sequence[Asked], max_tokens: int) -> list[Reading]:
    config = load_config(folder)
    tokenizer, image_processor = (
        Tokenizer.load(folder, config),
        ImageProcessor.load(folder, config.vision),
    )
    model = load_model(folder, "float32")
    readings = []
    for one in asked:
        prompt = tuple(tokenizer.prompt([Turn("user", one.question, images=1)]))
        tiles = image_processor(one.picture)
        context = prefill(model, Prompt(prompt, (tiles,)), Usage(), Timings())
        answer = decode(context, Sampling(), 0, tokenizer.stop_ids, max_tokens)
        written = list(answer)
        readings.append(Reading(prompt, tiles, written, _read(model, prompt, tiles, written)))
    return readings


def _drift(folder: Path, written: Sequence[Reading]) -> tuple[np.ndarray, np.ndarray]:
    """For every token, the error of its logits, and whether the token ranked first is the same."""
    model = load_model(folder, "float32")
    drifts, same = [], []
    for one in written:
        logits = _read(model, one.prompt, one.tiles, one.written)
        scale = np.abs(one.logits).max(axis=-1)
        drifts.append(np.abs(logits - one.logits).max(axis=-1) / scale)
        same.append(logits.argmax(-1) == one.logits.argmax(-1))
    return np.concatenate(drifts), np.concatenate(same)


def _read(
    model: Mllama, prompt: tuple[int, ...], tiles: Tiles, written: Sequence[int]
) -> np.ndarray:
    """The logits that each written token is chosen from, (tokens, vocabulary)."""
    context = prefill(model, Prompt(prompt, (tiles,)), Usage(), Timings())
    first, rest = context.logits, list(written[:-1])
    if not rest:
        return np.array(first)
    spans = span_of_all(context.image_kv, len(rest))
    hidden = model.hidden(mx.array([rest]), context.single_path_cache(), spans)
    return np.array(mx.concatenate([first, model.logits(hidden[0])]))


if __name__ == "__main__":
    main()
