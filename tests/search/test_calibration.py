"""A judge's usual scores: measured, stored beside the model, and turned into a threshold."""

from __future__ import annotations

import json
import shutil
import statistics
from pathlib import Path

import pytest
from typer.testing import CliRunner

from llavacot_mlx import demo
from llavacot_mlx.assistant import Assistant
from llavacot_mlx.cli.main import app
from llavacot_mlx.errors import UserError
from llavacot_mlx.plan.plan import Settings, make_plan
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.search.calibration import (
    FILE_NAME,
    ScoreStats,
    load_calibration,
    save_calibration,
)

QUESTION = "Is there a small red square?"  # its answer is short


def test_the_published_cut_off() -> None:
    """arXiv 2411.10440v6, appendix D: mean -0.77, deviation 2.08, 0.2533 deviations above."""
    assert ScoreStats(-0.77, 2.08, 1000).threshold(0.2533) == pytest.approx(-0.243, abs=5e-4)


def test_the_deviation_is_the_populations() -> None:
    assert ScoreStats.of([0.0, 1.0, 1.0, 0.0]) == ScoreStats(0.5, 0.5, 4)


def test_what_is_kept_is_read_again(tmp_path: Path) -> None:
    assert load_calibration(tmp_path) == {}
    known = {
        "self": {Stage.REASONING: ScoreStats(0.8, 0.3, 40), Stage.CAPTION: ScoreStats(0.9, 0.1, 8)}
    }
    assert save_calibration(tmp_path, known) == tmp_path / FILE_NAME
    assert load_calibration(tmp_path) == known


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"judges": {"self": []}}',
        '{"judges": {"self": {"reason": {"mean": 0, "std": 1, "count": 1}}}}',
        '{"judges": {"self": {"reasoning": {"mean": 0, "std": 1}}}}',
        '{"judges": {"self": {"reasoning": {"mean": "high", "std": 1, "count": 1}}}}',
        '{"judges": {"self": {"reasoning": {"mean": NaN, "std": 1, "count": 1}}}}',
        '{"judges": {"self": {"reasoning": {"mean": 0, "std": -1, "count": 1}}}}',
        "{",
    ],
)
def test_a_damaged_file_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / FILE_NAME).write_text(text, encoding="utf-8")
    with pytest.raises(UserError, match=FILE_NAME):
        load_calibration(tmp_path)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """The demo model without a calibration."""
    folder = Path(shutil.copytree(demo.model_path(), tmp_path / "model"))
    (folder / FILE_NAME).unlink(missing_ok=True)
    return folder


def resolve(folder: Path, judge: str) -> tuple[float, tuple[str, ...]]:
    """Returns the threshold of a search, and the notices about it."""
    plan = make_plan(Settings("swires", 2, judge=judge))
    trace = Assistant.load(folder, dtype="float32").ask(
        demo.example_path(), QUESTION, search=plan, max_tokens=3
    )
    return trace.search.plan["retrace"]["threshold"], trace.search.notices


def test_a_search_takes_its_cut_off_from_what_was_measured(model: Path) -> None:
    """The threshold is that of the stage after which the search may go back, and of its judge."""
    threshold, notices = resolve(model, "self")
    assert threshold == 0.5
    assert any("not calibrated" in notice for notice in notices)
    with pytest.raises(UserError, match=r"judge logprob is not calibrated .* give a threshold"):
        resolve(model, "logprob")
    save_calibration(
        model,
        {
            "self": {
                Stage.REASONING: ScoreStats(0.7, 0.2, 9),
                Stage.CAPTION: ScoreStats(0.1, 0.1, 9),
            },
            "logprob": {Stage.REASONING: ScoreStats(-0.2, 0.1, 9)},
        },
    )
    threshold, notices = resolve(model, "self")
    assert threshold == pytest.approx(0.7 + 0.2533 * 0.2)
    assert not any("not calibrated" in notice for notice in notices)
    assert resolve(model, "logprob")[0] == pytest.approx(-0.2 + 0.2533 * 0.1)


def calibrate(*arguments: object) -> tuple[int, str, str]:
    done = CliRunner().invoke(app, ["calibrate", "--images-anywhere", *map(str, arguments)])
    return done.exit_code, done.stdout, done.stderr


