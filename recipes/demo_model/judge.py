"""Measures the demo model as a judge of stages, on held-out judge questions.

    python recipes/demo_model/judge.py [MODEL] [--count 1000] [--out FILE]

A verdict is right if yes is likelier than no exactly when the stage is right. The second figure is
the area under the curve: how often a right stage gets a higher probability of yes than a wrong
one, which is what a search that ranks candidates needs.
"""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from pathlib import Path

from greedy import held_out, verdicts
from packaged import packaged
from scoring import Share
from tokenizers import Tokenizer

from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import TEST

BATCH = 50


def area(right: list[float], wrong: list[float]) -> float:
    """The probability that a right stage's score is above a wrong stage's; a draw counts half."""
    pairs = [(above > below) + 0.5 * (above == below) for above in right for below in wrong]
    return sum(pairs) / len(pairs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=model_path(), help="an MLX folder")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    tokenizer = Tokenizer.from_file(str(arguments.model / "tokenizer.json"))
    model = packaged(arguments.model, tokenizer)
    asked = held_out(TEST, arguments.count)
    given: dict[str, dict[bool, list[float]]] = defaultdict(lambda: {True: [], False: []})
    for start in range(0, len(asked), BATCH):
        part = asked[start : start + BATCH]
        for one, yes in zip(part, verdicts(model, tokenizer, part), strict=True):
            for name in ("all", one.judged.stage.value):
                given[name][one.judged.answer == "yes"].append(yes)
    record = {}
    print("| judged | share | 95% interval | area | of |\n|---|---:|---:|---:|---:|")
    for name, probabilities in given.items():
        right, wrong = probabilities[True], probabilities[False]
        hits = sum(yes > 0.5 for yes in right) + sum(yes <= 0.5 for yes in wrong)
        share = Share(hits, len(right) + len(wrong))
        low, high = share.interval
        above = area(right, wrong)
        record[name] = {"hits": share.hits, "count": share.count, "area": round(above, 4)}
        print(
            f"| {name} | {100 * share.value:.1f}% | {100 * low:.1f}–{100 * high:.1f}% "
            f"| {above:.3f} | {share.count} |"
        )
    if arguments.out:
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
