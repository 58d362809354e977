"""`llavacot ask` over the real engine, with a random tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import sys
sys.argv[1:] = ["ask", "example.png", "How many?", "--max-tokens", "3", "--model", sys.argv[1]]
from llavacot_mlx.cli.main import run
try:
    run()
finally:
    print(*sys.modules, file=sys.stderr)
"""


def test_ask_imports_none_of_the_big_libraries(tiny: Path, desk: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, str(tiny)], cwd=desk, capture_output=True, text=True
    )
    assert done.returncode == 0
    imported = set(done.stderr.split())
    assert "mlx.core" in imported
    assert not imported & {"torch", "transformers", "mlx_lm", "mlx_vlm", "huggingface_hub", "rich"}


def test_json_of_the_real_engine_has_the_promised_fields(tiny: Path, desk: Path) -> None:
    words = ["ask", "example.png", "How many?", "--model", str(tiny), "--json"]
    done = subprocess.run(
        [sys.executable, "-m", "llavacot_mlx", *words, "--max-tokens", "5", "--search", "sample"],
        cwd=desk,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    assert record["image"] == "example.png"
    assert record["model"] == str(tiny)
    assert record["search"] == {"method": "sample", "retraces": 0, "nodes": []}
    assert 1 <= len(record["token_ids"]) <= 5
    assert record["usage"]["images_encoded"] == 1
    assert record["usage"]["decoded_tokens"] == len(record["token_ids"])
    assert set(record["timings"]) == {
        "load_s",
        "vision_s",
        "prefill_s",
        "first_token_s",
        "decode_s",
        "judge_s",
        "total_s",
    }


def test_the_pictures_problem_is_the_engines_line(tiny: Path, desk: Path) -> None:
    (desk / "notes.png").write_text("not a picture")
    done = subprocess.run(
        [sys.executable, "-m", "llavacot_mlx", "ask", "notes.png", "?", "--model", str(tiny)],
        cwd=desk,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: notes.png ")
