"""`llavacot trace` as a person meets it: what it shows again, and what it refuses."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fakes import RETRACING, command
from terminal_session import TerminalSession
from traces import greedy, png, retracing, stopped

from llavacot_mlx.trace.file import write_trace

pytestmark = pytest.mark.processes

ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}


@pytest.fixture
def desk(desk: Path) -> Path:
    """A folder with the traces `search.json` and `greedy.json`, and `example.png`."""
    write_trace(desk / "search.json", replace(retracing(), image="a.png"), png())
    write_trace(desk / "greedy.json", replace(greedy(), image="a.png"), png())
    return desk


def run(desk: Path, *arguments: str, stdin: bytes = b"") -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [sys.executable, "-m", "llavacot_mlx", "trace", *arguments],
        input=stdin,
        capture_output=True,
        cwd=desk,
        env=ENVIRONMENT,
        timeout=60,
    )
    return subprocess.CompletedProcess(
        done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
    )


def refused(desk: Path, *arguments: str, stdin: bytes = b"", code: int = 1) -> str:
    """The one line that is said of a problem; nothing is printed, written or left behind."""
    before = {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()}
    done = run(desk, *arguments, stdin=stdin)
    assert (done.returncode, done.stdout) == (code, ""), done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "internal" not in line
    assert before == {path: path.read_bytes() for path in desk.rglob("*") if path.is_file()}
    return line.removeprefix("error: ")


# -- what is shown --------------------------------------------------------------------------------


def without_waiting(shown: str) -> str:
    """What is shown, but for how long the person waited, which no trace knows."""
    return re.sub(r"[\d.]+ s in all: (start [\d.]+ s · )?", "", shown)


def test_a_search_is_shown_as_it_was(desk: Path) -> None:
    script = {"rounds": RETRACING, "notices": ["mind the gap"]}
    asked = [*command(desk, script), "ask", "example.png", "How many?", "--model", "demo"]
    live = subprocess.run([*asked, "--search", "swires"], cwd=desk, capture_output=True, text=True)
    again = run(desk, "search.json")
    assert again.stderr == ""
    heading, _, shown = again.stdout.partition("\n\n")
    assert heading == "How many?\na.png · demo · swires · seed 0"
    assert without_waiting(shown) == without_waiting(live.stdout)
    assert "back to the captions, round 2" in shown


def test_a_single_path_is_shown_stage_by_stage(desk: Path) -> None:
    shown = run(desk, "greedy.json").stdout
    assert shown.startswith("How many?\na.png · demo · greedy · seed 0\n\nSUMMARY\nI need")
    assert "\n\nCONCLUSION\n2\n\n4.1 s in all: load 4.1 s" in shown


@pytest.mark.parametrize(
    ("show", "shown"),
    [
        ("answer", "2\n"),
        (
            "stages",
            "SUMMARY\nI count.\n\nCAPTION\nTwo circles.\n\nREASONING\n1 + 1 = 2.\n\n"
            "CONCLUSION\n2\n",
        ),
    ],
)
def test_less_of_it(desk: Path, show: str, shown: str) -> None:
    assert run(desk, "search.json", "--show", show).stdout == shown


def test_a_terminal_gets_panels_unless_plain(desk: Path) -> None:
    words = [sys.executable, "-m", "llavacot_mlx", "trace", str(desk / "search.json")]
    with TerminalSession(words) as session:
        assert session.finish() == 0
        assert session.text.startswith("How many?\na.png · demo · swires · seed 0\n\n")
        assert "╭─ Caption · 2 candidates · round 2 ──" in session.text
        assert "┃ 2  " in session.text
        assert session.terminal.cursor_visible
    with TerminalSession([*words, "--plain"]) as session:
        assert session.finish() == 0
        assert b"\x1b" not in session.output


def test_a_terminal_shows_a_search_as_it_showed_it(desk: Path) -> None:
    asked = [*command(desk, {"rounds": RETRACING, "notices": ["mind the gap"]}), "ask"]
    asked += [str(desk / "example.png"), "How many?", "--model", str(desk / "demo")]
    with TerminalSession([*asked, "--search", "swires"]) as session:
        assert session.finish() == 0
        live = session.text
    words = [sys.executable, "-m", "llavacot_mlx", "trace", str(desk / "search.json")]
    with TerminalSession(words) as session:
        assert session.finish() == 0
        again = session.text.partition("\n\n")[2]
    assert without_waiting(again) == without_waiting(live)


def test_what_json_printed_can_be_piped_in(desk: Path) -> None:
    printed = retracing().to_json().encode()
    assert "kept from before: 4" in run(desk, "-", stdin=printed).stdout


def test_an_interrupted_search_says_so(desk: Path) -> None:
    write_trace(desk / "stopped.json", stopped(), None)
    shown = run(desk, "stopped.json").stdout
    assert "stopped; the best path so far:\n\nSUMMARY\nI count.\n" in shown
    assert "no conclusion" in refused(desk, "stopped.json", "--show", "answer")


def test_a_trace_cannot_write_to_the_terminal(desk: Path) -> None:
    evil = replace(retracing("\x1b[31m?"), model="\x1b]0;title\x07", image="\x9b1m.png")
    write_trace(desk / "evil.json", evil, None)
    shown = run(desk, "evil.json").stdout
    assert "\x1b" not in shown
    assert shown.startswith("␛[31m?\n\\x9b1m.png · ␛]0;title␇ · swires")


def test_without_arguments_two_commands_that_run_are_shown(desk: Path) -> None:
    done = run(desk)
    assert done.returncode == 0
    lines = [line.strip() for line in done.stdout.splitlines()]
    (asking,) = [line for line in lines if line.startswith("llavacot ask")]
    (showing,) = [line for line in lines if line.startswith("llavacot trace search")]
    assert asking.endswith("--search swires --trace search.json")
    assert showing == "llavacot trace search.json --html search.html"


@pytest.mark.parametrize(
    ("arguments", "allowed"),
    [
        (["--help"], set()),
        ([], set()),
        (["search.json"], set()),
        (["search.json", "--html", "-"], {"PIL", "numpy"}),
    ],
)
def test_no_engine_is_loaded(desk: Path, arguments: list[str], allowed: set[str]) -> None:
    heavy = ["mlx", "mlx_lm", "mlx_vlm", "transformers", "torch", "tokenizers", "rich"]
    program = (
        "import sys\n"
        f"sys.argv[1:] = {['trace', *arguments]}\n"
        "from llavacot_mlx.cli.main import run\n"
        "try:\n    run()\n"
        "except SystemExit:\n    pass\n"
        f"print([n for n in {[*heavy, 'PIL', 'numpy']} if n in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=desk, capture_output=True, text=True)
    assert set(re.findall(r"\w+", done.stderr.splitlines()[-1])) == allowed


# -- pages ----------------------------------------------------------------------------------------


def test_a_page_is_written_and_said_in_a_line(desk: Path) -> None:
    done = run(desk, "search.json", "--html", "page.html")
    assert (done.returncode, done.stdout) == (0, "")
    assert re.fullmatch(r"wrote page.html, \d+ kB; any browser opens it\n", done.stderr)
    page = (desk / "page.html").read_text(encoding="utf-8")
    assert page.startswith("<!doctype html>")
    assert run(desk, "search.json", "--html", "-").stdout == page
    assert not list(desk.glob(".*"))


def test_a_page_replaces_a_page_and_nothing_else(desk: Path) -> None:
    for _ in range(2):
        assert run(desk, "search.json", "--html", "page.html").returncode == 0
    (desk / "empty").touch()
    assert run(desk, "search.json", "--html", "empty").returncode == 0
    for name in ("example.png", "greedy.json"):
        line = refused(desk, "search.json", "--html", name)
        assert line == f"--html {name}: that file is not an HTML page; choose another name"
    assert "that is FILE itself" in refused(desk, "search.json", "--html", "./search.json")


def test_a_page_of_json_without_a_picture(desk: Path) -> None:
    done = run(desk, "-", "--html", "-", stdin=retracing().to_json().encode())
    assert "The picture is not in this trace" in done.stdout


def test_a_picture_that_lies_beside_a_trace_without_one_is_taken(desk: Path) -> None:
    """By its name alone: a trace may not choose a file in another folder."""
    folder = desk / "elsewhere"
    folder.mkdir()
    remark = "a file of its name lay beside it"

    def page_of(image: str) -> str:
        trace = replace(retracing(), image=image)
        (folder / "search.json").write_text(trace.to_json(), encoding="utf-8")
        done = run(desk, "elsewhere/search.json", "--html", "-")
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert remark not in page_of("a.png")
    (folder / "a.png").write_bytes(png())
    for image in ("a.png", "/somewhere/else/a.png", "../a.png"):
        assert remark in page_of(image)
        assert "data:image/png;base64," in page_of(image)
    (desk / "b.png").write_bytes(png())
    for image in ("../b.png", str(desk / "b.png"), "-", ".."):
        assert remark not in page_of(image)
    assert remark in page_of("a.png")
    (folder / "a.png").write_bytes(b"no picture")
    assert refused(desk, "elsewhere/search.json", "--html", "page.html").startswith(
        "elsewhere/search.json: picture: "
    )


@pytest.mark.parametrize("picture", [b"", b"no picture", png()[:40]])
def test_a_picture_that_is_none_is_refused(desk: Path, picture: bytes) -> None:
    write_trace(desk / "bad.json", retracing(), picture)
    assert run(desk, "bad.json").returncode == 0
    assert refused(desk, "bad.json", "--html", "page.html").startswith("bad.json: picture: ")


# -- what can go wrong ----------------------------------------------------------------------------


def changed(desk: Path, change: Callable[[dict[str, Any]], object]) -> None:
    value = json.loads((desk / "search.json").read_text(encoding="utf-8"))
    change(value)
    (desk / "bad.json").write_text(json.dumps(value), encoding="utf-8")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "bad.json: empty"),
        (b"[", "bad.json: not JSON"),
        (b'{"a": 1}', "bad.json: not a trace"),
        (png(), "bad.json: not JSON"),
    ],
)
def test_what_is_no_trace(desk: Path, data: bytes, said: str) -> None:
    (desk / "bad.json").write_bytes(data)
    assert refused(desk, "bad.json").startswith(said)
    assert refused(desk, "-", stdin=data).startswith(said.replace("bad.json", "stdin"))


def test_a_missing_file_and_a_folder(desk: Path) -> None:
    assert refused(desk, "nix.json") == "nix.json: there is no such trace"
    assert refused(desk, "demo") == "demo: a folder, not a trace"


def test_a_damaged_tree_names_the_key(desk: Path) -> None:
    changed(desk, lambda trace: trace["search"]["nodes"][4].update(parent=40))
    assert refused(desk, "bad.json").startswith(
        "bad.json: search.nodes[4].parent: 40 is not an earlier node"
    )
    changed(desk, lambda trace: trace["search"]["choices"][2].update(kept=[40]))
    assert refused(desk, "bad.json").startswith(
        "bad.json: search.choices[2].kept: 40 is not a node"
    )


def test_a_page_that_cannot_be_written(desk: Path) -> None:
    line = refused(desk, "search.json", "--html", "nix/page.html")
    assert line == "nix/page.html: there is no folder nix"
    assert refused(desk, "search.json", "--html", "demo") == (
        "demo: is a folder; name a file in it"
    )


def test_flags_that_make_no_sense_together(desk: Path) -> None:
    line = refused(desk, "search.json", "--html", "page.html", "--show", "answer", code=2)
    assert line.startswith("--show answer with --html: drop one")
    line = refused(desk, "search.json", "--html", "page.html", "--plain", code=2)
    assert line.startswith("--plain with --html: drop one")


def test_wrong_usage_exits_with_2(desk: Path) -> None:
    assert run(desk, "search.json", "--nix").returncode == 2
    assert run(desk, "search.json", "greedy.json").returncode == 2


def test_a_reader_that_leaves_early_is_no_error(desk: Path) -> None:
    pipe = f"{sys.executable} -m llavacot_mlx trace search.json --html - | head -c 100 >/dev/null"
    done = subprocess.run(
        ["bash", "-c", f"{pipe}; echo ${{PIPESTATUS[0]}}"],
        cwd=desk,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert done.stderr == ""
    assert done.stdout in ("0\n", "141\n")
