"""The long fuzz run, by hand: every kind of file, changed at random, for some time.

    python tests/fuzz/run.py --seconds 120
    python tests/fuzz/run.py --kind trace --seconds 600 --seed 1000
    python tests/fuzz/run.py --kind trace --seed 1234 --count 1

Prints the inputs tried by kind, the failures and the seconds; a failure's input is kept.
"""

from __future__ import annotations

import argparse
import json
import os
import selectors
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

SUPPORT = Path(__file__).parents[1] / "support"
sys.path.insert(0, str(SUPPORT))

from fuzzing.kinds import KINDS, changed, lay_desk  # noqa: E402
from fuzzing.outcome import Outcome, faults, listing  # noqa: E402

MAX_SECONDS = 20.0
MAX_BYTES = 2 * 10**9


class Worker:
    """A process of `fuzzing/worker.py`, started again after it died."""

    def __init__(self, hub: Path) -> None:
        self._hub = hub
        self._process: subprocess.Popen[bytes] | None = None

    def ask(self, desk: Path, command: tuple[str, ...]) -> dict[str, Any] | str:
        """The outcome, or what became of the process."""
        if self._process is None:
            self._process = self._start()
        process = self._process
        assert process.stdin is not None
        assert process.stdout is not None
        line = json.dumps({"desk": str(desk), "command": command})
        process.stdin.write(line.encode() + b"\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            is_there = selector.select(3 * MAX_SECONDS)
        answer = process.stdout.readline() if is_there else b""
        if answer:
            return json.loads(answer)
        self.stop()
        return f"died with {process.returncode}" if is_there else "did not come to an end"

    def stop(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> subprocess.Popen[bytes]:
        env = {"HF_HOME": str(self._hub), "HF_HUB_OFFLINE": "1", "LLAVACOT_CONFIG": os.devnull}
        return subprocess.Popen(
            [sys.executable, str(SUPPORT / "fuzzing" / "worker.py")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, **env},
        )


def run_kind(name: str, place: Path, worker: Worker, first: int, seconds: float, count: int) -> int:
    """Tries changed files of a kind, and returns how many of them failed."""
    kind, whole_desk, desk = KINDS[name], place / "whole", place / "desk"
    whole = (whole_desk / kind.file).read_bytes()
    started, tried, failed, refused = time.perf_counter(), 0, 0, 0
    slowest = largest = 0.0
    shutil.rmtree(desk, ignore_errors=True)
    shutil.copytree(whole_desk, desk)
    clean = listing(desk)
    while tried < count and time.perf_counter() - started < seconds:
        seed = first + tried
        tried += 1
        data, command = changed(kind, whole, seed)
        (desk / kind.file).write_bytes(data)
        before = listing(desk)
        found = worker.ask(desk, command)
        if isinstance(found, str):
            problems = [found]
        else:
            outcome = Outcome(*(found[key] for key in ("code", "stdout", "stderr", "crash")))
            problems = faults(outcome, before, listing(desk), reports=kind.reports)
            refused += outcome.code != 0
            slowest, largest = max(slowest, found["seconds"]), max(largest, found["peak"])
            if found["seconds"] > MAX_SECONDS:
                problems.append(f"took {found['seconds']:.0f} s")
            if found["peak"] > MAX_BYTES:
                problems.append(f"took {found['peak'] / 1e9:.1f} GB")
        if problems:
            failed += 1
            kept = place / "failures" / f"{name.replace(' ', '-')}-{seed}{Path(kind.file).suffix}"
            kept.parent.mkdir(exist_ok=True)
            kept.write_bytes(data)
            print(f"  {name} {seed}: {' '.join(command)} ({kept})", flush=True)
            for problem in problems:
                print(f"    {problem}", flush=True)
        (desk / kind.file).write_bytes(whole)
        if listing(desk).keys() != clean.keys() or problems:
            shutil.rmtree(desk)
            shutil.copytree(whole_desk, desk)
    took = time.perf_counter() - started
    print(
        f"{name:<20}{tried:>7} tried{refused:>7} refused{failed:>5} failed{took:>7.0f} s"
        f"{slowest:>7.1f} s slowest{largest / 1e6:>7.0f} MB",
        flush=True,
    )
    return failed


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=tuple(KINDS), action="append")
    parser.add_argument("--seconds", type=float, default=60.0, help="for each kind")
    parser.add_argument("--count", type=int, default=10**9, help="inputs of each kind at most")
    parser.add_argument("--seed", type=int, default=0, help="of the first input")
    asked = parser.parse_args()
    place = Path(tempfile.mkdtemp(prefix="llavacot-fuzz-"))
    lay_desk(place / "whole")
    worker = Worker(place / "hub")
    try:
        failed = sum(
            run_kind(name, place, worker, asked.seed, asked.seconds, asked.count)
            for name in asked.kind or KINDS
        )
    finally:
        worker.stop()
    if not failed:
        shutil.rmtree(place)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
