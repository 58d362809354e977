"""What a person sets once: LLAVACOT_MODEL, the configuration file, and names of other programs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from llavacot_mlx import demo
from llavacot_mlx.cli import defaults
from llavacot_mlx.cli.main import app
from llavacot_mlx.cli.resolve_model import resolve_model
from llavacot_mlx.errors import UserError


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the configuration file of this test is; it does not exist yet."""
    file = tmp_path / "home" / "llavacot" / "config.yaml"
    file.parent.mkdir(parents=True)
    monkeypatch.delenv(defaults.FILE_VARIABLE)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    assert defaults.config_file() == file
    return file


@pytest.fixture
def models(tmp_path: Path) -> dict[str, Path]:
    found = {name: tmp_path / name for name in ("named", "of variable", "of file")}
    for folder in found.values():
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    return found


def test_a_name_wins_over_the_variable_and_the_variable_over_the_file(
    config: Path, models: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert resolve_model(None).folder == demo.model_path()
    config.write_text(f"model: {models['of file']}")
    assert resolve_model(None).folder == models["of file"]
    monkeypatch.setenv("LLAVACOT_MODEL", str(models["of variable"]))
    assert resolve_model(None).folder == models["of variable"]
    assert resolve_model(str(models["named"])).folder == models["named"]


def test_what_set_a_model_that_is_not_there_is_named(
    config: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config.write_text("model: nix/nix/nix")
    with pytest.raises(UserError, match=f"^{re.escape(str(config))}: nix/nix/nix: "):
        resolve_model(None)
    monkeypatch.setenv("LLAVACOT_MODEL", "./nix")
    with pytest.raises(UserError, match=r"^LLAVACOT_MODEL: \.?/?nix: "):
        resolve_model(None)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("model: [", "not valid YAML"),
        ("- model", "expected lines like `model: PATH`"),
        ("model: 7", "model: expected a folder or an id, not 7"),
        ("ask: 7", "ask: expected lines like"),
        ("ask: {max-tokns: 7}", "ask: there is no flag --max-tokns; did you mean max-tokens?"),
        ("ask: {max-tokens: many}", "max-tokens: many: must be a whole number"),
        ("lora-train: {iters: 7}", "lora-train: has no defaults here"),
    ],
)
def test_a_file_that_cannot_be_is_named(config: Path, text: str, said: str) -> None:
    config.write_text(text)
    result = CliRunner().invoke(app, ["ask", "nix.png", "?"])
    assert result.exception is not None
    shown = result.stderr + str(result.exception)
    assert str(config) in shown
    assert said in shown


def test_flags_have_the_defaults_of_the_file(config: Path) -> None:
    """They are checked like flags, and a flag on the command line wins."""
    config.write_text("ask:\n  max_tokens: 0\n")
    arguments = ["ask", "nix.png", "?"]
    assert "--max-tokens 0" in CliRunner().invoke(app, arguments).stderr
    shown = CliRunner().invoke(app, [*arguments, "--max-tokens", "5"]).stderr
    assert "nix.png: " in shown


def test_a_file_that_was_asked_for_must_exist(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(defaults.FILE_VARIABLE, "/nix/config.yaml")
    with pytest.raises(UserError, match=r"LLAVACOT_CONFIG: /nix/config\.yaml is missing"):
        defaults.default_model()


@pytest.mark.parametrize(
    "command", ["ask", "calibrate", "convert", "fuse", "trace", "lora-train", "data check"]
)
def test_the_model_has_a_short_name(command: str) -> None:
    shown = CliRunner().invoke(app, [*command.split(), "--help"]).output
    assert "-m, --model " in shown


def test_convert_takes_its_source_as_mlx_lm_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[Any] = []
    monkeypatch.setattr(
        "llavacot_mlx.cli.commands.convert._convert_checkpoint",
        lambda source, *_, **__: taken.append(source),
    )
    assert CliRunner().invoke(app, ["convert", "--hf-path", "owner/name"]).exit_code == 0
    assert taken == ["owner/name"]
    twice = CliRunner().invoke(app, ["convert", "a/b", "--hf-path", "owner/name"])
    assert (twice.exit_code, "both name the source" in twice.stderr) == (2, True)
    none = CliRunner().invoke(app, ["convert", "-m", "owner/name", "-q"])
    assert (none.exit_code, none.stderr) == (
        2,
        "error: SRC is missing: llavacot convert owner/name\n",
    )


def test_the_older_name_of_exports_output_works_with_a_note(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written: list[Any] = []
    monkeypatch.setattr(
        "llavacot_mlx.cli.commands.export._export_model",
        lambda source, revision, folder, *_: written.append(folder),
    )
    done = CliRunner().invoke(app, ["export", "model", "--hf-path", "out"])
    assert (done.exit_code, done.stderr) == (0, "note: --hf-path is called --save-path now\n")
    assert CliRunner().invoke(app, ["export", "model", "--save-path", "out"]).stderr == ""
    assert CliRunner().invoke(app, ["export", "model"]).exit_code == 0
    assert written == [Path("out"), Path("out"), Path("hf_model")]


@pytest.mark.processes
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("llavacot as", ["ask"]),
        ("llavacot ask --sea", ["--search"]),
        ("llavacot ask --search sw", ["swires", "swires-code"]),
        ("llavacot data ch", ["check"]),
    ],
)
def test_a_shell_completes_commands_flags_and_values(words: str, offered: list[str]) -> None:
    environment = {
        "COMP_WORDS": words,
        "COMP_CWORD": str(len(words.split()) - 1),
        "_LLAVACOT_COMPLETE": "complete_bash",
    }
    done = subprocess.run(
        [sys.executable, "-m", "llavacot_mlx"],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert (done.stdout.split(), done.stderr) == (offered, "")


@pytest.mark.parametrize("columns", ["60", "80", "120"])
def test_the_options_of_ask_are_in_panels(columns: str) -> None:
    shown = CliRunner().invoke(app, ["ask", "--help"], env={"COLUMNS": columns}).output
    headings = [line for line in shown.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == ["Arguments:", "Options:", "Search:", "Sampling:", "Memory:", "Output:"]
