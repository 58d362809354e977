"""`llavacot convert`: what its flags mean, and its last line."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from terminal_session import TerminalSession
from typer.testing import CliRunner

from llavacot_mlx.cli.main import app
from llavacot_mlx.convert import convert as run
from llavacot_mlx.convert.recipes import RECIPES, Recipe, with_vision
from llavacot_mlx.model.config import Quantization


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> dict[str, Any]:
    """What the conversion was asked for, in place of one; in a folder with `checkpoint`."""
    asked: dict[str, Any] = {}

    def convert(source: Path, target: Path, **wanted: Any) -> run.Converted:
        asked.update(wanted, source=source, target=target)
        return run.Converted(target, 21_340_000_000, 7_300_000_000, ("bfloat16",))

    monkeypatch.setattr(run, "convert", convert)
    monkeypatch.chdir(tmp_path)
    Path("checkpoint").mkdir()
    return asked


def convert(*arguments: str) -> str:
    done = CliRunner().invoke(app, ["convert", *arguments])
    assert done.exit_code == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def refused(*arguments: str, code: int = 2) -> str:
    done = CliRunner().invoke(app, ["convert", *arguments])
    assert (done.exit_code, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    return line.removeprefix("error: ")


def test_the_last_line_says_what_to_do_next(asked: dict[str, Any]) -> None:
    assert convert("checkpoint") == (
        'wrote mlx_model, 7.3 GB; now: llavacot ask photo.jpg "What is unusual here?" '
        "--model mlx_model\n"
    )
    assert asked["source"] == Path("checkpoint")
    assert (asked["dtype"], asked["quantization"], asked["force"]) == (None, None, False)


def test_the_next_command_can_be_typed_as_it_is(asked: dict[str, Any]) -> None:
    assert convert("checkpoint", "--mlx-path", "my model").endswith(" --model 'my model'\n")


@pytest.mark.parametrize(
    ("flags", "quantization"),
    [
        (["-q"], Quantization(64, 4, "affine")),
        (["--quantize", "--q-bits", "8"], Quantization(64, 8, "affine")),
        (["-q", "--q-group-size", "32"], Quantization(32, 4, "affine")),
        (["-q", "--q-mode", "mxfp4"], Quantization(32, 4, "mxfp4")),
        (["-q", "--q-mode", "mxfp8"], Quantization(32, 8, "mxfp8")),
        (["-q", "--q-mode", "nvfp4"], Quantization(16, 4, "nvfp4")),
    ],
)
def test_quantization_flags_mean(
    asked: dict[str, Any], flags: list[str], quantization: Quantization
) -> None:
    convert("checkpoint", *flags)
    assert asked["quantization"] == quantization
    assert quantization.error is None


def test_a_recipe_is_a_name_or_a_file(asked: dict[str, Any]) -> None:
    convert("checkpoint", "--recipe", "mixed-4-8")
    assert asked["quantization"] == RECIPES["mixed-4-8"]
    Path("my.yaml").write_text("language_model.*: 3bit")
    convert("checkpoint", "--recipe", "my.yaml")
    assert asked["quantization"] == Recipe(
        "my.yaml", (("language_model.*", Quantization(64, 3, "affine")),)
    )


@pytest.mark.parametrize("flags", [["-q"], ["--recipe", "4bit"]])
def test_vision_is_quantized_where_that_is_asked_for(
    flags: list[str], asked: dict[str, Any]
) -> None:
    convert("checkpoint", *flags, "--quantize-vision")
    assert asked["quantization"] == with_vision(RECIPES["4bit"])


def test_what_comes_from_here_is_verified(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """What was downloaded has passed the hub's own check; the flag decides where it is given."""
    monkeypatch.setattr(
        "llavacot_mlx.checkpoint.hub.find", lambda *_, **__: tmp_path / "checkpoint"
    )
    for source, usually in (("checkpoint", True), ("owner/name", False)):
        convert(source)
        assert (asked["verify"], asked["name"]) == (usually, None if usually else source)
        convert(source, "--verify")
        assert asked["verify"]
        convert(source, "--no-verify")
        assert not asked["verify"]


def test_the_help_names_every_recipe() -> None:
    shown = " ".join(convert("--help").split())
    assert " ".join(RECIPES) in shown


def test_the_type_and_force_are_passed_on(asked: dict[str, Any]) -> None:
    Path("out").mkdir()
    convert("checkpoint", "--mlx-path", "out", "--dtype", "float16", "--force")
    assert (asked["target"], asked["dtype"], asked["force"]) == (Path("out"), "float16", True)


@pytest.mark.parametrize(
    "flags", [["--q-bits", "4"], ["--q-group-size", "64"], ["--q-mode", "affine"]]
)
def test_a_quantization_flag_without_q_is_refused(asked: dict[str, Any], flags: list[str]) -> None:
    assert refused("checkpoint", *flags) == (f"{' '.join(flags)}: has no effect without -q; add -q")
    assert asked == {}


def test_an_existing_target_is_refused_before_anything_is_downloaded(
    asked: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "llavacot_mlx.checkpoint.hub.find", lambda *_, **__: pytest.fail("looked for the model")
    )
    Path("mlx_model").mkdir()
    assert refused("owner/name", code=1).startswith("mlx_model exists already: ")
    assert asked == {}


def test_without_arguments_an_example_is_shown() -> None:
    shown = convert()
    assert "llavacot convert Xkev/Llama-3.2V-11B-cot -q" in shown
    assert "llavacot convert --help" in shown


@pytest.mark.processes
def test_a_checkpoint_is_converted_and_answers(quantizable: Path, desk: Path) -> None:
    """With the real engine, from the checkpoint to the answer."""
    llavacot = [sys.executable, "-m", "llavacot_mlx"]
    words = [*llavacot, "convert", str(quantizable), "-q", "--mlx-path", str(desk / "new")]
    with TerminalSession(words, width=300) as session:
        assert session.finish() == 0
        assert b"converting" in session.output
        estimate, line = session.text.splitlines()[:2]
        assert "bits per weight" in estimate
        assert line.startswith(f"wrote {desk / 'new'}, ")
        assert "converting" not in session.text
    words = [*llavacot, "ask", "example.png", "?", "--model", "new", "--max-tokens", "3"]
    done = subprocess.run(words, cwd=desk, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 tokens" in done.stdout
