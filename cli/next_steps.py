"""Commands to try: the first one runs as it is, on a picture that comes with the package."""

from __future__ import annotations

import shlex
from pathlib import Path

from llavacot_mlx import demo

QUESTION = "How many red shapes are there?"


def first_command() -> str:
    """Such as `llavacot ask ~/…/square.png "How many red shapes are there?"`."""
    return f'llavacot ask {typed(demo.example_path())} "{QUESTION}"'


def next_command(*, model: str | None = None, adapter: Path | None = None) -> str:
    """What to ask a model that was just made; `model` is a folder or an id on the hub."""
    command = 'llavacot ask photo.jpg "What is unusual here?"'
    if model is not None:
        command += f" --model {typed(Path(model))}"
    return command if adapter is None else f"{command} --adapter-path {typed(adapter)}"


def typed(path: Path) -> str:
    """The path as a person would type it in a shell."""
    for base, prefix in ((Path.cwd(), ""), (Path.home(), "~/")):
        if path.is_relative_to(base):
            return prefix + shlex.quote(str(path.relative_to(base)))
    return shlex.quote(str(path))
