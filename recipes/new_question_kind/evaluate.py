"""What was learned and what was forgotten: `python evaluate.py ADAPTER`.

Held-out questions of the new kind and of the old ones are answered greedily by the demo model, with
the adapter and without it.
"""

from __future__ import annotations

import argparse
import random
from collections.abc import Iterator, Sequence
from pathlib import Path

from parity import parity_question
from rows import Asked

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import TEST, draw, questions, scene

_NEW_FIRST = 500_000  # the first thousands of TEST are the demo model's own figures


def held_out_new(count: int) -> Iterator[Asked]:
    for index in range(count):
        seed = TEST.seed(_NEW_FIRST + index)
        asked = parity_question(scene(seed), random.Random(f"new kind {seed}"))
        yield Asked(scene(seed), asked.text, asked.reply, asked.answer)


def held_out_old(count: int) -> Iterator[Asked]:
    for index in range(count):
        seed = TEST.seed(index)
        asked = questions(scene(seed), random.Random(seed))[0]
        yield Asked(scene(seed), asked.text, asked.reply(), asked.answer)


def right(assistant: Assistant, asked: Sequence[Asked]) -> list[bool]:
    return [
        assistant.ask(draw(one.scene), one.text, max_tokens=320).answer == one.answer
        for one in asked
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("adapter", type=Path)
    parser.add_argument("--new", type=int, default=200)
    parser.add_argument("--old", type=int, default=200)
    arguments = parser.parse_args()
    base, tuned = (
        Assistant.load(model_path()),
        Assistant.load(model_path(), adapter=arguments.adapter),
    )
    print(f"{'questions':<12}{'base':>26}{'with the adapter':>26}{'lost':>6}{'won':>6}")
    for name, asked in (
        ("new kind", list(held_out_new(arguments.new))),
        ("old kinds", list(held_out_old(arguments.old))),
    ):
        before, after = right(base, asked), right(tuned, asked)
        lost = sum(b and not a for b, a in zip(before, after, strict=True))
        won = sum(a and not b for b, a in zip(before, after, strict=True))
        print(f"{name:<12}{_share(before):>26}{_share(after):>26}{lost:>6}{won:>6}", flush=True)


def _share(answers: list[bool]) -> str:
    return f"{sum(answers)} of {len(answers)} ({sum(answers) / len(answers):.1%})"


if __name__ == "__main__":
    main()
