"""`llavacot eval` as a person meets it: real processes over random models."""

from __future__ import annotations

import json
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from benchmark_files import choice_rows, mmstar_rows, write_set, write_tsv
from chat_server import chat_server

pytestmark = pytest.mark.processes

SAMPLED = "temperature: 0.9\nmax-tokens: 6\n"


def command(*words: str | Path) -> list[str]:
    return [sys.executable, "-m", "llavacot_mlx", "eval", *map(str, words)]


def run(*words: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(*words), cwd=cwd, capture_output=True, text=True, timeout=300, check=False
    )


def error_line(done: subprocess.CompletedProcess[str], code: int = 1) -> str:
    assert done.returncode == code, done
    (line,) = done.stderr.splitlines()
    assert line.startswith("error: ")
    return line.removeprefix("error: ")


@pytest.fixture
def room(tmp_path: Path) -> Path:
    (tmp_path / "fast.yaml").write_text(SAMPLED)
    return tmp_path


def shapes(tiny: Path, out: str, *more: str) -> list[str]:
    return [
        *("run", "--set", "shapes", "--model", str(tiny), "--profile", "fast.yaml"),
        *("--limit", "30", "--out", out, *more),
    ]


def without_seconds(file: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    return [{key: value for key, value in row.items() if key != "seconds"} for row in rows]


@pytest.mark.slow
def test_a_run_that_is_killed_ten_times_is_as_one_that_was_not(tiny: Path, room: Path) -> None:
    """kill -9 at random moments of sampled answers, then the rest."""
    few = ("--batch-size", "2")  # so that answers end one after the other
    assert run(*shapes(tiny, "whole"), cwd=room).returncode == 0
    rng = random.Random(5)
    file = room / "killed" / "answers.jsonl"
    for number in range(1, 11):
        process = subprocess.Popen(
            command(*shapes(tiny, "killed", *few)),
            cwd=room,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline:
            if file.exists() and file.read_bytes().count(b"\n") >= 2 * number:
                break
            time.sleep(0.005)
        time.sleep(rng.random() * 0.05)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert 0 < len(file.read_bytes().splitlines()) < 30
    done = run(*shapes(tiny, "killed", *few), cwd=room)
    assert done.returncode == 0, done.stderr
    assert "answers are there already" in done.stderr
    assert without_seconds(file) == without_seconds(room / "whole" / "answers.jsonl")
    for name in ("grades.jsonl", "score.json"):
        assert (room / "killed" / name).read_bytes() == (room / "whole" / name).read_bytes()


def test_a_run_is_scored_compared_and_shown(tiny: Path, room: Path) -> None:
    first = run(*shapes(tiny, "a", "--limit", "6"), cwd=room)
    assert first.returncode == 0, first.stderr
    assert "shapes" in first.stdout
    assert "6 of 6" in first.stderr
    assert run(*shapes(tiny, "b", "--limit", "6", "--seed", "1"), cwd=room).returncode == 0
    done = run("compare", "a", "b", "--json", cwd=room)
    found = json.loads(done.stdout)
    assert {"difference", "low", "high", "p", "n", "lost", "won"} <= set(found)
    assert found["n"] == 6
    before = (room / "a" / "score.json").read_bytes()
    assert run("score", "a", cwd=room).returncode == 0
    assert (room / "a" / "score.json").read_bytes() == before


def test_a_run_that_is_complete_loads_no_model(tiny: Path, room: Path) -> None:
    assert run(*shapes(tiny, "a", "--limit", "3"), cwd=room).returncode == 0
    done = run(*shapes(tiny, "a", "--limit", "3"), cwd=room)
    assert done.returncode == 0
    assert done.stderr == "3 of 3 answers are there already\n"


def test_ctrl_c_keeps_the_answers_and_says_how_to_go_on(tiny: Path, room: Path) -> None:
    process = subprocess.Popen(
        command(*shapes(tiny, "a", "--limit", "400")),
        cwd=room,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    file = room / "a" / "answers.jsonl"
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and not (file.exists() and file.stat().st_size):
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped; give the same command again to go on" in stderr
    assert len(file.read_text().splitlines()) >= 1


def test_two_runs_into_one_folder_at_once(tiny: Path, room: Path) -> None:
    process = subprocess.Popen(
        command(*shapes(tiny, "a", "--limit", "900")),
        cwd=room,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (room / "a" / "answers.jsonl").exists():
            time.sleep(0.02)
        line = error_line(run(*shapes(tiny, "a", "--limit", "900"), cwd=room))
        assert line.startswith("a: another run writes into it")
    finally:
        process.kill()
        process.wait()


def test_pictures_that_do_not_open_are_named(tiny: Path, room: Path) -> None:
    import base64

    rows = choice_rows(3)
    rows[2]["image"] = base64.b64encode(b"no picture at all" * 9).decode()
    write_tsv(room / "own.tsv", rows)
    words = ["run", "--set", "./own.tsv", "--model", tiny, "--profile", "fast.yaml"]
    done = run(*words, "--out", "a", cwd=room)
    assert done.returncode == 0, done.stderr
    assert "note: own, row 2: the picture is not a picture that can be read" in done.stderr
    assert "counted as failed" in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["--set", "shapes", "--limit", "0"], 2, "--limit 0: must be 1 or more"),
        (["--set", "shapes", "--first", "-1"], 2, "--first -1: must be 0 or more"),
        (["--set", "shapes", "--until", "0"], 2, "--until 0: must be more than 0 points"),
        (["--set", "shapes", "--until", "2", "--limit", "9"], 2, "--limit with --until: drop one"),
        (["--set", "shapes", "--search", "greedy", "--judge", "self"], 2, "greedy follows one"),
        (["--set", "shapes:colour"], 1, "there is no such kind of question"),
        (["--set", "shapes", "--profile", "none"], 1, "profile none: there are paper"),
        (["--set", "mmstar", "--data", "."], 1, "MMStar.tsv: has 2 rows with a picture"),
        (["--set", "own.tsv", "--limit", "5"], 1, "--limit 5: own has 4 questions"),
        (["--set", "mmstar", "--first", "3"], 1, "--first 3: only the questions of shapes"),
        (["--set", "shapes", "--kv-bits", "3"], 2, "--kv-bits 3: must be 8 or 4"),
        (["--set", "shapes", "--profile", "bad.yaml"], 1, "bad.yaml: temprature: unknown key"),
    ],
)
def test_bad_input_is_one_line_before_anything_is_written(
    words: list[str], code: int, said: str, room: Path
) -> None:
    write_tsv(room / "own.tsv", choice_rows(4))
    write_set(room, "mmstar", mmstar_rows()[:2])
    (room / "bad.yaml").write_text("temprature: 0.5\n")
    assert said in error_line(run("run", "--out", "a", *words, cwd=room), code)
    assert not (room / "a").exists()


def test_folders_that_are_no_run(room: Path) -> None:
    (room / "empty").mkdir()
    assert "not the folder of a run" in error_line(run("score", "empty", cwd=room))
    assert "no such folder" in error_line(run("compare", "none", "empty", cwd=room))


def test_asking_does_not_load_the_benchmarks() -> None:
    program = "import llavacot_mlx.cli.commands.ask, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0
    assert not [name for name in done.stdout.split() if "evaluate" in name]


def test_a_disk_that_fills_is_one_line_and_the_run_goes_on_later(tiny: Path, room: Path) -> None:
    """A limit on the size of files stands for the disk's end."""
    words = shapes(tiny, "a", "--repeats", "3")
    limited = "ulimit -f 20; exec " + " ".join(f"'{word}'" for word in command(*words))
    done = subprocess.run(["bash", "-c", limited], cwd=room, capture_output=True, text=True)
    assert done.returncode == 1
    *progress, last = done.stderr.splitlines()
    assert not [line for line in progress if "right" not in line]
    assert last.startswith("error: a/answers.jsonl: cannot be written: File too large")
    kept = (room / "a" / "answers.jsonl").read_bytes()
    assert kept.endswith(b"\n")
    assert 0 < kept.count(b"\n") < 90
    assert run(*words, cwd=room).returncode == 0
    assert (room / "a" / "answers.jsonl").read_bytes().count(b"\n") == 90


def test_reports_exports_and_curves(tiny: Path, room: Path) -> None:
    write_tsv(room / "own.tsv", choice_rows(5))
    words = ["run", "--set", "own.tsv,shapes", "--limit", "5", "--model", tiny]
    words += ["--profile", "fast.yaml"]
    for name, seed in (("a", "0"), ("b", "1")):
        done = run(*words, "--seed", seed, "--out", name, cwd=room)
        assert done.returncode == 0, done.stderr
    done = run("report", "a", "b", "--html", "report.html", cwd=room)
    assert done.returncode == 0, done.stderr
    assert "shapes: kind" in done.stdout
    page = (room / "report.html").read_text()
    assert page.count("data:image/") >= 10
    assert "<script" not in page
    assert "http://" not in page.replace("http://www.w3.org", "")
    done = run("export", "a", "--for", "vlmevalkit", cwd=room)
    assert sorted(done.stdout.split()[1::2]) == [
        f"a/export/{tiny.name}_{name}.tsv" for name in ("own", "shapes")
    ]
    assert "the server scores mmbench" in error_line(
        run("export", "a", "--for", "mmbench-server", cwd=room)
    )
    assert run(*shapes(tiny, "c", "--limit", "3"), cwd=room).returncode == 0
    done = run("curve", "c", "--png", "curve.png", "--json", cwd=room)
    assert [point["name"] for point in json.loads(done.stdout)] == ["c"]
    assert (room / "curve.png").exists()


def test_a_search_is_kept_as_a_trace(tiny: Path, room: Path) -> None:
    words = ["--limit", "2", "--search", "best-of-n", "--candidates", "2", "--judge", "logprob"]
    done = run(*shapes(tiny, "a", *words), cwd=room)
    assert done.returncode == 0, done.stderr
    files = sorted((room / "a" / "traces" / "shapes").iterdir())
    assert [file.name for file in files] == ["0.0.0.json", "1.0.0.json"]
    shown = subprocess.run(
        [sys.executable, "-m", "llavacot_mlx", "trace", files[0]], capture_output=True, text=True
    )
    assert shown.returncode == 0, shown.stderr
    assert "best-of-n" in shown.stdout


def test_a_page_shows_hostile_answers_as_text(tiny: Path, room: Path) -> None:
    done = run(*shapes(tiny, "a", "--limit", "2"), cwd=room)
    assert done.returncode == 0
    file = room / "a" / "answers.jsonl"
    rows = [json.loads(line) for line in file.read_text().splitlines()]
    rows[0]["stages"], rows[0]["text"] = [], "<script>alert(1)</script>\x1b[31m"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert run("score", "a", cwd=room).returncode == 0
    assert run("report", "a", "--html", "a.html", cwd=room).returncode == 0
    page = (room / "a.html").read_text()
    assert "<script>" not in page
    assert "&lt;script&gt;alert(1)" in page
    assert "\x1b" not in page


def test_a_suite_makes_its_runs_and_compares_them(tiny: Path, room: Path) -> None:
    (room / "suite.yaml").write_text(
        f"sets: shapes\nlimit: 3\nout: runs\nmodel: {tiny}\nprofile: fast.yaml\n"
        "runs:\n  - name: one\n  - name: two\n    seed: 1\n"
    )
    done = run("suite", "suite.yaml", cwd=room)
    assert done.returncode == 0, done.stderr
    assert "difference" in done.stdout
    assert (room / "runs" / "two" / "score.json").exists()
    again = run("suite", "suite.yaml", cwd=room)
    assert again.stderr.count("3 of 3 answers are there already") == 2


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("sets: shapes\nout: r\nruns:\n  - name: a\n  - name: a\n", "the name a stands twice"),
        ("sets: shapes\nout: r\n", "runs is missing"),
        ("sets: shapes\nruns:\n  - name: a\n", "out is missing"),
        ("out: r\nruns:\n  - name: a\n", "runs[0]: sets is missing"),
        ("out: r\nsets: shapes\nruns:\n  - name: a\n    modle: b\n", "modle: unknown key"),
        ("out: r\nsets: shapes\nruns:\n  - name: ../a\n", "is no name of a folder"),
        ("out: r\nsets: shapes\nruns:\n  - name: a\n    search: dfs\n", "'dfs' is not one of"),
    ],
)
def test_suites_that_say_something_else(text: str, said: str, room: Path) -> None:
    (room / "suite.yaml").write_text(text)
    line = error_line(run("suite", "suite.yaml", cwd=room), 1)
    assert line.startswith("suite.yaml: ")
    assert said in line
    assert not (room / "r").exists()


