"""A process that runs commands one after the other, told by lines of JSON on stdin.

It is started once for thousands of inputs, since importing MLX takes longer than most of them; who
started it kills it where an input takes too long.
"""

from __future__ import annotations

import json
import os
import sys
import time
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))

from llavacot_mlx.cli.openblas import load_fast_blas

load_fast_blas()  # before MLX is imported

from fuzzing.outcome import run_here  # noqa: E402


def peak_bytes() -> int:
    """The most memory since `forget_peak`; 0 where the system does not tell."""
    try:
        text = Path("/proc/self/status").read_text()
    except OSError:
        return 0
    return int(text.partition("VmHWM:")[2].split()[0]) * 1024


def forget_peak() -> None:
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")  # whatever a command prints goes elsewhere
    os.dup2(2, 1)
    for line in sys.stdin:
        asked = json.loads(line)
        forget_peak()
        started = time.perf_counter()
        outcome = run_here(Path(asked["desk"]), asked["command"])
        seconds = time.perf_counter() - started
        answers.write(json.dumps({**asdict(outcome), "seconds": seconds, "peak": peak_bytes()}))
        answers.write("\n")
        answers.flush()


if __name__ == "__main__":
    main()
