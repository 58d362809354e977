"""Compares conversion to 4 bits with mlx-vlm's: `… -m benchmarks.convert_against_mlx_vlm`.

A random checkpoint in bfloat16 with the 11B's widths and 5 of its 40 text layers is converted by
both programs in turn, each time by their own command in a new process. Ours runs with its
defaults, which include verification and hashes. Besides the whole command, the conversion alone is
timed, without the imports: mlx-vlm's take seconds.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import tempfile
from pathlib import Path

from benchmarks.machine import machine
from benchmarks.one_command import measured
from benchmarks.real_widths import write_real_widths

RESULT = Path(__file__).parent / "results" / "convert_against_mlx_vlm.json"
PROGRAMS = ("ours", "mlx-vlm")

# Each script prints the seconds of the conversion alone.
_ALONE = {
    "ours": """
import sys, time
from pathlib import Path
from llavacot_mlx.model.config import Quantization
from llavacot_mlx.convert.convert import convert
started = time.perf_counter()
convert(Path(sys.argv[1]), Path(sys.argv[2]), quantization=Quantization(64, 4), verify=True)
print(time.perf_counter() - started)
""",
    "mlx-vlm": """
import sys, time
from mlx_vlm.convert import convert
started = time.perf_counter()
convert(sys.argv[1], sys.argv[2], quantize=True)
print(time.perf_counter() - started)
""",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3, help="runs of each program")
    parser.add_argument("--text-layers", type=int, default=5, help="of the 11B's 40; at least 4")
    parser.add_argument("--scratch", type=Path, help="a folder on a disk with 8 GB free")
    arguments = parser.parse_args()
    runs: dict[str, list[dict[str, float]]] = {program: [] for program in PROGRAMS}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        source, target = Path(scratch) / "source", Path(scratch) / "target"
        size = write_real_widths(source, arguments.text_layers, 5, 1)
        for _ in range(arguments.rounds):
            for program in PROGRAMS:
                runs[program].append(_one(program, source, target))
    result: dict[str, object] = {"machine": machine(), "source_bytes": size}
    print(json.dumps(result["machine"]))
    print(f"\n{size / 1e9:.1f} GB in bfloat16 to 4 bits, medians of {arguments.rounds}")
    print(f"{'':20}{'ours':>12}{'mlx-vlm':>12}{'ours / mlx-vlm':>18}")
    for figure in runs["ours"][0]:
        ours, theirs = ([one[figure] for one in runs[program]] for program in PROGRAMS)
        ratio = statistics.median(a / b for a, b in zip(ours, theirs, strict=True))
        result[figure] = {"ours": ours, "mlx-vlm": theirs, "median_ratio": ratio}
        unit = 1e9 if figure.endswith("bytes") else 1
        medians = (statistics.median(figures) / unit for figures in (ours, theirs))
        print(f"{figure:20}" + "".join(f"{median:12.2f}" for median in medians) + f"{ratio:18.2f}")
    RESULT.parent.mkdir(exist_ok=True)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(f"written to {RESULT}")


def _one(program: str, source: Path, target: Path) -> dict[str, float]:
    command: list[str | Path] = {
        "ours": [sys.executable, "-m", "llavacot_mlx", "convert", source, "--mlx-path", target],
        "mlx-vlm": [
            *(sys.executable, "-m", "mlx_vlm", "convert"),
            *("--hf-path", source, "--mlx-path", target),
        ],
    }[program]
    offline = {"HF_HUB_OFFLINE": "1"}
    whole = measured([*command, "-q"], **offline)
    shutil.rmtree(target)
    alone = measured([sys.executable, "-c", _ALONE[program], source, target], **offline)
    shutil.rmtree(target)
    return {
        "command_s": whole.seconds,
        "conversion_s": float(alone.output.splitlines()[-1]),
        "peak_rss_bytes": whole.peak_rss_bytes,
    }


if __name__ == "__main__":
    main()
