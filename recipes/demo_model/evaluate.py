"""Measures the demo model: this project's runtime answers held-out questions greedily.

    python recipes/demo_model/evaluate.py [MODEL] [--count 1000] [--processes 2] [--out FILE]

It asks one question per scene of the test split. MODEL is a folder that `Assistant.load` opens, by
default the model in the package.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import time
from dataclasses import asdict
from pathlib import Path

from scoring import Scored, scored, shares, table

from llavacot_mlx import Assistant
from llavacot_mlx.demo import model_path
from llavacot_mlx.demo.world import SPLITS, Question, Scene, Split, draw, questions, scene

MOST_TOKENS = 320  # reference answers have at most about 200


def asked(split: Split, index: int) -> tuple[Scene, Question]:
    """The scene and question number `index` of the split."""
    seed = split.seed(index)
    world = scene(seed)
    return world, questions(world, random.Random(f"rows {seed}"))[0]


def answered(model: Path, split: Split, indices: list[int]) -> list[dict[str, object]]:
    """The model's scored answers to these questions."""
    assistant = Assistant.load(model, dtype="float32")
    rows = []
    for index in indices:
        world, question = asked(split, index)
        trace = assistant.ask(draw(world), question.text, max_tokens=MOST_TOKENS)
        ended = len(trace.token_ids) < MOST_TOKENS
        rows.append(
            {
                "index": index,
                "seed": split.seed(index),
                "question": question.text,
                "reference": question.answer,
                "answer": trace.answer,
                "text": trace.text,
                "scored": scored(world, question, trace.text, ended),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("model", type=Path, nargs="?", default=model_path())
    parser.add_argument("--split", choices=[split.name for split in SPLITS], default="test")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON: the figures, and every question's answer")
    arguments = parser.parse_args()
    split = next(split for split in SPLITS if split.name == arguments.split)
    began = time.monotonic()
    parts = [
        (arguments.model, split, list(range(first, arguments.count, arguments.processes)))
        for first in range(arguments.processes)
    ]
    with multiprocessing.get_context("spawn").Pool(arguments.processes) as pool:
        rows = [row for part in pool.starmap(answered, parts) for row in part]
    rows.sort(key=lambda row: row["index"])
    results: list[Scored] = [row.pop("scored") for row in rows]
    figures = shares(results)
    print(table(figures))
    seconds = time.monotonic() - began
    print(f"\n{arguments.count} questions of split {split.name} in {seconds:.0f} s")
    if arguments.out:
        record = {
            "split": split.name,
            "count": arguments.count,
            "seconds": round(seconds, 1),
            "figures": {
                name: {"hits": share.hits, "count": share.count} for name, share in figures.items()
            },
            "answers": [row | asdict(result) for row, result in zip(rows, results, strict=True)],
        }
        arguments.out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main()
