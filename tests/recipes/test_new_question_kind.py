"""The demo model is taught a kind of question that it has never seen: the recipe, and a small one.

The small one has pictures of two shapes, so that its answers are short, and a fifth of the rows.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

from llavacot_mlx.assistant import Assistant
from llavacot_mlx.demo import model_path

pytestmark = pytest.mark.processes

RECIPE = Path(__file__).parents[2] / "recipes" / "new_question_kind"


@pytest.fixture(autouse=True)
def _recipe_on_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(RECIPE))
    monkeypatch.syspath_prepend(str(RECIPE.parents[1]))


def recipe() -> dict[str, Any]:
    return yaml.safe_load((RECIPE / "lora.yaml").read_text())


def run(*command: str) -> str:
    """What a Python command prints."""
    done = subprocess.run([sys.executable, *command], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def taught(tmp_path: Path, settings: dict[str, Any], *flags: str) -> Path:
    """An adapter, trained on what `make_data.py` writes with these flags."""
    data, adapter, config = tmp_path / "data", tmp_path / "adapter", tmp_path / "lora.yaml"
    run(str(RECIPE / "make_data.py"), str(data), *flags)
    config.write_text(yaml.safe_dump(settings))
    given = ["-c", str(config), "--data", str(data), "--adapter-path", str(adapter)]
    run("-m", "llavacot_mlx", "lora-train", *given)
    return adapter


def test_a_small_version_learns_the_new_kind(tmp_path: Path) -> None:
    from evaluate import held_out_new, right

    steps, rate = 70, 7e-4
    schedule = {"name": "cosine_decay", "arguments": [rate, steps - 5], "warmup": 5}
    size = {"iters": steps, "batch_size": 6, "steps_per_eval": 1000}
    settings = recipe() | size | {"learning_rate": rate, "lr_schedule": schedule}
    adapter = taught(
        tmp_path, settings, "--rows", "160", "--old-share", "0.5", "--most-shapes", "2"
    )
    asked = held_out_new(12, most_shapes=2)
    assert sum(right(Assistant.load(model_path()), asked[:4])) == 0
    # Half of the answers are even: a model that only knows what may be said gets 6.
    assert sum(right(Assistant.load(model_path(), adapter=adapter), asked)) >= 10


def test_trainings_are_compared(tmp_path: Path) -> None:
    rows = [
        {"step": step, "loss": 1 / step, "seconds": 2.0, "peak_memory_bytes": step * 10**6}
        for step in (1, 2, 3)
    ]
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        lines = [json.dumps(row) for row in [*rows, {"step": 3, "val_loss": 0.25}]]
        (tmp_path / name / "log.jsonl").write_text("\n".join(lines) + "\n")
    script, picture = str(RECIPE / "curves.py"), tmp_path / "curves.png"
    runs = [f"{name}={tmp_path / name}" for name in ("a", "b")]
    printed = run(script, str(picture), *runs)
    assert printed.splitlines()[0] == "a: 3 steps, 6 s, peak 3 MB, validation loss 0.2500"
    assert picture.read_bytes().startswith(b"\x89PNG")
    command = [sys.executable, script, str(picture), f"none={tmp_path}"]
    failed = subprocess.run(command, capture_output=True, text=True)
    assert failed.returncode != 0
    assert f"none={tmp_path}: wants NAME=ADAPTER" in failed.stderr


@pytest.mark.full_size
def test_the_recipe_teaches_the_new_kind_and_keeps_the_old_ones(tmp_path: Path) -> None:
    from evaluate import held_out_new, held_out_old, right

    adapter = taught(tmp_path, recipe())
    base, tuned = Assistant.load(model_path()), Assistant.load(model_path(), adapter=adapter)
    new, old = held_out_new(100), held_out_old(200)
    assert sum(right(base, new)) <= 50  # chance
    assert sum(right(tuned, new)) >= 85
    assert sum(right(tuned, old)) >= sum(right(base, old)) - 4
