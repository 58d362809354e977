"""`llavacot` as a person meets it: real processes over a fake engine, pipes and exit codes."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from fakes import RETRACING, command
from PIL import Image

pytestmark = pytest.mark.processes

ENVIRONMENT = {key: value for key, value in os.environ.items() if key != "PYTHONUNBUFFERED"}

Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(desk: Path) -> Run:
    def run(
        *arguments: str, stdin: bytes = b"", script: dict[str, object] | None = None
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [*command(desk, script), *arguments],
            input=stdin,
            capture_output=True,
            cwd=desk,
            env=ENVIRONMENT,
            timeout=60,
        )
        return subprocess.CompletedProcess(
            done.args, done.returncode, done.stdout.decode(), done.stderr.decode()
        )

    return run


def ask(run: Run, *flags: str, **more: object) -> subprocess.CompletedProcess[str]:
    return run("ask", "example.png", "How many?", "--model", "demo", *flags, **more)


def error_line(done: subprocess.CompletedProcess[str]) -> str:
    """The one line that a command left on stderr when it failed as it should."""
    assert done.returncode == 1, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


# -- what is printed ------------------------------------------------------------------------------


def test_a_pipe_gets_plain_text(run: Run) -> None:
    done = ask(run)
    assert done.returncode == 0
    assert done.stdout.startswith("SUMMARY\nI need to count the red circles.\n\nCAPTION\n")
    assert "\x1b" not in done.stdout
    assert done.stderr == ""


def test_json_is_one_object_with_the_promised_fields(run: Run) -> None:
    done = ask(run, "--json", "--seed", "7")
    record = json.loads(done.stdout)
    assert done.stdout.count("\n") == 1
    assert list(record) == [
        "question",
        "image",
        "model",
        "seed",
        "answer",
        "answer_note",
        "stages",
        "text",
        "prompt_token_ids",
        "token_ids",
        "search",
        "adapter",
        "max_tokens",
        "kv_bits",
        "repetition_stop",
        "finish",
        "interrupted",
        "asked_at",
        "usage",
        "timings",
        "peak_memory_bytes",
    ]
    assert (record["question"], record["image"], record["model"]) == (
        "How many?",
        "example.png",
        "demo",
    )
    assert (record["seed"], record["answer"]) == (7, "2")
    assert [stage["stage"] for stage in record["stages"]] == [
        "summary",
        "caption",
        "reasoning",
        "conclusion",
    ]
    keys = {"stage", "text", "closed", "tokens", "score", "candidates", "note"}
    assert set(record["stages"][0]) == keys


def test_json_of_an_answer_without_stages_has_no_answer(run: Run) -> None:
    record = json.loads(ask(run, "--json", script={"text": "Two \ud83d\ude00."}).stdout)
    assert record["answer"] is None
    assert record["text"] == "Two 😀."


def test_answer_only_prints_the_answer(run: Run) -> None:
    assert ask(run, "--answer-only").stdout == "2\n"


@pytest.mark.parametrize("flags", [("--answer-only",), ("--show", "answer")])
def test_no_conclusion_is_an_error_when_only_the_answer_is_wanted(
    run: Run, flags: tuple[str, ...]
) -> None:
    done = ask(run, *flags, script={"text": "<SUMMARY> Well </SUMMARY>"})
    assert "no conclusion" in error_line(done)
    assert done.stdout == ""


def test_the_demo_model_says_what_it_is_on_stderr_alone(run: Run) -> None:
    done = run("ask", "example.png", "How many?", "--json")
    (line,) = done.stderr.splitlines()
    assert line.startswith("demo model (knows pictures of colored shapes only)")
    assert line.endswith("; for the real one: llavacot convert")
    assert json.loads(done.stdout)["answer"] == "2"


def test_the_picture_can_come_on_stdin(run: Run, desk: Path) -> None:
    picture = (desk / "example.png").read_bytes()
    done = run("ask", "-", "How many?", "--model", "demo", "--json", stdin=picture)
    assert json.loads(done.stdout)["image"] == "-"


def test_the_question_can_come_on_stdin(run: Run) -> None:
    done = run(
        "ask", "example.png", "-", "--model", "demo", "--json", stdin="wie viele? ä\n".encode()
    )
    assert json.loads(done.stdout)["question"] == "wie viele? ä"


def test_a_question_that_begins_with_a_dash_follows_two_dashes(run: Run) -> None:
    done = run("ask", "--model", "demo", "--json", "--", "example.png", "-1 or +1?")
    assert json.loads(done.stdout)["question"] == "-1 or +1?"


# -- what can go wrong ----------------------------------------------------------------------------


def test_what_the_engine_reports_is_one_line(run: Run) -> None:
    assert error_line(ask(run, "--json", script={"user_error": "x.json: broken;\nfix it"})) == (
        "x.json: broken; fix it"
    )


def test_a_bug_of_ours_is_one_line_and_debug_shows_more(run: Run) -> None:
    line = error_line(ask(run, "--json", script={"bug": "oops"}))
    assert line.startswith("internal: ZeroDivisionError: oops; ")
    assert "--debug" in line
    shown = ask(run, "--json", "--debug", script={"bug": "oops"})
    assert "Traceback" in shown.stderr
    assert shown.returncode == 1


@pytest.mark.parametrize(
    "arguments",
    [("ask", "example.png"), ("ask", "example.png", "?", "--nix"), ("nix",)],
)
def test_wrong_usage_exits_with_2(run: Run, arguments: tuple[str, ...]) -> None:
    done = run(*arguments)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    assert "llavacot" in line or "there are" in line
    assert done.stdout == ""


def test_a_reader_that_leaves_early_is_no_error(desk: Path) -> None:
    process = subprocess.Popen(
        [*command(desk, {"pause": 0.01}), "ask", "example.png", "?", "--model", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=desk,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline() == b"SUMMARY\n"
    process.stdout.close()
    assert process.wait(20) == 141
    assert process.stderr.read() == b""
    process.stderr.close()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a device that Linux has")
def test_a_full_disk_is_one_line(desk: Path) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            [*command(desk), "ask", "example.png", "?", "--model", "demo", "--json"],
            stdout=full,
            stderr=subprocess.PIPE,
            cwd=desk,
        )
    assert (done.returncode, done.stderr) == (1, b"error: No space left on device\n")


def test_an_interrupt_keeps_what_was_printed_and_exits_with_130(desk: Path) -> None:
    process = subprocess.Popen(
        [*command(desk, {"pause": 0.05}), "ask", "example.png", "?", "--model", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        bufsize=0,
        cwd=desk,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"SUMMARY\n"
    time.sleep(0.2)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=20)
    assert process.returncode == 130
    assert out.startswith(b"I")
    assert out.endswith(b"\n")
    assert err == b""


def test_an_interrupted_search_shows_the_best_path_and_keeps_its_trace(desk: Path) -> None:
    """What was chosen so far, the round that was being written, and a trace of all of it."""
    words = ["ask", "example.png", "?", "--model", "demo", "--search", "swires"]
    script = {"rounds": RETRACING, "pause": 0.1}
    process = subprocess.Popen(
        [*command(desk, script), *words, "--plain", "--trace", "search.json"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=desk,
        env=ENVIRONMENT,
    )
    assert process.stdout is not None
    said = b""
    while b"1 kept: I count." not in said:
        said += process.stdout.read1()
    time.sleep(0.3)
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=30)
    assert (process.returncode, errors) == (130, b"")
    text = (said + rest).decode()
    assert "Caption · 2 candidates\n" in text
    assert text.endswith("stopped; the best path so far:\n\nSUMMARY\nI count.\n")
    kept = json.loads((desk / "search.json").read_text(encoding="utf-8"))
    assert kept["interrupted"]
    assert [stage["stage"] for stage in kept["stages"]] == ["summary"]
    assert len(kept["search"]["nodes"]) == 3
    assert kept["answer"] is None


def test_an_error_in_a_search_keeps_its_trace_too(run: Run, desk: Path) -> None:
    """Such as keys and values that outgrow their budget."""
    script = {"rounds": RETRACING, "user_error": "too much"}
    done = ask(run, "--search", "swires", "--trace", "search.json", script=script)
    assert error_line(done) == "too much"
    assert "the best path so far:" in done.stdout
    assert json.loads((desk / "search.json").read_text(encoding="utf-8"))["answer"] == "2"


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "[METAL] Command buffer execution failed: Insufficient Memory (00000008)",
            "out of memory; try a smaller picture",
        ),
        ("[metal::malloc] Resource limit (499000) exceeded.", "the GPU holds more arrays"),
    ],
)
def test_an_error_of_the_gpu_is_told_and_keeps_the_trace(
    run: Run, desk: Path, text: str, said: str
) -> None:
    script = {"rounds": RETRACING, "runtime_error": text}
    done = ask(run, "--search", "swires", "--trace", "search.json", script=script)
    assert error_line(done).startswith(said)
    assert json.loads((desk / "search.json").read_text(encoding="utf-8"))["interrupted"]


def test_a_trace_that_cannot_be_written_is_said_first(run: Run) -> None:
    done = ask(run, "--trace", "nix/search.json")
    assert error_line(done).startswith("nix/search.json: there is no folder")
    assert done.stdout == ""


def test_notices_come_once_and_not_with_the_answer_alone(run: Run) -> None:
    script = {"notices": ["the judge was tired"]}
    assert ask(run, script=script).stdout.startswith("note: the judge was tired\n")
    assert ask(run, "--answer-only", script=script).stdout == "2\n"
    assert ask(run, "--show", "stages", script=script).stdout.startswith("SUMMARY\n")


def test_a_narrow_locale_gets_question_marks_and_json_stays_utf_8(desk: Path) -> None:
    environment = {**ENVIRONMENT, "PYTHONIOENCODING": "ascii"}
    words = [*command(desk, {"text": "<CONCLUSION> ä </CONCLUSION>"}), "ask", "example.png", "?"]
    shown = subprocess.run(
        [*words, "--answer-only"], cwd=desk, env=environment, capture_output=True
    )
    assert shown.stdout == b"?\n"
    shown = subprocess.run([*words, "--json"], cwd=desk, env=environment, capture_output=True)
    assert json.loads(shown.stdout.decode())["answer"] == "ä"


# -- what explains itself -------------------------------------------------------------------------


@pytest.mark.parametrize("arguments", [(), ("ask",)])
def test_without_arguments_a_command_that_runs_is_shown(
    run: Run, arguments: tuple[str, ...]
) -> None:
    done = run(*arguments)
    assert done.returncode == 0
    (shown,) = [line for line in done.stdout.splitlines() if "example.png" in line]
    assert shown.strip() == 'llavacot ask example.png "How many red shapes are there?"'


def test_the_shown_path_can_be_typed_as_it_is(desk: Path, tmp_path: Path) -> None:
    from llavacot_mlx.cli.next_steps import shell_path

    odd = tmp_path / "two words" / "a'b.png"
    done = subprocess.run(
        f"printf %s {shell_path(odd)}", shell=True, capture_output=True, text=True
    )
    assert done.stdout == str(odd)


def test_the_version_is_printed(run: Run) -> None:
    from llavacot_mlx import __version__

    assert run("--version").stdout == run("-V").stdout == f"llavacot {__version__}\n"


HEAVY = ("mlx", "mlx_lm", "mlx_vlm", "transformers", "torch", "numpy", "PIL", "rich", "tokenizers")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["ask", "--help"], []])
def test_help_imports_nothing_heavy(arguments: list[str]) -> None:
    program = (
        "import sys\n"
        f"sys.argv[1:] = {arguments}\n"
        "from llavacot_mlx.cli.main import run\n"
        "try:\n    run()\n"
        "except SystemExit:\n    pass\n"
        f"print([name for name in {HEAVY} if name in sys.modules], file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stderr.splitlines()[-1] == "[]"


def test_the_same_command_runs_as_a_module() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "llavacot_mlx", "--version"], capture_output=True, text=True
    )
    assert done.stdout.startswith("llavacot ")


def test_a_picture_in_another_format_is_read(run: Run, desk: Path) -> None:
    jpeg = io.BytesIO()
    Image.new("L", (9, 9)).save(jpeg, "JPEG")
    done = run("ask", "-", "?", "--model", "demo", "--answer-only", stdin=jpeg.getvalue())
    assert done.stdout == "2\n"
