"""`llavacot data` as a person meets it: real processes, tables, reports and exit codes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from bad_rows import write_bad_rows
from demo_rows import row, write_rows
from PIL import Image

from llavacot_mlx.rows.problem import ProblemKind
from llavacot_mlx.train.plots import STATS_SIZE

pytestmark = pytest.mark.processes

Run = subprocess.CompletedProcess[str]


def data(folder: Path, *arguments: str, prelude: str = "") -> Run:
    """Runs `llavacot data` in a folder; `prelude` is what its process does before."""
    command = [sys.executable, "-m", "llavacot_mlx", "data", *arguments]
    if prelude:
        code = f"{prelude}\nimport runpy; runpy.run_module('llavacot_mlx', run_name='__main__')"
        command[1:3] = ["-c", code]
    return subprocess.run(
        command,
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def error_of(run: Run) -> str:
    assert run.returncode == 1, run
    assert run.stdout == ""
    line = run.stderr.splitlines()[-1]
    assert line.startswith("error: ")
    assert "internal" not in line
    return line


@pytest.fixture(scope="module")
def bad(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[ProblemKind, int]]:
    """A folder with every kind of problem, to be read only, and where each is."""
    folder = tmp_path_factory.mktemp("bad")
    return folder, write_bad_rows(folder)


CHECK = ("check", "train.jsonl", "--images", "images", "--max-seq-length", "1000")


def test_every_kind_of_problem_is_in_the_report(bad: tuple[Path, dict[ProblemKind, int]]) -> None:
    folder, where = bad
    run = data(folder, *CHECK, "--json")
    assert run.returncode == 1
    (line,) = run.stdout.splitlines()
    report = json.loads(line)
    assert {problem["kind"]: problem["row"] for problem in report["problems"]} == where
    assert report["counts"] == dict.fromkeys(where, 1)
    assert (report["rows"], report["good"], report["bad"]) == (len(where) + 2, 2, len(where))
    assert report["max_seq_length"] == 1000
    assert report["four_stages"] is True


def test_every_kind_of_problem_is_in_the_table(bad: tuple[Path, dict[ProblemKind, int]]) -> None:
    folder, where = bad
    run = data(folder, *CHECK)
    assert run.returncode == 1
    for kind, number in where.items():
        (line,) = [line for line in run.stdout.splitlines() if line.startswith(f"{kind}  ")]
        assert f"row {number}: " in line
    assert f"{len(where)} of {len(where) + 2} rows have problems" in run.stdout
    assert run.stderr.splitlines()[1:] == []  # the note on the demo model


def test_good_rows(tmp_path: Path) -> None:
    write_rows(tmp_path, range(5))
    run = data(tmp_path, "check", "train.jsonl", "--images", "images", "--report", "report.json")
    assert (run.returncode, run.stdout) == (0, "5 rows, no problems\n")
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["good"], report["bad"], report["problems"]) == (5, 0, [])
    assert report["max_seq_length"] == 4096


def test_a_long_list_is_cut_in_the_table_and_whole_in_the_report(tmp_path: Path) -> None:
    """What a row says is not obeyed by the terminal either."""
    (tmp_path / "images").mkdir()
    bad_row = row(tmp_path / "images", 0)
    bad_row["conversations"][1]["value"] = "\x1b[2J Four."
    (tmp_path / "a.jsonl").write_text(f"{json.dumps(bad_row)}\n" * 12)
    run = data(tmp_path, "check", "a.jsonl", "--images", "images", "--report", "report.json")
    assert run.returncode == 1
    assert "row 5: " in run.stdout
    assert "row 6: " not in run.stdout
    assert "… and 7 more" in run.stdout
    assert "\x1b" not in run.stdout
    assert len(json.loads((tmp_path / "report.json").read_text())["problems"]) == 12


def test_plain_chats_are_said_to_be_such(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]
    (tmp_path / "a.jsonl").write_text(json.dumps({"messages": chat}))
    run = data(tmp_path, "check", "a.jsonl")
    assert run.returncode == 0
    assert "plain chats" in run.stdout


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("check", "gone.jsonl"), "gone.jsonl: No such file"),
        (("check", "."), "is a folder"),
        (("check", "empty.jsonl"), "no row in it"),
        (("check", "train.jsonl", "--images", "gone"), "gone: there is no such folder"),
        (("check", "train.jsonl", "--model", "gone"), "gone: no such folder"),
        (("check", "train.jsonl", "--max-seq-length", "5000"), "context is 4096 tokens"),
        (("check", "train.jsonl", "--report", "gone/a.json"), "there is no folder gone"),
        (("stats", "gone.jsonl"), "gone.jsonl: No such file"),
        (("stats", "train.jsonl", "--png", "gone/a.png"), "there is no folder gone"),
    ],
)
def test_what_cannot_be_done(tmp_path: Path, arguments: tuple[str, ...], says: str) -> None:
    write_rows(tmp_path, range(1))
    (tmp_path / "empty.jsonl").write_text("\n")
    before = sorted(tmp_path.rglob("*"))
    assert says in error_of(data(tmp_path, *arguments))
    assert sorted(tmp_path.rglob("*")) == before


def test_a_flag_that_cannot_be_is_wrong_usage(tmp_path: Path) -> None:
    write_rows(tmp_path, range(1))
    done = data(tmp_path, "check", "train.jsonl", "--max-seq-length", "0")
    assert done.returncode == 2
    assert done.stderr.startswith("error: --max-seq-length 0: must be")


def test_stats(tmp_path: Path) -> None:
    write_rows(tmp_path, range(6))
    arguments = ("stats", "train.jsonl", "--images", "images")
    run = data(tmp_path, *arguments, "--png", "stats.png")
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("6 rows, 6 answers, 6 images\n")
    for name in ("row", "trained on", "SUMMARY", "CAPTION", "REASONING", "CONCLUSION"):
        assert f"\n{name} " in run.stdout
    assert "(no folder)" in run.stdout
    with Image.open(tmp_path / "stats.png") as image:
        assert (image.format, image.size) == ("PNG", STATS_SIZE)
    found = json.loads(data(tmp_path, *arguments, "--json").stdout)
    assert (found["rows"], found["tokens"]["summary"]["count"]) == (6, 6)


NO_MATPLOTLIB = "import sys; sys.modules['matplotlib'] = None"


def test_without_matplotlib_a_table_is_shown_and_no_picture(tmp_path: Path) -> None:
    write_rows(tmp_path, range(2))
    arguments = ("stats", "train.jsonl", "--images", "images")
    run = data(tmp_path, *arguments, prelude=NO_MATPLOTLIB)
    assert run.returncode == 0, run.stderr
    run = data(tmp_path, *arguments, "--png", "stats.png", prelude=NO_MATPLOTLIB)
    assert "pip install 'llavacot-mlx[plots]'" in error_of(run)
    assert not (tmp_path / "stats.png").exists()


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        ((), "Commands:"),
        (("check",), "\n  llavacot data check train.jsonl --images images\n"),
        (("stats",), "\n  llavacot data stats train.jsonl --images images\n"),
    ],
)
def test_nothing_given_shows_what_to_type(
    tmp_path: Path, arguments: tuple[str, ...], shown: str
) -> None:
    run = data(tmp_path, *arguments)
    assert (run.returncode, run.stderr) == (0, "")
    assert shown in run.stdout


def test_a_folder_of_which_nothing_is_there_is_one_line(tmp_path: Path) -> None:
    """98 rows of one archive that was not unpacked were listed one by one."""
    write_rows(tmp_path, range(2))
    rows = [json.loads(line) for line in (tmp_path / "train.jsonl").read_text().splitlines()]
    rows += [{**rows[0], "image": f"vg/{number}.png"} for number in range(98)]
    rows += [{**rows[0], "image": "gone.png"}]
    (tmp_path / "train.json").write_text(json.dumps(rows, indent=1))
    run = data(tmp_path, "check", "train.json", "--images", "images", "--report", "report.json")
    assert run.returncode == 1
    assert "all 98 of vg/ are missing: was its archive unpacked?" in " ".join(run.stdout.split())
    assert "row 101: " in run.stdout
    assert "row 3: " not in run.stdout
    report = json.loads((tmp_path / "report.json").read_text())
    (folder,) = report["lost_folders"]
    assert (folder["name"], len(folder["rows"])) == ("vg", 98)
    assert len(report["problems"]) == 99


def test_stats_of_no_conversation_are_an_error(tmp_path: Path) -> None:
    """They were a table of zeros, with exit code 0."""
    (tmp_path / "a.jsonl").write_text('{"text": "a"}\n' * 3)
    said = error_of(data(tmp_path, "stats", "a.jsonl"))
    assert "none of 3 rows is a conversation; llavacot data check says why" in said
