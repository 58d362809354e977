"""Draws a run's curve: the fractions read and answered correctly, over time.

python recipes/demo_model/curve.py CURVE_JSONL OUT_SVG
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt


def entries(path: Path) -> list[dict]:
    """The log's lines in order; of steps that were trained twice, the later lines."""
    result: dict[tuple[str, str, int], dict] = {}
    for line in path.read_text().splitlines():
        entry = json.loads(line)
        if "phase" in entry:
            kind = "evaluated" if "evaluated" in entry else "step"
            result[entry["phase"], kind, entry[kind]] = entry
    return [result[key] for key in sorted(result)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("curve", type=Path)
    parser.add_argument("out", type=Path)
    arguments = parser.parse_args()
    log = entries(arguments.curve)
    pictures = [e for e in log if e["phase"] == "pictures"]
    joint = [e for e in log if e["phase"] == "joint" and "step" in e]
    seconds = {e["step"]: e["seconds"] for e in joint}
    evaluated = [e for e in log if e["phase"] == "joint" and e.get("evaluated") in seconds]

    figure, (left, middle, right) = plt.subplots(1, 3, figsize=(13, 3.6), layout="constrained")
    left.set_title("phase 1: cells read right, by patch")
    for name in ("kind", "colour", "size", "place", "next"):
        left.plot(
            [e["seconds"] / 60 for e in pictures], [e[f"cell {name}"] for e in pictures], label=name
        )
    middle.set_title("phase 2: loss by class of token")
    middle.set_yscale("log")
    for name in ("place", "colour", "kind", "reasoning", "conclusion", "judge"):
        seen = [e for e in joint if name in e]
        middle.plot([e["seconds"] / 60 for e in seen], [e[name] for e in seen], label=name)
    right.set_title("phase 2: 200 validation questions, greedy")
    for name in ("well-formed", "exact caption", "exact reasoning", "right", "judged"):
        minutes = [seconds[e["evaluated"]] / 60 for e in evaluated]
        right.plot(minutes, [e[name] for e in evaluated], marker=".", label=name)
    for axes in (left, middle, right):
        axes.set_xlabel("minutes of training in the phase")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(arguments.out, metadata={"Date": None})


if __name__ == "__main__":
    main()
