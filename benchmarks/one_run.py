"""Measures one answer in its own process: `python -m benchmarks.one_run ours|mlx-vlm …`.

Prints one JSON object on the last line of stdout.
"""

from __future__ import annotations

import argparse
import itertools
import json
import resource
import sys
import time
from pathlib import Path

QUESTION = "What is in the picture?"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("program", choices=("ours", "mlx-vlm"))
    parser.add_argument("model", type=Path)
    parser.add_argument("picture", type=Path)
    parser.add_argument("--max-tokens", type=int, required=True)
    arguments = parser.parse_args()
    run = _ours if arguments.program == "ours" else _mlx_vlm
    times = run(arguments.model, arguments.picture, arguments.max_tokens)
    steps = [after - before for before, after in itertools.pairwise(times[1:])]
    print(
        json.dumps(
            {
                "first_token_s": times[1] - times[0],
                "decode_step_s": sorted(steps)[len(steps) // 2],
                "tokens": len(times) - 1,
                "peak_rss_bytes": _peak_rss_bytes(),
            }
        )
    )


def _ours(model: Path, picture: Path, max_tokens: int) -> list[float]:
    """Yields the seconds of the question, and then of each token."""
    from llavacot_mlx.checkpoint.config_json import load_config
    from llavacot_mlx.checkpoint.weights import load_model
    from llavacot_mlx.generate.decode import decode
    from llavacot_mlx.generate.prefill import prefill
    from llavacot_mlx.generate.sampling_params import Sampling
    from llavacot_mlx.prompt.image_processor import ImageProcessor
    from llavacot_mlx.prompt.image_spans import Prompt
    from llavacot_mlx.prompt.images import open_image
    from llavacot_mlx.prompt.tokenizer import Tokenizer, Turn
    from llavacot_mlx.usage import Timings, Usage

    config = load_config(model)
    tokenizer, image_processor = (
        Tokenizer.load(model, config),
        ImageProcessor.load(model, config.vision),
    )
    backbone = load_model(model)
    usage = Usage()
    times = [time.perf_counter()]
    prompt = Prompt(
        tuple(tokenizer.prompt([Turn("user", QUESTION, images=1)])),
        (image_processor(open_image(picture)),),
    )
    context = prefill(backbone, prompt, usage, Timings())
    for _ in decode(context, Sampling(), 0, tokenizer.stop_ids, max_tokens):
        times.append(time.perf_counter())
    return times


def _mlx_vlm(model: Path, picture: Path, max_tokens: int) -> list[float]:
    """Yields the seconds of the question, and then of each token."""
    from mlx_vlm import load
    from mlx_vlm.generate import stream_generate

    backbone, processor = load(str(model))
    prompt = (
        "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\n<|image|>"
        f"{QUESTION}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    )
    times = [time.perf_counter()]
    for response in stream_generate(
        backbone,
        processor,
        prompt,
        image=[str(picture)],
        max_tokens=max_tokens,
        temperature=0.0,
    ):
        if response.generation_tokens >= len(times):
            times.append(time.perf_counter())
    return times


def _peak_rss_bytes() -> int:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


if __name__ == "__main__":
    main()
