"""Wrong usage of the command line: one line with what to type instead, and exit code 2."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from llavacot_mlx import demo
from llavacot_mlx.cli.main import run

Refused = Callable[..., str]


@pytest.fixture
def refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> Iterator[Refused]:
    """`refused("ask", …)`: the line of a command line that is wrong, without `error: `."""
    shutil.copy(demo.example_path(), tmp_path / "photo.jpg")
    shutil.copy(demo.example_path(), tmp_path / "two words.png")
    shutil.copy(demo.example_path(), tmp_path / "-photo.png")
    (tmp_path / "model").mkdir()
    (tmp_path / "notes.txt").write_text("notes")
    monkeypatch.chdir(tmp_path)
    terminate = signal.getsignal(signal.SIGTERM)

    def refused(*arguments: str) -> str:
        monkeypatch.setattr("sys.argv", ["llavacot", *arguments])
        with pytest.raises(SystemExit) as ended:
            run()
        out, err = capfd.readouterr()
        assert (ended.value.code, out) == (2, ""), err
        (line,) = err.splitlines()
        assert line.startswith("error: ")
        for foreign in ("Value error", "Input should be", "Invalid value", "unable to parse"):
            assert foreign not in line
        return line.removeprefix("error: ")

    yield refused
    signal.signal(signal.SIGTERM, terminate)


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["photo.jpg", "-5 + 3 = ?"], 'llavacot ask photo.jpg -- "-5 + 3 = ?"'),
        (["photo.jpg", "-5"], 'llavacot ask photo.jpg -- "-5"'),
        (["photo.jpg", "--what is = ?"], 'llavacot ask photo.jpg -- "--what is = ?"'),
        (
            ["photo.jpg", "-5 + 3 = ?", "--model", "a b"],
            'llavacot ask photo.jpg --model "a b" -- "-5 + 3 = ?"',
        ),
        (["photo.jpg", "-m is what?"], 'llavacot ask photo.jpg -- "-m is what?"'),
        (["photo.jpg", "-have you seen"], 'llavacot ask photo.jpg -- "-have you seen"'),
        (["-nix 1.png", "What?"], 'llavacot ask -- "-nix 1.png" "What?"'),
        (["-photo.png", "What?"], "is written ./-photo.png"),
    ],
)
def test_what_begins_with_a_dash(refused: Refused, arguments: list[str], typed: str) -> None:
    assert refused("ask", *arguments).endswith(typed)


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["ask", "What is this?", "photo.jpg"], 'llavacot ask photo.jpg "What is this?"'),
        (["ask", "What?", "notes.txt"], 'llavacot ask notes.txt "What?"'),
        (["ask", "photo.jpg", "What", "is", "this?"], 'llavacot ask photo.jpg "What is this?"'),
        (["ask", "two", "words.png", "What?"], '"two words.png"'),
        (["info", "two", "words.png"], '"two words.png"'),
        (["photo.jpg", "What is this?"], 'llavacot ask photo.jpg "What is this?"'),
        (["photo.jpg", "What", "is", "this?"], 'llavacot ask photo.jpg "What is this?"'),
        (["photo.jpg"], 'llavacot ask photo.jpg "What is unusual here?"'),
        (["What is this?", "photo.jpg"], 'llavacot ask photo.jpg "What is this?"'),
        (["What is this?"], 'llavacot ask photo.jpg "What is this?"'),
        (["photo.jpg", "It's $5?", "--json"], "llavacot ask photo.jpg 'It'\"'\"'s $5?'"),
        (["model"], "llavacot info model"),
        (["search.json"], "llavacot trace search.json"),
        (["train.jsonl"], "llavacot data check train.jsonl"),
    ],
)
def test_words_in_a_wrong_place(refused: Refused, arguments: list[str], typed: str) -> None:
    line = refused(*arguments)
    assert line.endswith(f": {typed}"), line


@pytest.mark.parametrize(
    ("arguments", "typed"),
    [
        (["help"], "try llavacot --help"),
        (["help", "ask"], "try llavacot --help, or llavacot ask --help"),
        (["lora", "--data", "x"], "try llavacot lora-train"),
        (["train"], "try llavacot lora-train"),
        (["generate"], "try llavacot ask"),
        (["stats", "x.jsonl"], "try llavacot data stats"),
        (["aks", "photo.jpg", "?"], "did you mean llavacot ask?"),
        (["calib"], "did you mean llavacot calibrate?"),
        (["data", "chek"], "did you mean llavacot data check?"),
        (
            ["nix"],
            "there are ask, trace, convert, lora-train, fuse, export, info, calibrate, data, eval",
        ),
        (["ask", "a", "b", "--max_tokens", "5"], "did you mean --max-tokens?"),
        (["ask", "a", "b", "--nix"], "llavacot ask --help lists them"),
        (["lora-train", "--train"], "leave it out"),
    ],
)
def test_words_of_other_programs(refused: Refused, arguments: list[str], typed: str) -> None:
    line = refused(*arguments)
    assert line.startswith("there is no ")
    assert line.endswith(typed), line


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["ask", "photo.jpg"], "QUESTION is missing. Usage: llavacot ask [OPTIONS] IMAGE QUESTION"),
        (["ask", "photo.jpg", "?", "--candidates"], "--candidates needs a value; see llavacot ask"),
        (["ask", "photo.jpg", "?", "--json=1"], "--json takes no value; see llavacot ask --help"),
        (["ask", "photo.jpg", "?", "--candidates", "x"], "--candidates x: must be a whole number"),
        (["ask", "photo.jpg", "?", "--temp", "1,5"], "--temperature 1,5: must be a number"),
        (["ask", "photo.jpg", "?", "--search", "x"], "--search x: must be one of greedy, sample, "),
        (["convert", "model", "--q-mode", "x"], "--q-mode x: must be one of affine, mxfp4, "),
        (["lora-train", "--iters", "1e3"], "--iters 1e3: must be a whole number"),
        (["lora-train", "--iters", "0"], "--iters 0"),
        (["lora-train", "--iters", "5"], "--data is missing"),
        (["info", "model", "--candidates", "0"], "--candidates 0: must be 1 or more"),
        (["calibrate", "x", "--limit", "9" * 30], f"--limit {'9' * 30}: must be at most"),
        (["convert", "model", "-q", "--q-bits", "7"], "--q-bits 7: bits must be 2, 3, 4, 5, 6 or"),
        (
            ["convert", "owner/name", "-q", "--q-group-size", "48"],
            "--q-group-size 48: group size must be 32, 64 or 128, not 48",
        ),
        (
            ["convert", "model", "-q", "--q-mode", "mxfp4", "--q-bits", "8"],
            "--q-mode mxfp4 --q-bits 8: bits of mxfp4 must be 4, not 8",
        ),
        (["trace", "x.json", "--replay", "--html", "x.html"], "--replay with --html: drop one"),
    ],
)
def test_values_are_checked_first_and_in_our_words(
    refused: Refused, arguments: list[str], said: str
) -> None:
    assert refused(*arguments).startswith(said)
