"""Compares answering with mlx-vlm in one run: `python -m benchmarks.against_mlx_vlm`.

On a random checkpoint with a real picture's geometry (4 tiles of 560 px, 6404 image tokens) it
measures picture and prefill, a decode step and the peak memory of the process; on the demo model,
the time from the start of the command to the first token. The two programs run in turn, each time
in a new process. Ratios are printed and everything is written to `benchmarks/results/`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from benchmarks.checkpoint import TILES, write_checkpoint, write_picture
from benchmarks.machine import machine
from llavacot_mlx.demo import example_path, model_path

PROGRAMS = ("ours", "mlx-vlm")
QUESTION = "How many red shapes are there?"
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program")
    parser.add_argument("--max-tokens", type=int, default=48, help="tokens decoded in a run")
    parser.add_argument(
        "--vocabularies",
        type=int,
        nargs="+",
        default=[2048, 128256],
        help="sizes of the output head; the 11B has 128256, and 5%% of its weights in the head",
    )
    arguments = parser.parse_args()
    result: dict[str, object] = {"machine": machine(), "rounds": arguments.rounds}
    print(json.dumps(result["machine"]))
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "noise.png"
        write_picture(picture, TILES)
        for vocabulary in arguments.vocabularies:
            model = Path(scratch) / f"vocabulary-{vocabulary}"
            write_checkpoint(model, vocabulary)
            title = f"6404 image tokens, vocabulary {vocabulary}"
            result[title] = _compare(
                title,
                arguments.rounds,
                lambda p, m=model: _generate(p, m, picture, arguments.max_tokens),
            )
    title = "demo model, from the command to its first token"
    result[title] = _compare(title, arguments.rounds, _start)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "against_mlx_vlm.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {file}")


def _compare(
    title: str, rounds: int, run: Callable[[str], dict[str, float]]
) -> dict[str, dict[str, object]]:
    """Runs the programs in turn; prints and returns medians and the medians of paired ratios."""
    runs: dict[str, list[dict[str, float]]] = {program: [] for program in PROGRAMS}
    for _ in range(rounds):
        for program in PROGRAMS:
            runs[program].append(run(program))
    print(f"\n{title}")
    print(f"{'':16}{'ours':>14}{'mlx-vlm':>14}{'mlx-vlm / ours':>18}")
    summary: dict[str, dict[str, object]] = {}
    for figure in runs["ours"][0]:
        ours, theirs = ([one[figure] for one in runs[program]] for program in PROGRAMS)
        ratio = statistics.median(b / a for a, b in zip(ours, theirs, strict=True))
        summary[figure] = {"ours": ours, "mlx-vlm": theirs, "median_ratio": ratio}
        medians = f"{statistics.median(ours):14.4g}{statistics.median(theirs):14.4g}"
        print(f"{figure:16}{medians}{ratio:18.2f}")
    return summary


def _generate(program: str, model: Path, picture: Path, max_tokens: int) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.one_run", program, str(model), str(picture)]
    done = subprocess.run(
        [*command, "--max-tokens", str(max_tokens)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        sys.exit(f"{program} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


def _start(program: str) -> dict[str, float]:
    """Seconds from starting the command until the first generated text is on its stdout."""
    picture, bin_folder = str(example_path()), Path(sys.executable).parent
    command = {
        "ours": [str(bin_folder / "llavacot"), "ask", picture, QUESTION, "--plain"],
        "mlx-vlm": [
            *(sys.executable, "-m", "mlx_vlm", "generate", "--model", str(model_path())),
            *("--image", picture, "--prompt", QUESTION, "--max-tokens", "8"),
        ],
    }[program]
    started = time.perf_counter()
    environment = os.environ | {"PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=environment
    ) as process:
        assert process.stdout is not None
        while not (chunk := process.stdout.read1(4096)).strip():
            if not chunk:
                sys.exit(f"{program} printed no answer")
        seconds = time.perf_counter() - started
        process.stdout.read()
    return {"first_token_s": seconds}


if __name__ == "__main__":
    main()
