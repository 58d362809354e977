"""Writes the training rows: `python make_data.py DATA`.

DATA gets `train.jsonl` and `valid.jsonl` in LLaVA-CoT-100k's form, with their pictures: questions
of the new kind, and twice as many of the old ones, so that those are not forgotten.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from asked import MOST_SHAPES, Asked, asked_new, asked_old, few_shapes
from rows import write_rows

from llavacot_mlx.demo.world import TRAIN, VALIDATION, Split

_FIRST = 50_000_000  # far from the scenes that the demo model was trained on


def new_and_old(
    split: Split, first: int, count: int, old_share: float, most_shapes: int = MOST_SHAPES
) -> Iterator[Asked]:
    """`count` questions of the new kind, mixed with `old_share` times as many of the old kinds.

    Their scenes are the split's scenes from number `first` on with at most `most_shapes` shapes.
    """
    seeds = few_shapes(split, first, most_shapes)
    for index in range(count):
        yield asked_new(next(seeds))
        for _ in range(int((index + 1) * old_share) - int(index * old_share)):
            yield asked_old(next(seeds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", type=Path)
    parser.add_argument("--rows", type=int, default=400, help="of the new kind")
    parser.add_argument(
        "--old-share", type=float, default=2.0, help="rows of old kinds to one of the new"
    )
    parser.add_argument("--most-shapes", type=int, default=MOST_SHAPES, help="in a picture")
    arguments = parser.parse_args()
    share, most = arguments.old_share, arguments.most_shapes
    train = new_and_old(TRAIN, _FIRST, arguments.rows, share, most)
    write_rows(arguments.data, "train", train)
    write_rows(arguments.data, "valid", new_and_old(VALIDATION, 500_000, 40, 1.0, most))


if __name__ == "__main__":
    main()
