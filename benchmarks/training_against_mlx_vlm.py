"""Compares training with mlx-vlm in one run: `python -m benchmarks.training_against_mlx_vlm`.

LoRA of rank 8 on all linear layers of the text, on a random checkpoint with the real vocabulary
and a picture of the real size (6404 image tokens). mlx-vlm trains one row at a time, because it
fails with more on this model; ours trains one and eight. The programs run in turn, each time in a
new process. Then it measures gradient checkpointing at several lengths, for ours only.
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

VOCABULARY = 128256
PUBLISHED_EPOCHS = 3
"""From LLaVA-CoT's own training: the command in its repository's README."""
RESULTS = Path(__file__).parent / "results"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program")
    parser.add_argument("--steps", type=int, default=2, help="measured steps of a run")
    parser.add_argument("--tokens", type=int, default=512, help="tokens per row")
    parser.add_argument(
        "--lengths",
        type=int,
        nargs="*",
        default=[256, 512, 1024, 2048],
        help="tokens of a row for the table of gradient checkpointing",
    )
    arguments = parser.parse_args()
    result: dict[str, object] = {"machine": machine(), **vars(arguments)}
    print(json.dumps(result["machine"]))
    with tempfile.TemporaryDirectory() as scratch:
        model, picture = Path(scratch) / "model", Path(scratch) / "noise.png"
        write_checkpoint(model, VOCABULARY)
        write_picture(picture, TILES)
        common = (str(model), str(picture), "--steps", str(arguments.steps))
        result["against mlx-vlm"] = _compare(common, arguments.rounds, arguments.tokens)
        result["gradient checkpointing"] = _checkpointing(common, arguments.lengths)
    RESULTS.mkdir(exist_ok=True)
    file = RESULTS / "training_against_mlx_vlm.json"
    file.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {file}")


def _compare(common: tuple[str, ...], rounds: int, tokens: int) -> dict[str, object]:
    """Samples per second, peak memory, and the medians of the ratios within a round."""
    figures: dict[str, list[dict[str, float]]] = {}
    for _ in range(rounds):
        theirs = _run("mlx-vlm", *common, "--tokens", str(tokens))
        one = _run("ours", *common, "--tokens", str(tokens))
        eight = _run("ours", *common, "--tokens", str(tokens), "--rows", "8", "--no-tower")
        for name, rows, run, tower in (
            ("mlx-vlm, 1 row", 1, theirs, 0.0),
            # The tower runs once per picture; with --cache-features, only in the first epoch.
            ("ours, 1 row, first epoch", 1, one, one["tower_s"]),
            ("ours, 1 row, features cached", 1, one, 0.0),
            ("ours, 8 rows, first epoch", 8, eight, 8 * one["tower_s"]),
            ("ours, 8 rows, three epochs", 8, eight, 8 * one["tower_s"] / PUBLISHED_EPOCHS),
            ("ours, 8 rows, features cached", 8, eight, 0.0),
        ):
            samples = rows / (run["step_s"] + tower)
            figures.setdefault(name, []).append(
                {
                    "samples_per_s": samples,
                    "speed_ratio": samples * theirs["step_s"],
                    "peak_rss_bytes": run["peak_rss_bytes"],
                    "memory_ratio": run["peak_rss_bytes"] / theirs["peak_rss_bytes"],
                }
            )
    print(f"\n{tokens} tokens{'':21}{'samples/s':>12}{'ratio':>8}{'peak GB':>10}{'ratio':>8}")
    for name, runs in figures.items():
        middle = {key: statistics.median(run[key] for run in runs) for key in runs[0]}
        print(
            f"{name:32}{middle['samples_per_s']:12.3g}{middle['speed_ratio']:8.2f}"
            f"{middle['peak_rss_bytes'] / 1e9:10.2f}{middle['memory_ratio']:8.2f}"
        )
    return dict(figures)


def _checkpointing(common: tuple[str, ...], lengths: list[int]) -> list[dict[str, float]]:
    """Seconds and peak memory of a step with one row, without and with gradient checkpointing."""
    print("\ngradient checkpointing, 1 row")
    print(f"{'tokens':>8}{'s':>10}{'with, s':>10}{'price':>8}{'GB':>8}{'with, GB':>10}")
    table = []
    for tokens in lengths:
        flags = ("--tokens", str(tokens), "--no-tower")
        kept = _run("ours", *common, *flags)
        again = _run("ours", *common, *flags, "--checkpoint")
        row = {
            "tokens": tokens,
            "step_s": kept["step_s"],
            "step_s_with": again["step_s"],
            "peak_array_bytes": kept["peak_array_bytes"],
            "peak_array_bytes_with": again["peak_array_bytes"],
        }
        table.append(row)
        print(
            f"{tokens:8}{row['step_s']:10.2f}{row['step_s_with']:10.2f}"
            f"{row['step_s_with'] / row['step_s']:8.2f}{row['peak_array_bytes'] / 1e9:8.2f}"
            f"{row['peak_array_bytes_with'] / 1e9:10.2f}"
        )
    return table


def _run(program: str, *arguments: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.one_training_run", program, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{program} failed:\n{done.stderr}")
    return json.loads(done.stdout.splitlines()[-1])


if __name__ == "__main__":
    main()
