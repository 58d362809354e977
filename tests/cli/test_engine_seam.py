"""`llavacot ask` over the real engine, with a random tiny model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.processes

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
    search = record["search"]
    assert (search["method"], search["retraces"], search["nodes"]) == ("sample", 0, [])
    assert search["plan"]["temperature"] == 0.6
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


@pytest.mark.parametrize(
    ("flags", "count"),
    [(["majority", "--candidates", "3"], 3), (["stage-beam"], 2)],
)
def test_json_of_a_search_has_its_tree(
    tiny: Path, desk: Path, flags: list[str], count: int
) -> None:
    words = ["ask", "example.png", "How many?", "--model", str(tiny), "--max-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "llavacot_mlx", *words, "--json", "--search", *flags],
        cwd=desk,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    record = json.loads(done.stdout)
    nodes = record["search"]["nodes"]
    assert record["search"]["method"] == flags[0]
    assert [node["id"] for node in nodes] == list(range(count))
    assert sum(node["kept"] for node in nodes) == 1
    assert record["usage"]["decoded_tokens"] == sum(node["tokens"] for node in nodes)


@pytest.mark.parametrize("flag", ["--plain", "--answer-only"])
def test_a_search_with_the_real_engine_is_shown(tiny: Path, desk: Path, flag: str) -> None:
    words = ["ask", "example.png", "How many?", "--model", str(tiny), "--max-tokens", "4"]
    done = subprocess.run(
        [sys.executable, "-m", "llavacot_mlx", *words, "--search", "best-of-n", flag],
        cwd=desk,
        capture_output=True,
        text=True,
    )
    if flag == "--plain":
        assert (done.returncode, done.stderr) == (0, "")
        notice, rounds = done.stdout.split("\n\n", 1)
        assert notice.startswith("note: the judge self came to no verdict")
        assert rounds.startswith("Answer · 4 candidates · their conclusions\n1 ")
        assert "4 candidates · 0 retraces · 16 tokens decoded, " in done.stdout
    else:  # a random model concludes nothing
        assert done.stderr.startswith("error: the model wrote no conclusion")


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
