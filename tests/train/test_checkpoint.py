"""Where a training stands, on disk."""

from __future__ import annotations

import resource
import subprocess
import sys
from pathlib import Path

import mlx.core as mx
import pytest

from llavacot_mlx.errors import UserError
from llavacot_mlx.train.checkpoint import (
    FILE_NAME,
    Checkpoint,
    differences,
    load_checkpoint,
    save_checkpoint,
)


def checkpoint(step: int) -> Checkpoint:
    weights = {"a.lora_a": mx.full((300, 300), step, mx.float32)}
    state = {"step": mx.array(step, mx.uint64), "a.lora_a.m": mx.full((300, 300), 0.5)}
    return Checkpoint(step, weights, state, {"seed": 3, "keys": ["q"]})


def test_what_is_saved_comes_back(tmp_path: Path) -> None:
    save_checkpoint(tmp_path, checkpoint(7))
    loaded = load_checkpoint(tmp_path)
    assert (loaded.step, loaded.origin) == (7, {"seed": 3, "keys": ["q"]})
    assert loaded.optimizer["step"].dtype == mx.uint64
    assert loaded.optimizer["step"].item() == 7
    assert mx.array_equal(loaded.weights["a.lora_a"], mx.full((300, 300), 7.0))
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]


@pytest.mark.processes
def test_a_disk_that_is_full_leaves_the_checkpoint_before(tmp_path: Path) -> None:
    """A limit on a file's size stops a write as a full disk does."""
    save_checkpoint(tmp_path, checkpoint(1))
    script = f"""
import resource, signal, sys
from pathlib import Path
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoint import checkpoint
from llavacot_mlx.errors import UserError
from llavacot_mlx.train.checkpoint import save_checkpoint
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
new = checkpoint(2)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
try:
    save_checkpoint(Path({str(tmp_path)!r}), new)
except UserError as problem:
    print("error:", problem)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.startswith(f"error: {tmp_path / FILE_NAME}"), done.stdout + done.stderr
    assert done.stdout.count("\n") == 1
    assert load_checkpoint(tmp_path).step == 1
    assert [file.name for file in tmp_path.iterdir()] == [FILE_NAME]
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


def test_without_a_checkpoint_the_error_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="start without --resume"):
        load_checkpoint(tmp_path)


def test_a_damaged_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / FILE_NAME).write_bytes(b"x" * 1000)
    with pytest.raises(UserError, match="damaged"):
        load_checkpoint(tmp_path)


def test_differences_name_what_changed() -> None:
    before, now = {"seed": 1, "data": "a", "model": "m"}, {"seed": 2, "data": "a", "new": 1}
    assert differences(before, now) == [
        'model was "m" and is null',
        "new was null and is 1",
        "seed was 1 and is 2",
    ]
