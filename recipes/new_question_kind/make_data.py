"""Writes the rows to learn from: `python make_data.py DATA`.

DATA gets `train.jsonl` and `valid.jsonl` in LLaVA-CoT-100k's form, with their pictures: questions
of the new kind, and half as many of the old ones, so that those are not forgotten.
"""

from __future__ import annotations

import argparse
import itertools
import random
from collections.abc import Iterator
from pathlib import Path

from parity import parity_question
from rows import Asked, write_rows

from llavacot_mlx.demo.world import TRAIN, VALIDATION, Split, questions, scene

_FIRST = 50_000_000  # far from the scenes that the demo model was trained on


def new_and_old(split: Split, first: int, count: int, old_share: float) -> Iterator[Asked]:
    """`count` questions of the new kind, and among them `old_share` as many of the old kinds."""
    old_ones = itertools.count(first + count)
    for index in range(count):
        seed = split.seed(first + index)
        content, rng = scene(seed), random.Random(f"new kind {seed}")
        asked = parity_question(content, rng)
        yield Asked(content, asked.text, asked.reply, asked.answer)
        for _ in range(int((index + 1) * old_share) - int(index * old_share)):
            seed = split.seed(next(old_ones))
            old = questions(scene(seed), random.Random(seed))[0]
            yield Asked(scene(seed), old.text, old.reply(), old.answer)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=400, help="of the new kind")
    parser.add_argument("--old-share", type=float, default=0.5)
    arguments = parser.parse_args()
    train = new_and_old(TRAIN, _FIRST, arguments.rows, arguments.old_share)
    write_rows(arguments.data, "train", train)
    write_rows(arguments.data, "valid", new_and_old(VALIDATION, 500_000, 40, 1.0))


if __name__ == "__main__":
    main()
