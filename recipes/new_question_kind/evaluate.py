"""Measures what was learned and what was forgotten: `python evaluate.py ADAPTER`.

The demo model, or the one in `--model`, greedily answers held-out questions of the new kind and of
the old ones, with the adapter and without it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Sequence
from pathlib import Path

from asked import MOST_SHAPES, Asked, asked_new, asked_old, few_shapes

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import TEST, draw

_NEW_FIRST = 500_000  # the first thousands of TEST are for the demo model's own figures


def held_out_new(count: int, most_shapes: int = MOST_SHAPES) -> list[Asked]:
    seeds = few_shapes(TEST, _NEW_FIRST, most_shapes)
    return [asked_new(seed) for seed in itertools.islice(seeds, count)]


def held_out_old(count: int, most_shapes: int = MOST_SHAPES) -> list[Asked]:
    seeds = few_shapes(TEST, 0, most_shapes)
    return [asked_old(seed) for seed in itertools.islice(seeds, count)]


def right(assistant: Assistant, asked: Sequence[Asked]) -> list[bool]:
    return [
        assistant.ask(draw(one.scene), one.text, max_tokens=320).answer == one.answer
        for one in asked
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--model", type=Path, default=model_path(), help="the adapter's base")
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--old", type=int, default=200)
    arguments = parser.parse_args()
    base = Assistant.load(arguments.model)
    tuned = Assistant.load(arguments.model, adapter=arguments.adapter)
    print(f"{'questions':<12}{'base':>26}{'with the adapter':>26}{'lost':>6}{'won':>6}")
    for name, asked in (
        ("new kind", held_out_new(arguments.new)),
        ("old kinds", held_out_old(arguments.old)),
    ):
        before, after = right(base, asked), right(tuned, asked)
        lost = sum(b and not a for b, a in zip(before, after, strict=True))
        won = sum(a and not b for b, a in zip(before, after, strict=True))
        print(f"{name:<12}{_share(before):>26}{_share(after):>26}{lost:>6}{won:>6}", flush=True)


def _share(answers: list[bool]) -> str:
    return f"{sum(answers)} of {len(answers)} ({sum(answers) / len(answers):.1%})"


if __name__ == "__main__":
    main()
