"""Writes questions with their answers as rows of LLaVA-CoT-100k."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

from asked import Asked

from llavacot_mlx.demo.world import draw

_TELL_EVERY = 100  # rows, drawn in some ten seconds


def write_rows(folder: Path, split: str, asked: Iterable[Asked]) -> Path:
    """Writes `<split>.jsonl`, and the pictures of its rows below `images/`."""
    images = folder / "images"
    images.mkdir(parents=True, exist_ok=True)
    file = folder / f"{split}.jsonl"
    with file.open("w", encoding="utf-8") as stream:
        for number, one in enumerate(asked):
            picture = f"images/{split}-{number}.png"
            draw(one.scene).save(folder / picture)
            turns = [
                {"from": "human", "value": f"<image>\n{one.text}"},
                {"from": "gpt", "value": one.reply},
            ]
            row = {"id": f"{split}-{number}", "image": picture, "conversations": turns}
            stream.write(json.dumps(row) + "\n")
            if (number + 1) % _TELL_EVERY == 0:
                print(f"{file}: {number + 1} rows", flush=True)
    return file
