"""Questions of the demo world as rows of LLaVA-CoT-100k, with their pictures."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from llavacot_mlx.demo.questions import QUESTION_KINDS, question_of
from llavacot_mlx.demo.scenes import scene
from llavacot_mlx.demo.world import draw


def write_rows(folder: Path, numbers: Iterable[int], kinds: Sequence[str] | None = None) -> Path:
    """Writes `train.jsonl`, a row a number, and `images/`; returns the folder's `train.jsonl`.

    The same number makes the same picture and question, of one of `kinds`, wherever it is asked
    for. A picture has from 1 to 4 tiles of the demo model, depending on the number.
    """
    (folder / "images").mkdir(parents=True, exist_ok=True)
    file = folder / "train.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for number in numbers:
            stream.write(json.dumps(row(folder / "images", number, kinds or QUESTION_KINDS)) + "\n")
    return file


def row(images: Path, number: int, kinds: Sequence[str] = QUESTION_KINDS) -> dict[str, Any]:
    """A row as a JSON object, its picture drawn into the folder `images`."""
    content, rng = scene(number), random.Random(f"row {number}")
    # A scene may allow no question of a kind, but never of all.
    order = [kinds[(number + turn) % len(kinds)] for turn in range(len(kinds))]
    asked = next(filter(None, (question_of(kind, content, rng) for kind in order)))
    name = f"{number}.png"
    draw(content).save(images / name)
    turns = [
        {"from": "human", "value": f"<image>\n{asked.text}"},
        {"from": "gpt", "value": asked.reply()},
    ]
    return {"id": str(number), "image": name, "conversations": turns}
