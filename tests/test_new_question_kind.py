"""The demo model is taught a kind of question that it has never seen: a small run of the recipe."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.demo import model_path

RECIPE = Path(__file__).parents[1] / "recipes" / "new_question_kind"
NEW, OLD = 16, 16


@pytest.fixture(autouse=True)
def _recipe_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPE))
    monkeypatch.syspath_prepend(str(RECIPE.parents[1]))


def test_a_new_kind_is_learned_and_the_old_ones_are_kept(tmp_path: Path) -> None:
    from evaluate import held_out_new, held_out_old, right
    from make_data import new_and_old
    from rows import write_rows

    from llavacot_mlx.demo.world import TRAIN

    data = write_rows(tmp_path, "train", new_and_old(TRAIN, 60_000_000, 100, 0.5))
    adapter = tmp_path / "adapter"
    short = ["--iters", "40", "--batch-size", "4", "--val-answers", "0", "--learning-rate", "1e-3"]
    recipe = [str(RECIPE / "lora.yaml"), "--data", str(data), "--adapter-path", str(adapter)]
    command = [sys.executable, "-m", "llavacot_mlx", "lora-train", "-c", *recipe, *short]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    base = Assistant.load(model_path())
    tuned = Assistant.load(model_path(), adapter=adapter)
    new, old = list(held_out_new(NEW)), list(held_out_old(OLD))
    assert sum(right(base, new)) <= NEW // 2  # chance
    assert sum(right(tuned, new)) >= 0.75 * NEW
    assert sum(right(tuned, old)) >= sum(right(base, old)) - 2