@pytest.mark.slow
def test_the_command_measures_what_the_search_would_see(model: Path, tmp_path: Path) -> None:
    """Every score of the first round of each question counts; a second judge is added."""
    questions = tmp_path / "questions.jsonl"
    row = {"image": demo.example_path("tall").name, "question": QUESTION}
    questions.write_text(json.dumps(row) + "\n", encoding="utf-8")
    images = demo.example_path("tall").parent
    for judge in ("logprob", "self"):
        code, said, notes = calibrate(
            questions, "--images", images, "--model", model, "--judge", judge, "--seed", 3
        )
        assert code == 0, notes
        assert [line.split()[0] for line in said.splitlines()] == [
            *("stage", "caption", "reasoning", "conclusion")
        ]
        assert notes.endswith(f"written to {model / FILE_NAME}\n")
    known = load_calibration(model)
    assert set(known) == {"logprob", "self"}
    plan = make_plan(Settings("swires", judge="logprob", max_retraces=0))
    trace = Assistant.load(model).ask(images / row["image"], QUESTION, search=plan, seed=3)
    scores = [node.score for node in trace.search.nodes if node.stage is Stage.REASONING]
    assert len(scores) == 4
    found = known["logprob"][Stage.REASONING]
    assert found.count == 4
    assert found.mean == pytest.approx(statistics.fmean(scores), abs=1e-5)  # type: ignore[type-var]
    assert known["self"][Stage.REASONING].mean != found.mean


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """What the judge gives, in place of a measurement."""
    scores = [0.1, 0.9]
    monkeypatch.setattr(
        "llavacot_mlx.cli.commands.calibrate._measure",
        lambda *_: {Stage.REASONING: ScoreStats.of(scores)},
    )
    return scores


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "questions.jsonl"
    row = {"image": str(demo.example_path()), "question": QUESTION}
    file.write_text(f"{json.dumps(row)}\n" * 50, encoding="utf-8")
    return file


@pytest.mark.parametrize("name", [(), ("--model", demo.model_path())])
@pytest.mark.usefixtures("scores")
def test_the_packaged_model_is_never_written_to(questions: Path, name: tuple[str, ...]) -> None:
    """`--limit 1` without `--model` left a deviation of 0 in the installed package."""
    before = (demo.model_path() / FILE_NAME).read_bytes()
    for force in ((), ("--force",)):
        code, said, notes = calibrate(questions, "--limit", 1, *name, *force)
        assert (code, said) == (1, "")
        assert "belongs to the package" in notes.splitlines()[-1]
    assert (demo.model_path() / FILE_NAME).read_bytes() == before


def test_a_larger_measurement_stays_unless_forced(
    model: Path, questions: Path, scores: list[float]
) -> None:
    """Seen before anything is measured where the questions are too few, and else afterwards."""
    known = {"self": {Stage.REASONING: ScoreStats(0.5, 0.2, 60)}}
    save_calibration(model, known)
    for flags in (("--limit", 10), ()):
        code, said, notes = calibrate(questions, "--model", model, *flags)
        assert code == 1
        assert bool(said) == (not flags)
        assert "has 60 scores of this judge" in notes.splitlines()[-1]
        assert "--force" in notes.splitlines()[-1]
        assert load_calibration(model) == known
    code, _, _ = calibrate(questions, "--model", model, "--judge", "logprob")
    assert code == 0
    code, _, _ = calibrate(questions, "--model", model, "--force")
    assert code == 0
    assert load_calibration(model)["self"][Stage.REASONING] == ScoreStats.of(scores)
    scores[:] = range(60)
    assert calibrate(questions, "--model", model)[0] == 0


@pytest.mark.parametrize(
    ("given", "warned"),
    [
        ([0.1, 0.9], ["reasoning: 2 scores are few; 30 or more"]),
        ([0.5] * 30, ["reasoning: all scores are 0.5000"]),
        ([0.5], ["reasoning: 1 scores are few", "reasoning: all scores are"]),
        ([0.1, 0.9] * 15, []),
    ],
)
def test_a_measurement_that_says_little_is_warned_of(
    model: Path, questions: Path, scores: list[float], given: list[float], warned: list[str]
) -> None:
    scores[:] = given
    code, _, notes = calibrate(questions, "--model", model)
    assert code == 0
    lines = [line for line in notes.splitlines() if line.startswith("warning: ")]
    assert len(lines) == len(warned)
    for line, said in zip(lines, warned, strict=True):
        assert line.startswith(f"warning: {said}")


@pytest.mark.parametrize(
    ("text", "flags", "said"),
    [
        ("", (), "questions.jsonl: there is no row in it"),
        ("{", (), "questions.jsonl, row 1: not JSON"),
        ('{"image": "bad.png", "question": "?"}', (), "questions.jsonl, row 1: "),
        ('{"image": "nix.png", "question": "?"}', (), "there is no such picture"),
        ("", ("--judge", "majority"), "--judge majority: "),
        ("", ("--judge", "slef"), "judge 'slef': there are self"),
        ("", ("--limit", "0"), "--limit 0: "),
        ("", ("--max-tokens", "0"), "--max-tokens 0: "),
        ("", ("--model", "nix"), "questions.jsonl: there is no row in it"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(
    model: Path, tmp_path: Path, text: str, flags: tuple[str, ...], said: str
) -> None:
    (tmp_path / "bad.png").write_bytes(b"no picture")
    questions = tmp_path / "questions.jsonl"
    questions.write_text(text, encoding="utf-8")
    given = flags if "--model" in flags else (*flags, "--model", model)
    code, printed, notes = calibrate(questions, *given)
    assert (code, printed) == (2 if flags and flags[0] != "--model" else 1, "")
    (line,) = notes.splitlines()
    assert line.startswith("error: ")
    assert said in line
    assert not (model / FILE_NAME).exists()
