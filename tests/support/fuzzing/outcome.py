"""Runs one command in this process, and says what is wrong with how it ended."""

from __future__ import annotations

import os
import re
import traceback
from collections.abc import Sequence
from contextlib import chdir
from dataclasses import dataclass
from pathlib import Path

from typer.testing import CliRunner

from llavacot_mlx.cli.main import app

_MAX_LINE = 300
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
Listing = dict[str, tuple[int, int] | None]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    stdout: str
    stderr: str
    crash: str
    """The traceback of an exception that the command did not turn into a line."""


def run_here(desk: Path, command: Sequence[str]) -> Outcome:
    """Runs `llavacot` with these arguments, with `desk` as its folder."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    with chdir(desk):
        done = CliRunner().invoke(app, list(command), prog_name="llavacot")
    crash = ""
    if done.exception is not None and not isinstance(done.exception, SystemExit):
        crash = "".join(traceback.format_exception(done.exception))
    return Outcome(done.exit_code, done.stdout, done.stderr, crash)


def listing(folder: Path) -> Listing:
    """Everything below a folder: of files the size and the last change."""
    found: Listing = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        what = None if path.is_dir() else (status.st_size, status.st_mtime_ns)
        found[str(path.relative_to(folder))] = what
    return found


def faults(outcome: Outcome, before: Listing, after: Listing, *, reports: bool) -> list[str]:
    """What the promise of one line and nothing left behind does not allow."""
    found = []
    if outcome.crash or "Traceback" in outcome.stderr:
        found.append(f"a traceback: {outcome.crash[-2000:] or outcome.stderr[-2000:]}")
    if "internal:" in outcome.stderr:
        found.append(f"an internal error: {outcome.stderr[-500:]}")
    if outcome.code not in (0, 1):
        found.append(f"exit code {outcome.code}")
    errors = [line for line in outcome.stderr.splitlines() if line.startswith("error: ")]
    is_report = reports and outcome.code == 1 and not errors and "problem" in outcome.stdout
    if len(errors) != outcome.code and not is_report and not outcome.crash:
        found.append(f"{len(errors)} error lines with exit code {outcome.code}")
    if any(len(line) > _MAX_LINE for line in errors):
        found.append(f"an error of {max(map(len, errors))} characters: {errors[0][:200]}")
    for name, text in (("stdout", outcome.stdout), ("stderr", outcome.stderr)):
        if control := _CONTROL.search(text):
            found.append(f"the control character {control.group()!r} on {name}")
    if outcome.code != 0 and not is_report and before != after:
        found.append(f"left behind: {sorted(set(before.items()) ^ set(after.items()))[:4]}")
    return found
