"""Which BLAS MLX is linked to on Linux. The dynamic linker itself says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from demo_rows import write_rows

from llavacot_mlx import demo
from llavacot_mlx.cli.openblas import load_fast_blas

pytestmark = [
    pytest.mark.skipif(not sys.platform.startswith("linux"), reason="a Mac has Accelerate"),
    pytest.mark.skipif("LD_PRELOAD" in os.environ, reason="LD_PRELOAD comes first"),
]


def blas_of(tmp_path: Path, *command: str) -> str:
    """The library that has the `cblas_sgemm` of a command's MLX."""
    tmp_path.mkdir(exist_ok=True)
    said = tmp_path / "linker"
    environment = os.environ | {"LD_DEBUG": "bindings", "LD_DEBUG_OUTPUT": str(said)}
    subprocess.run([sys.executable, *command], env=environment, check=True, capture_output=True)
    lines = [line for file in tmp_path.glob("linker.*") for line in file.read_text().splitlines()]
    (line,) = {
        line.partition(" to ")[2]
        for line in lines
        if "libmlx.so" in line.partition(" to ")[0] and "`cblas_sgemm'" in line
    }
    return line.partition(" ")[0]


PRODUCT = "import mlx.core as mx; mx.eval(mx.ones((2, 2)) @ mx.ones((2, 2)))"


@pytest.mark.processes
def test_mlx_is_linked_to_what_was_loaded(tmp_path: Path) -> None:
    assert "openblas" not in blas_of(tmp_path / "without", "-c", PRODUCT)
    load = "from llavacot_mlx.cli.openblas import load_fast_blas; assert load_fast_blas(); "
    assert "openblas" in blas_of(tmp_path, "-c", load + PRODUCT)


@pytest.mark.processes
def test_a_training_has_it(tmp_path: Path) -> None:
    rows = write_rows(tmp_path, range(5000, 5002))
    flags = ["--data", str(rows), "--images", str(tmp_path / "images"), "--batch-size", "1"]
    out = ["--adapter-path", str(tmp_path / "adapter"), "--iters", "1"]
    command = ["-m", "llavacot_mlx", "lora-train", *flags, *out]
    assert "openblas" in blas_of(tmp_path, *command)


@pytest.mark.processes
@pytest.mark.parametrize("command", ["ask", "replay", "calibrate"])
def test_an_answer_has_it(command: str, tmp_path: Path) -> None:
    """It halves the time to the first token on Linux, and that of a search."""
    trace = str(tmp_path / "trace.json")
    picture = str(demo.model_path().parent / "examples" / "square.png")
    ask = ["ask", picture, "How many?", "--plain", "--max-tokens", "2"]
    if command == "ask":
        arguments = ask
    elif command == "replay":
        blas_of(tmp_path / "before", "-m", "llavacot_mlx", *ask, "--trace", trace)
        arguments = ["trace", trace, "--replay"]
    else:
        model = shutil.copytree(demo.model_path(), tmp_path / "model")
        rows = write_rows(tmp_path, range(5000, 5001))
        images = tmp_path / "images"
        arguments = ["calibrate", str(rows), "--images", str(images), "-m", str(model), "--force"]
    assert "openblas" in blas_of(tmp_path / "it", "-m", "llavacot_mlx", *arguments)


def test_without_any_nothing_happens(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llavacot_mlx.cli.openblas._SYSTEM", "libnowhere.so")
    monkeypatch.setattr("llavacot_mlx.cli.openblas._BUNDLED", "nowhere*")
    assert load_fast_blas() is None


def test_a_library_without_the_names_is_passed_over(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("llavacot_mlx.cli.openblas._SYSTEM", "libc.so.6")
    monkeypatch.setattr("llavacot_mlx.cli.openblas._BUNDLED", "nowhere*")
    assert load_fast_blas() is None
