"""A file of training rows with every kind of problem."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import demo_rows
from PIL import Image

from llavacot_mlx.rows.problem import ProblemKind as Kind

REPLY = 1  # its turn in a row of `demo_rows`


def write_bad_rows(folder: Path) -> dict[Kind, int]:
    """Writes `train.jsonl`, whose first and last rows are good, and `images/`.

    Every other row has one problem, a kind each. Returns the line of each.
    """
    (folder / "images").mkdir()
    lines = [_line(folder, 0)]
    where: dict[Kind, int] = {}
    for number, kind in enumerate(Kind, 1):
        lines.append(_bad_line(folder, number, kind))
        where[kind] = number + 1
    lines.append(_line(folder, len(lines)))
    (folder / "train.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return where


def _line(folder: Path, number: int) -> str:
    return json.dumps(demo_rows.row(folder / "images", number))


def _bad_line(folder: Path, number: int, kind: Kind) -> str:
    row: dict[str, Any] = demo_rows.row(folder / "images", number)
    turns = row["conversations"]
    reply = turns[REPLY]["value"]
    if kind is Kind.NOT_JSON:
        return json.dumps(row)[:-1]
    if kind is Kind.NOT_A_CONVERSATION:
        turns.pop()
    if kind is Kind.SEVERAL_PICTURES:
        row["image"] = ["a.png", "b.png"]
    if kind is Kind.PICTURE_MISSING:
        row["image"] = "gone.png"
    if kind is Kind.PICTURE_UNREADABLE:
        Image.effect_noise((50, 50), 90).save(folder / "images" / row["image"])
        whole = (folder / "images" / row["image"]).read_bytes()
        (folder / "images" / row["image"]).write_bytes(whole[:200])
    if kind is Kind.NOT_REWRITTEN:
        turns += [{"from": "human", "value": "And?"}, {"from": "gpt", "value": "Four."}]
    changed = {
        Kind.NO_STAGES: "Four.",
        Kind.STAGE_MISSING: reply[reply.index("<CAPTION>") :],
        Kind.CONCLUSION_MISSING: reply[: reply.index("<CONCLUSION>")],
        Kind.STAGE_DOUBLED: reply[: reply.index("<CAPTION>")] + reply,
        Kind.STAGE_MISORDERED: "".join(
            [
                reply[reply.index("<CAPTION>") : reply.index("<REASONING>")],
                reply[: reply.index("<CAPTION>")],
                reply[reply.index("<REASONING>") :],
            ]
        ),
        Kind.STAGE_EMPTY: reply[: reply.index("<CONCLUSION>")] + "<CONCLUSION> </CONCLUSION>",
        Kind.STAGE_NOT_CLOSED: reply.replace("</CONCLUSION>", ""),
        Kind.TEXT_OUTSIDE: f"{reply} Done.",
        Kind.LEAK: reply.replace("</REASONING>", "This is the standard answer. </REASONING>"),
        Kind.TOO_LONG: reply.replace("</REASONING>", f"{'And so on. ' * 400}</REASONING>"),
    }
    turns[-1]["value"] = changed.get(kind, turns[-1]["value"])
    return json.dumps(row)