def test_a_grading_model_behind_a_url(tiny: Path, room: Path) -> None:
    write_tsv(room / "own.tsv", choice_rows(4))
    words = ["run", "--set", "own.tsv", "--model", tiny, "--profile", "fast.yaml", "--out", "a"]
    assert run(*words, cwd=room).returncode == 0
    with chat_server(lambda body, number: "A") as server:
        score = ["score", "a", "--extractor", server.url, "--json"]
        found = json.loads(run(*score, cwd=room).stdout)["sets"]["own"]
        assert (found["llm"], found["unresolved"]) == (len(server.requests), 0)
        assert found["llm"] > 0
    again = run(*score, cwd=room)
    assert again.returncode == 0, again.stderr
    assert json.loads(again.stdout)["sets"]["own"] == found


def test_a_grading_model_that_is_busy_for_long(tiny: Path, room: Path) -> None:
    write_tsv(room / "own.tsv", choice_rows(4))
    words = ["run", "--set", "own.tsv", "--model", tiny, "--profile", "fast.yaml", "--out", "a"]
    assert run(*words, cwd=room).returncode == 0
    before = (room / "a" / "grades.jsonl").read_bytes()
    with chat_server(lambda body, number: (429, {"Retry-After": "90"}, "")) as server:
        score = ["score", "a", "--extractor", server.url, "--patience", "2"]
        assert "HTTP 429 for 2 s" in error_line(run(*score, cwd=room))
    assert (room / "a" / "grades.jsonl").read_bytes() == before


@pytest.mark.slow
def test_two_processes_leave_the_score_of_one(tiny: Path, room: Path) -> None:
    launch = Path(sys.executable).parent / "mlx.launch"
    if not launch.exists():
        pytest.skip("mlx.launch is not installed here")
    assert run(*shapes(tiny, "one", "--limit", "12"), cwd=room).returncode == 0
    done = subprocess.run(
        [launch, "-n", "2", *command(*shapes(tiny, "two", "--limit", "12"))],
        cwd=room,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    for name in ("grades.jsonl", "score.json"):
        assert (room / "two" / name).read_bytes() == (room / "one" / name).read_bytes()
    one, two = (without_seconds(room / name / "answers.jsonl") for name in ("one", "two"))
    assert one == two
    assert not list((room / "two").glob("answers.rank*"))
