"""No test can start a process without the marker that says so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

import pytest


@pytest.mark.parametrize(
    "start",
    [
        lambda: subprocess.run([sys.executable, "--version"]),
        lambda: os.posix_spawn(sys.executable, [sys.executable, "--version"], {}),
        lambda: os.system("true"),
        os.fork,
        os.forkpty,
    ],
    ids=["subprocess", "posix_spawn", "system", "fork", "forkpty"],
)
def test_a_process_needs_the_marker(start: Callable[[], object]) -> None:
    with pytest.raises(pytest.fail.Exception, match="marked `processes`"):
        start()


def test_a_test_without_a_marker_is_fast(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("fast") is not None


@pytest.mark.processes
def test_a_marked_test_starts_one(request: pytest.FixtureRequest) -> None:
    assert request.node.get_closest_marker("fast") is None
    assert subprocess.run([sys.executable, "--version"]).returncode == 0
