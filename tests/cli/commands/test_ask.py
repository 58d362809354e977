"""What the flags of `llavacot ask` mean, and what is refused before a model is loaded."""

from __future__ import annotations

import json
import sys
import types
from pathlib import Path

import pytest
from fakes import FakeAssistant
from typer.testing import CliRunner

from llavacot_mlx.cli.main import app


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, desk: Path) -> None:
    """The fake engine, in a folder with a picture and a model."""
    module = types.ModuleType("llavacot_mlx.assistant")
    module.Assistant = FakeAssistant  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.chdir(desk)


@pytest.fixture
def unloadable(engine: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("the model was loaded")

    monkeypatch.setattr(FakeAssistant, "load", load)


def ask(*arguments: str) -> dict[str, object]:
    done = CliRunner().invoke(app, ["ask", "--model", "demo", "--json", *arguments])
    assert done.exit_code == 0, done.output
    record: dict[str, object] = json.loads(done.stdout)
    return record


def refused(*arguments: str, code: int = 1) -> str:
    """The one line that is said of a problem, without `error: `."""
    done = CliRunner().invoke(app, ["ask", *arguments])
    assert (done.exit_code, done.stdout) == (code, "")
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.mark.usefixtures("engine")
@pytest.mark.parametrize(
    ("flags", "meant"),
    [
        ([], "greedy of 1 by logprob, temperature 0, top-p 1"),
        (
            ["--search", "greedy", "--temperature", "0"],
            "greedy of 1 by logprob, temperature 0, top-p 1",
        ),
        (["--search", "sample"], "sample of 1 by logprob, temperature 0.6, top-p 0.9"),
        (["--temperature", "0.3"], "sample of 1 by logprob, temperature 0.3, top-p 0.9"),
        (["--temp", "1.2", "--top-p", "1"], "sample of 1 by logprob, temperature 1.2, top-p 1"),
        (["--search", "swires"], "swires of 4 by self, temperature 0.6, top-p 0.9"),
        (
            ["--search", "swires", "--judge", "logprob"],
            "swires of 4 by logprob, temperature 0.6, top-p 0.9",
        ),
        (
            ["--search", "majority", "--candidates", "9"],
            "majority of 9 by majority, temperature 0.6, top-p 0.9",
        ),
        (
            ["--search", "best-of-n", "--judge", "logprob", "--temp", "0"],
            "best-of-n of 4 by logprob, temperature 0, top-p 0.9",
        ),
        (
            ["--search", "stage-beam", "--top-p", "0.5"],
            "stage-beam of 2 by pairwise, temperature 0.6, top-p 0.5",
        ),
        (
            ["--search", "greedy", "--candidates", "1"],
            "greedy of 1 by logprob, temperature 0, top-p 1",
        ),
    ],
)
def test_search_and_sampling_flags_mean(flags: list[str], meant: str) -> None:
    plan = ask("example.png", "How many?", *flags)["search"]["plan"]
    widest = max(step["candidates"] for step in plan["steps"])
    said = f"{plan['method']} of {widest} by {plan['judge']}"
    assert f"{said}, temperature {plan['temperature']:g}, top-p {plan['top_p']:g}" == meant


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize(
    ("flags", "named"),
    [
        (["--search", "greedy", "--temperature", "0.6"], "--search greedy with --temperature 0.6"),
        (["--search", "sample", "--temp", "0"], "--search sample with --temperature 0"),
        (["--top-p", "0.9"], "--top-p 0.9"),
        (["--temperature", "-1"], "--temperature -1"),
        (["--temperature", "nan"], "--temperature nan"),
        (["--search", "sample", "--top-p", "0"], "--top-p 0"),
        (["--search", "sample", "--top-p", "1.1"], "--top-p 1.1"),
        (["--candidates", "4"], "--candidates 4: greedy follows one path"),
        (["--search", "sample", "--candidates", "4"], "--search sample --candidates 4: "),
        (["--search", "greedy", "--judge", "self"], "--search greedy --judge self: "),
        (["--search", "swires", "--candidates", "0"], "--search swires --candidates 0: "),
        (
            ["--search", "majority", "--candidates", "10000"],
            "--search majority --candidates 10000: ",
        ),
        (["--search", "majority", "--judge", "self"], "--search majority --judge self: "),
        (["--search", "swires", "--keep", "5"], "--search swires --keep 5: keep 5 of 4"),
        (["--search", "swires", "--keep", "0"], "--search swires --keep 0: "),
        (["--search", "majority", "--keep", "2"], "--search majority --keep 2: "),
        (["--search", "stage-beam", "--threshold", "1"], "--search stage-beam --threshold 1"),
        (["--search", "swires", "--threshold", "nan"], "--search swires --threshold nan: "),
        (["--candidates", "0"], "--candidates 0: 0 candidates: take 1 to 256"),
        (["--candidates", "-3"], "--candidates -3: -3 candidates: take 1 to 256"),
        (
            ["--search", "swires", "--threshold", "7"],
            "--search swires --threshold 7: threshold 7: the scores of judge self are from 0 to 1",
        ),
        (
            ["--search", "swires", "--judge", "pairwise", "--threshold", "-0.1"],
            "--search swires --judge pairwise --threshold -0.1: threshold -0.1: the scores of",
        ),
        (
            ["--search", "swires", "--judge", "logprob", "--threshold", "0.5"],
            "--search swires --judge logprob --threshold 0.5: threshold 0.5: the scores of judge "
            "logprob are at most 0",
        ),
        (["--search", "swires", "--judge", "slef"], "judge 'slef': there are self"),
        (["--max-tokens", "99999999999"], "--max-tokens 99999999999: must be at most"),
        (["--search", "swires", "--max-retraces", "-1"], "--search swires --max-retraces -1: "),
        (["--search", "swires", "--judge", " "], "--search swires --judge : "),
        (["--plan", "nix.yaml", "--keep", "2"], "--plan nix.yaml with --keep 2: drop one"),
        (["--kv-bits", "3"], "--kv-bits 3: must be 8 or 4"),
        (["--kv-budget", "much"], "--kv-budget: 'much' is not a number of bytes"),
        (["--kv-budget", "0"], "--kv-budget: "),
        (
            ["--search", "stage-beam", "--judge", "majority"],
            "--search stage-beam --judge majority: ",
        ),
        (["--search", "swires", "--temp", "-1"], "--temperature -1"),
        (["--max-tokens", "0"], "--max-tokens 0"),
        (["--json", "--answer-only"], "--json with --answer-only"),
        (["--json", "--show", "all"], "--show all with --json"),
    ],
)
def test_flags_that_make_no_sense_are_named(flags: list[str], named: str) -> None:
    assert refused("example.png", "How many?", "--model", "demo", *flags, code=2).startswith(named)


@pytest.mark.usefixtures("unloadable")
def test_an_empty_question_is_refused() -> None:
    assert refused("example.png", " \n", code=2).startswith("QUESTION is empty")


@pytest.mark.usefixtures("unloadable")
def test_stdin_cannot_be_both() -> None:
    assert "both -" in refused("-", "-", code=2)


@pytest.mark.usefixtures("unloadable")
def test_a_missing_file_is_no_wrong_usage() -> None:
    assert refused("nix.png", "?", "--model", "demo").startswith("nix.png: ")
    missing = refused("example.png", "?", "--model", "demo", "--plan", "nix.yaml")
    assert missing == "nix.yaml is missing"


@pytest.mark.usefixtures("unloadable")
def test_a_damaged_picture_is_refused() -> None:
    whole = Path("example.png").read_bytes()
    Path("half.png").write_bytes(whole[: len(whole) // 2])
    assert "half.png" in refused("half.png", "?", "--model", "demo")


@pytest.mark.usefixtures("unloadable")
def test_a_file_name_cannot_write_to_the_terminal() -> None:
    assert "␛[31m" in refused("\x1b[31m.png", "How many?")


@pytest.mark.usefixtures("unloadable")
@pytest.mark.parametrize("name", ["nix", "./nix", "/nix/nix", "a/b/c"])
def test_a_model_that_is_no_folder_is_refused(name: str) -> None:
    assert refused("example.png", "?", "--model", name) == (
        f"{name}: no such folder; a model is a folder, or an id like owner/name on the hub"
    )


@pytest.mark.usefixtures("unloadable")
def test_a_model_that_is_a_file_is_refused() -> None:
    assert refused("example.png", "?", "--model", "example.png").startswith("example.png: a file;")


@pytest.mark.usefixtures("unloadable")
def test_an_empty_name_is_not_the_current_folder() -> None:
    assert "name is empty" in refused("example.png", "?", "--model", "")
