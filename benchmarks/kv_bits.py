"""Measures the error and the memory of quantized K/V: `python -m benchmarks.kv_bits`.

Each model answers without quantization; then the same tokens are read again over K/V in 8 and in 4
bits, and the logits of every token are compared. The random checkpoint has a real picture's
geometry (4 tiles of 560 px, 6404 image tokens); the demo model answers questions of its little
world.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time
from pathlib import Path

import mlx.core as mx
import numpy as np
from PIL import Image

from benchmarks.checkpoint import TILE, write_checkpoint
from benchmarks.machine import machine
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.checkpoint.weights import load_model
from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import VALIDATION, draw, questions, scene
from llavacot_mlx.generate.decode import decode
from llavacot_mlx.generate.prefill import prefill
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.model.kv_budget import KVBudget, KVLimits
from llavacot_mlx.model.kv_cache import span_of_all
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.model.shared_prefix import SharedPrefixCache
from llavacot_mlx.prompt.image_processor import ImageProcessor, Tiles
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.prompt.tokenizer import Tokenizer, Turn
from llavacot_mlx.usage import Timings, Usage

BITS = (8, 4)
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--questions", type=int, default=20, help="questions for the demo model")
    parser.add_argument("--max-tokens", type=int, default=48, help="tokens of the random model")
    arguments = parser.parse_args()
    result: dict[str, object] = {"machine": machine()}
    print("| model | bits | image K/V | largest drift | mean drift | same likeliest token | step |")
    print("|---|---:|---:|---:|---:|---:|---:|")
    result["demo"] = _report("demo model", model_path(), _demo(arguments.questions), 320)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        write_checkpoint(folder, 2048)
        noise = np.random.default_rng(0).integers(0, 256, (2 * TILE, 2 * TILE, 3), dtype=np.uint8)
        asked = [(Image.fromarray(noise), "What is in the picture?")]
        result["random"] = _report("6404 image tokens", folder, asked, arguments.max_tokens)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "kv_bits.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {file}")


def _demo(count: int) -> list[tuple[Image.Image, str]]:
    asked = []
    for index in range(count):
        seed = VALIDATION.seed(index)
        world = scene(seed)
        question = questions(world, random.Random(f"rows {seed}"))[0]
        asked.append((draw(world), question.text))
    return asked


def _report(
    name: str, folder: Path, asked: list[tuple[Image.Image, str]], max_tokens: int
) -> dict[str, dict[str, float]]:
    config = load_config(folder)
    tokenizer, image_processor = (
        Tokenizer.load(folder, config),
        ImageProcessor.load(folder, config.vision),
    )
    model = load_model(folder, "float32")
    drifts: dict[int, list[np.ndarray]] = {bits: [] for bits in BITS}
    same: dict[int, list[np.ndarray]] = {bits: [] for bits in BITS}
    image_bytes: dict[int, float] = {}
    steps: dict[int, float] = {}
    for picture, question in asked:
        prompt = tuple(tokenizer.prompt([Turn("user", question, images=1)]))
        tiles = image_processor(picture)
        context = prefill(model, Prompt(prompt, (tiles,)), Usage(), Timings())
        stops = tokenizer.stop_ids
        answer = list(decode(context, Sampling(), 0, stops, max_tokens))
        exact, whole, step = _read(model, prompt, tiles, answer, None)
        scale = np.abs(exact).max(axis=-1)
        for bits in BITS:
            logits, kept, few_step = _read(model, prompt, tiles, answer, bits)
            drifts[bits].append(np.abs(logits - exact).max(axis=-1) / scale)
            same[bits].append(logits.argmax(-1) == exact.argmax(-1))
            image_bytes[bits] = kept / whole
            steps[bits] = few_step / step
    rows = {}
    for bits in BITS:
        drift, agreed = np.concatenate(drifts[bits]), np.concatenate(same[bits])
        rows[str(bits)] = {
            "image_kv": image_bytes[bits],
            "largest_drift": float(drift.max()),
            "mean_drift": float(drift.mean()),
            "same_token": float(agreed.mean()),
            "tokens": len(drift),
            "step": steps[bits],
        }
        print(
            f"| {name} | {bits} | {image_bytes[bits]:.2f} | {drift.max():.4f} | {drift.mean():.4f} "
            f"| {agreed.mean():.2%} of {len(drift)} | {steps[bits]:.2f} |"
        )
    return rows


def _read(
    model: Mllama, prompt: tuple[int, ...], tiles: Tiles, answer: list[int], bits: int | None
) -> tuple[np.ndarray, int, float]:
    """Logits of every token of an answer, (tokens, vocabulary); bytes of the images' K/V; s/token.

    The answer is read token by token, as it was decoded.
    """
    usage = Usage()
    kv_budget = KVBudget(usage, KVLimits(bits))
    context = prefill(model, Prompt(prompt, (tiles,)), usage, Timings(), kv_budget)
    assert context.image_kv is not None
    batch = SharedPrefixCache([context.state().path])
    rows = [context.logits]
    started = time.perf_counter()
    for token_id in answer[:-1]:
        spans = span_of_all(context.image_kv, 1)
        hidden = model.hidden(mx.array([[token_id]]), batch, spans)
        rows.append(model.logits(hidden[:, -1]))
        mx.eval(rows[-1])
    seconds = (time.perf_counter() - started) / max(1, len(answer) - 1)
    kept = sum(array.nbytes for array in context.image_kv.arrays)
    return np.array(mx.concatenate(rows)), kept, seconds


if __name__ == "__main__":
    main()
