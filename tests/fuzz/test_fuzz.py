"""A few changed files of every kind that a person can hand over; `run.py` tries thousands.

Each ends with exit code 0, or with 1, one line, and nothing left behind.
"""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from fuzzing.kinds import KINDS, changed, lay_desk
from fuzzing.outcome import faults, listing, run_here
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

pytestmark = pytest.mark.slow

FEW = settings(
    max_examples=8,
    derandomize=True,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("fuzz") / "desk"
    lay_desk(folder)
    return folder


@pytest.mark.parametrize("name", KINDS)
def test_whole_files_are_taken(name: str, whole: Path, tmp_path: Path) -> None:
    """What is changed below is right to begin with: every command reads it."""
    kind = KINDS[name]
    for number, command in enumerate(kind.commands):
        desk = Path(shutil.copytree(whole, tmp_path / str(number)))
        outcome = run_here(desk, command)
        assert outcome.code == 0, (command, outcome)


@pytest.mark.parametrize("name", KINDS)
@FEW
@given(seed=st.integers(0, 2**32))
def test_changed_files_end_in_an_answer_or_a_line(
    name: str, seed: int, whole: Path, tmp_path: Path
) -> None:
    kind = KINDS[name]
    desk = tmp_path / "desk"
    shutil.rmtree(desk, ignore_errors=True)
    shutil.copytree(whole, desk)
    data, command = changed(kind, (desk / kind.file).read_bytes(), seed)
    (desk / kind.file).write_bytes(data)
    before = listing(desk)
    outcome = run_here(desk, command)
    assert not faults(outcome, before, listing(desk), reports=kind.reports), command
