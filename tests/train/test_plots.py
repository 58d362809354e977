"""The figures: whole PNG files of the size that is promised, whatever there is to draw."""

from __future__ import annotations

import builtins
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.train.data.stats import Stats
from llavacot_mlx.train.plots import CURVE_SIZE, STATS_SIZE, draw_curve, draw_curves, draw_stats


def stats(lengths: list[int], sources: dict[str, int], tiles: dict[int, int]) -> Stats:
    counts = np.array(lengths, dtype=np.int64)
    rows = len(lengths)
    return Stats(rows, 0, 0, rows, counts, counts, dict.fromkeys(Stage, counts), sources, tiles)


def pixels(file: Path, size: tuple[int, int]) -> np.ndarray:
    with Image.open(file) as image:
        assert (image.format, image.size) == ("PNG", size)
        return np.asarray(image.convert("RGB")).astype(int)


@pytest.mark.parametrize(
    "drawn",
    [
        stats([3, 40, 41, 700], {"a": 3, "b": 1}, {1: 2, 4: 2}),
        stats([5], {"$x$_{": 1}, {1: 1}),
        stats([1, 2], {f"{'long' * 20}{number}": number for number in range(1, 40)}, {2: 2}),
        stats([1], {"圖片\x1b": 1}, {}),
        stats([], {}, {}),
    ],
)
def test_any_stats_can_be_drawn(
    tmp_path: Path, drawn: Stats, recwarn: pytest.WarningsRecorder
) -> None:
    draw_stats(drawn, tmp_path / "stats.png")
    assert pixels(tmp_path / "stats.png", STATS_SIZE).std() > 5
    assert not recwarn.list
    assert [path.name for path in tmp_path.iterdir()] == ["stats.png"]


LOG = [{"step": step, "loss": 2 / step, "tokens": 7} for step in range(1, 10)]
LOG.append({"step": 9, "val_loss": 0.3})


def has_colour(file: Path, colour: tuple[int, int, int]) -> bool:
    return bool((abs(pixels(file, CURVE_SIZE) - colour).max(axis=2) < 8).any())


@pytest.mark.parametrize(
    ("rows", "training", "validation"),
    [
        (LOG, True, True),
        (LOG[:-1], True, False),
        (LOG[:1], True, False),
        (LOG[-1:], False, True),
        ([{"step": step, "loss": 1.0} for step in range(500)], True, False),
        ([{"step": 1, "loss": float("nan"), "val_loss": None}], False, False),
        ([], False, False),
    ],
)
def test_a_curve_has_the_losses_that_the_log_has(
    tmp_path: Path, rows: list[Mapping[str, Any]], training: bool, validation: bool
) -> None:
    file = tmp_path / "curve.png"
    draw_curve(rows, file, "$demo_ on train.jsonl")
    assert has_colour(file, (0x2F, 0x6D, 0xB5)) is training
    assert has_colour(file, (0xD9, 0x75, 0x2B)) is validation


def test_runs_are_drawn_beside_each_other(tmp_path: Path) -> None:
    file, higher = tmp_path / "curves.png", [{"step": 1, "loss": 3.0}, {"step": 9, "loss": 2.5}]
    first, second = (0x1F, 0x77, 0xB4), (0xFF, 0x7F, 0x0E)  # matplotlib's own cycle
    draw_curves({"LoRA": LOG}, file)
    assert has_colour(file, first)
    assert not has_colour(file, second)
    draw_curves({"LoRA": LOG, "QLoRA": higher}, file)
    assert has_colour(file, first)
    assert has_colour(file, second)


def test_without_matplotlib(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_import = builtins.__import__

    def without(name: str, *more: Any) -> Any:
        if name.startswith("matplotlib"):
            raise ImportError(name)
        return plain_import(name, *more)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"a\.png: .*pip install 'llavacot-mlx\[plots\]'"):
        draw_curve(LOG, tmp_path / "a.png", "a")
    assert list(tmp_path.iterdir()) == []


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no folder"):
        draw_curve(LOG, tmp_path / "gone" / "a.png", "a")
