"""Converts and runs a full-size 11B: `python -m benchmarks.full_size --scratch /some/disk`.

Writes 21.3 GB of random bfloat16 in the 11B's exact shapes, converts them to 4 bits, asks one
question about a picture of one tile, and writes times and peaks of memory to
`benchmarks/results/full_size.json`. The source is deleted as soon as it is converted, and the rest
at the end. This takes 30 GB of disk and, on a CPU, most of an hour.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.checkpoint import write_picture
from benchmarks.machine import machine
from benchmarks.one_command import measured
from benchmarks.real_widths import TEXT_LAYERS, VISION_LAYERS, write_real_widths

RESULT = Path(__file__).parent / "results" / "full_size.json"
_FREE_BYTES = 30 * 10**9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scratch", type=Path, help="a folder on a disk with 30 GB free")
    parser.add_argument(
        "--trial", action="store_true", help="5 layers of each stack, to try the script itself"
    )
    parser.add_argument("--result", type=Path, default=RESULT, help="the file to write")
    arguments = parser.parse_args()
    layers = (5, 5, 1) if arguments.trial else (TEXT_LAYERS, VISION_LAYERS, 8)
    llavacot = [sys.executable, "-m", "llavacot_mlx"]
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        source, target = Path(scratch) / "source", Path(scratch) / "4bit"
        picture = Path(scratch) / "noise.png"
        free = shutil.disk_usage(scratch).free
        if free < _FREE_BYTES and not arguments.trial:
            sys.exit(f"{scratch}: {free / 1e9:.0f} GB are free, and 30 GB are needed")
        write_picture(picture, 1)
        started = time.perf_counter()
        size = write_real_widths(source, *layers)
        print(f"{size / 1e9:.1f} GB written in {time.perf_counter() - started:.0f} s", flush=True)

        converted = measured([*llavacot, "convert", source, "-q", "--mlx-path", target])
        shutil.rmtree(source)
        weights = sum(file.stat().st_size for file in target.glob("*.safetensors"))
        print(
            f"converted to {weights / 1e9:.1f} GB in {converted.seconds:.0f} s, "
            f"peak {converted.peak_rss_bytes / 1e9:.2f} GB",
            flush=True,
        )

        question = ["ask", picture, "What is in the picture?", "--model", target]
        asked = measured([*llavacot, *question, "--max-tokens", "4", "--json"])
        trace = json.loads(asked.output)
        load, first = trace["timings"]["load_s"], trace["timings"]["first_token_s"]
        print(
            f"loaded in {load:.0f} s, first token after {first:.0f} s, "
            f"{len(trace['token_ids'])} tokens in {asked.seconds:.0f} s, "
            f"peak {asked.peak_rss_bytes / 1e9:.2f} GB"
        )
    result = {
        "machine": machine(),
        "layers": layers,
        "source_bytes": size,
        "weight_bytes": weights,
        "convert": {"seconds": converted.seconds, "peak_rss_bytes": converted.peak_rss_bytes},
        "ask": {
            "seconds": asked.seconds,
            "peak_rss_bytes": asked.peak_rss_bytes,
            "load_s": load,
            "first_token_s": first,
            "tokens": len(trace["token_ids"]),
        },
    }
    arguments.result.parent.mkdir(exist_ok=True)
    arguments.result.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {arguments.result}")


if __name__ == "__main__":
    main()
