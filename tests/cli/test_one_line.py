"""Whatever is wrong, the line about it is one, short, and without control characters."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llavacot_mlx import demo
from llavacot_mlx.cli.main import app
from llavacot_mlx.cli.printable import short_line

ROW = {"image": "p.png", "question": "a", "answer": "b"}


def refused(*arguments: object, code: int = 1) -> str:
    done = CliRunner().invoke(app, list(map(str, arguments)), prog_name="llavacot")
    assert done.exit_code == code, (done.stdout, done.stderr, done.exception)
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "internal" not in line
    assert len(line) <= 300
    assert line.isprintable()
    return line


def test_a_long_line_keeps_its_beginning_and_its_end() -> None:
    line = short_line(f"file: {'x' * 10_000} is wrong; add --flag")
    assert len(line) == 290
    assert line.startswith("file: xxx")
    assert line.endswith("is wrong; add --flag")
    assert short_line("a\n\x1b[31m b") == "a ␛[31m b"


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.png").write_bytes(demo.example_path("tall").read_bytes())
    (tmp_path / "rows.jsonl").write_text(json.dumps(ROW) + "\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("seed: -1", "--seed -1: must be 0 or more"),
        (f"seed: {2**63}", "seed: expected a whole number"),
        ("epochs: 1e300", "--epochs 1e+300: must be above 0, and at most 1000000"),
        ("iters: 3000000000", "--iters 3000000000: must be above 0, and below 2^31"),
        ("grad_accumulation_steps: 1000000000000", "--grad-accumulation-steps"),
        (f"learning_rate: {'9' * 600}", "a number of 600 digits"),
        ('data: "a\\0b"', "--data a␀b: no file can have this name"),
        ('adapter_path: "a\\0b"', "no file can have this name"),
        ('images: "a\\0b"', "no file can have this name"),
        ('model: "a\\0b"', "no file can have this name"),
        ("model: [a]", 'model: expected a text, not ["a"]'),
        (r'model: "http://[\e[31m/b"', "is no name of a model"),
        ("model: 2024-99-99", "2024-99-99: no such folder"),
        (r'"\e[31mx": 1', "unknown key"),
        (f'? "{"k" * 5000}"\n: 1', "unknown key"),
        ("optimizer_config: {adamw: {betas: [0.9]}}", "optimizer_config.adamw: not enough values"),
        ("optimizer_config: {adamw: {weight_decay: .nan}}", "expected"),
        ("optimizer_config: {adamw: {weight_decay: [[1]]}}", "expected"),
        ("lr_schedule: {name: cosine_decay, arguments: [1e-5, 10], warmup: -1}", "warmup"),
    ],
)
def test_settings_of_a_training(text: str, says: str, desk: Path) -> None:
    """Most of these were an internal error, or a training that never comes to its first report."""
    rest = {"data": "rows.jsonl", "model": str(demo.model_path())}
    lines = [f"{key}: {value}" for key, value in rest.items() if not text.startswith(f"{key}:")]
    (desk / "lora.yaml").write_text("\n".join([*lines, text]))
    assert says in refused("lora-train", "-c", "lora.yaml")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (("--seed", "-1"), "--seed -1: must be 0 or more"),
        (("--seed", str(2**63)), "below 2^63"),
        (("--seed", "9" * 4000), "--seed 999"),
        (("--max-tokens", "9" * 400), "must be at most"),
        (("--kv-budget", "9" * 400), "more bytes than any machine has"),
    ],
    ids=lambda value: value[0] if isinstance(value, tuple) else "",
)
def test_numbers_of_flags(flags: tuple[str, ...], says: str, desk: Path) -> None:
    assert says in refused("ask", "p.png", "What?", *flags, code=2)


def test_a_trace_that_is_asked_again_with_half_a_character(desk: Path) -> None:
    done = CliRunner().invoke(app, ["ask", "p.png", "What?", "--max-tokens", "2", "--trace", "t"])
    assert done.exit_code == 0
    value = json.loads((desk / "t").read_text())
    (desk / "t").write_text(json.dumps({**value, "question": "\udc80"}))
    line = refused("trace", "t", "--replay", "--model", demo.model_path())
    assert "half of a character" in line


def test_a_threshold_beyond_all_numbers(desk: Path) -> None:
    """It was written into the trace as Infinity, which no reader of JSON takes."""
    shutil.copytree(demo.model_path(), desk / "model")
    huge = {"mean": 1e308, "std": 1e308, "count": 3}
    stages = {"caption": huge, "reasoning": huge}
    (desk / "model" / "calibration.json").write_text(json.dumps({"judges": {"self": stages}}))
    plan = "steps: [{write: summary}, {write: caption, candidates: 2}, {write: answer}]\n"
    plan += "retrace: {after: caption, to: caption, most: 1, deviations: 1e9}\n"
    (desk / "plan.yaml").write_text(plan)
    line = refused("ask", "p.png", "What?", "--model", "model", "--plan", "plan.yaml")
    assert "threshold of judge self is inf" in line
