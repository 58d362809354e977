"""The next command to type, as other commands suggest it."""

from __future__ import annotations

import shlex
from collections.abc import Iterable
from pathlib import Path

from llavacot_mlx import demo
from llavacot_mlx.cli.printable import printable, printable_line
from llavacot_mlx.cli.units import format_bytes

QUESTION = "How many red shapes are there?"


def first_command() -> str:
    """A command that can be run unchanged, on an image that comes with the package.

    Such as `llavacot ask ~/…/square.png "How many red shapes are there?"`.
    """
    return f'llavacot ask {shell_path(demo.example_path())} "{QUESTION}"'


def try_it() -> str:
    """An invitation to run `first_command`."""
    return f"Try it now; a small demo model is included:\n\n  {first_command()}\n"


def next_command(*, model: str | None = None, adapter: Path | None = None) -> str:
    """A question for the model that was just written; `model` is a folder or a hub id."""
    command = 'llavacot ask photo.jpg "What is unusual here?"'
    if model is not None:
        command += f" --model {shell_path(Path(model))}"
    return command if adapter is None else f"{command} --adapter-path {shell_path(adapter)}"


def wrote_line(
    folder: Path, now: str, *, weight_bytes: int | None = None, where: str | None = None
) -> str:
    """Such as `wrote llava-cot-4bit, 7.1 GB; now: llavacot ask photo.jpg …`.

    `now` is what to type next, and `where` says where to type it, when not in the shell.
    """
    size = "" if weight_bytes is None else f", {format_bytes(weight_bytes)}"
    location = "" if where is None else f", {where}"
    return f"wrote {printable_line(str(folder))}{size}; now{location}: {printable(now)}"


def calibration_note(sources: Iterable[Path], written: Path) -> str | None:
    """That a calibration beside the sources was not copied, and how to have one; None if none."""
    # Imported here, because `llavacot --help` has no use for it.
    from llavacot_mlx.search.calibration import FILE_NAME as CALIBRATION_NAME

    if (written / CALIBRATION_NAME).is_file():
        return None
    if not any((source / CALIBRATION_NAME).is_file() for source in sources):
        return None
    return (
        f"note: {CALIBRATION_NAME} was measured with other weights, so it was not copied; "
        "llavacot calibrate measures these"
    )


def shell_path(path: Path) -> str:
    """The path as a person would type it in a shell."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return prefix + shlex.quote(str(path.relative_to(base)))
    return shlex.quote(str(path))
