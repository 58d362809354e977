"""The demo model is taught a kind of question that it has never seen: the recipe, by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.demo import model_path

RECIPE = Path(__file__).parents[1] / "recipes" / "new_question_kind"
NEW = 40


@pytest.fixture(autouse=True)
def _recipe_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPE))
    monkeypatch.syspath_prepend(str(RECIPE.parents[1]))


@pytest.mark.full_size
def test_a_new_kind_is_learned(tmp_path: Path) -> None:
    from evaluate import held_out_new, right
    from make_data import new_and_old
    from rows import write_rows

    from llavacot_mlx.demo.world import TRAIN

    data = write_rows(tmp_path, "train", new_and_old(TRAIN, 60_000_000, 400, 0.5))
    adapter = tmp_path / "adapter"
    recipe = [str(RECIPE / "lora.yaml"), "--data", str(data), "--adapter-path", str(adapter)]
    command = [sys.executable, "-m", "llavacot_mlx", "lora-train", "-c", *recipe]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

    base = Assistant.load(model_path())
    tuned = Assistant.load(model_path(), adapter=adapter)
    new = list(held_out_new(NEW))
    assert sum(right(base, new)) <= NEW // 2  # chance
    assert sum(right(tuned, new)) >= 0.85 * NEW
