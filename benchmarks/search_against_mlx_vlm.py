"""Compares a whole search with the reference's way: `python -m benchmarks.search_against_mlx_vlm`.

The reference search scripts start every candidate cold: the picture, the question and the prefix
again, one candidate after the other. Here the same tree is decoded in that way with mlx-vlm and
with our engine, with one candidate at a time on our engine, and in our engine's own way
(`one_search.py`).

What is fixed, and why: the tree is that of the published search (`search_tree.py`) and every
candidate has the fixed number of tokens of its stage, because a random model closes no stage.
Decoding is greedy, because sampling would draw special tokens, which end a generation in mlx-vlm;
so siblings write the same tokens, but each is computed. mlx-vlm reads one token more
for every candidate, because its processor puts one before the prompt. Loading does not count.
There is no judge: mlx-vlm has none, and the reference's is another model.

The ways run in turn, each time in a new process. Seconds are medians and ratios the medians of the
rounds' ratios; everything is printed and written to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from benchmarks.checkpoint import TILES, write_checkpoint, write_picture
from benchmarks.machine import machine
from benchmarks.search_tree import STAGE_TOKENS, swires_rounds

WAYS = ("together", "one-by-one", "cold", "mlx-vlm")
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=1, help="runs of each way")
    parser.add_argument("--retraces", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--candidates", type=int, default=4, help="captions and reasonings a round")
    parser.add_argument("--vocabulary", type=int, default=2048)
    parser.add_argument("--tiles", type=int, choices=(1, 2, 4), default=TILES)
    arguments = parser.parse_args()
    result: dict[str, object] = {
        "machine": machine(),
        "arguments": vars(arguments),
        "tokens of a summary, a caption, a reasoning and a conclusion": STAGE_TOKENS,
    }
    print(json.dumps(result["machine"]))
    with tempfile.TemporaryDirectory() as scratch:
        model, picture = Path(scratch) / "model", Path(scratch) / "noise.png"
        write_checkpoint(model, arguments.vocabulary)
        write_picture(picture, arguments.tiles)
        for retraces in arguments.retraces:
            shape = ["--candidates", str(arguments.candidates), "--retraces", str(retraces)]
            runs: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
            for _ in range(arguments.rounds):
                for way in WAYS:
                    runs[way].append(_run(way, model, picture, shape))
                    print(f"{retraces} retraces, {way}: {json.dumps(runs[way][-1])}", flush=True)
            result[f"{retraces} retraces"] = _summary(runs, arguments.candidates, retraces)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "search_against_mlx_vlm.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {file}")


def _run(way: str, model: Path, picture: Path, shape: list[str]) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.one_search", way, str(model), str(picture), *shape]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{way} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _summary(
    runs: dict[str, list[dict[str, float]]], candidates: int, retraces: int
) -> dict[str, object]:
    """Prints and returns each way's figures, and its time relative to `together`."""
    nodes = sum(map(len, swires_rounds(candidates, retraces)))
    print(f"\n{retraces} retraces: {nodes} candidates")
    print(f"{'':12}{'seconds':>10}{'ratio':>8}{'of it decoding':>16}{'ratio':>8}{'pictures':>10}")
    summary: dict[str, object] = {}
    ours = runs["together"]
    for way, each in runs.items():
        total = statistics.median(one["total_s"] for one in each)
        decoding = statistics.median(map(_decoding_s, each))
        ratio = statistics.median(
            one["total_s"] / mine["total_s"] for one, mine in zip(each, ours, strict=True)
        )
        decoding_ratio = statistics.median(
            _decoding_s(one) / _decoding_s(mine) for one, mine in zip(each, ours, strict=True)
        )
        summary[way] = {
            "runs": each,
            "median_ratio": ratio,
            "median_ratio_of_decoding": decoding_ratio,
        }
        times = f"{total:10.2f}{ratio:8.2f}{decoding:16.2f}{decoding_ratio:8.2f}"
        print(f"{way:12}{times}{each[0]['images_encoded']:10}")
    return summary


def _decoding_s(run: dict[str, float]) -> float:
    return run["total_s"] - run["picture_and_prefix_s"]


if __name__ == "__main__":
    main()
