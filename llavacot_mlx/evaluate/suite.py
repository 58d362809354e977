"""A list of runs in a YAML file: the same questions for several models and searches.

    sets: shapes
    limit: 200
    out: runs
    runs:
      - name: greedy
      - name: swires
        search: swires
        judge: self
      - name: fine-tuned
        adapter-path: adapters

Every key of a run may also stand above the list, for all runs.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from llavacot_mlx.checked import KeyRules, Range, checked, named, read_yaml
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.conclusion import AnswerFrom

_RULES = KeyRules(dashes=True, float_texts=True)
_LARGEST = 2**31 - 1


@dataclass(frozen=True)
class SuiteRun:
    """One run of a suite; its fields are the options of `llavacot eval run`."""

    name: str
    sets: str
    data: str | None = None
    model: str | None = None
    adapter_path: str | None = None
    profile: str | None = None
    search: str | None = None
    candidates: int | None = None
    judge: str | None = None
    answer_from: AnswerFrom | None = None
    limit: Annotated[int, Range(min=1, max=_LARGEST)] | None = None
    first: Annotated[int, Range(min=0, max=_LARGEST)] = 0
    seed: int = 0
    repeats: Annotated[int, Range(min=1, max=_LARGEST)] = 1


@dataclass(frozen=True)
class Suite:
    """The runs, and the folder of their folders."""

    out: Path
    runs: tuple[SuiteRun, ...]


def read_suite(file: Path) -> Suite:
    """Reads a suite. Raises UserError that names the file, the run and the key."""
    value = read_yaml(file)
    with named(file):
        if not isinstance(value, dict):
            raise UserError("expected keys such as sets, out and runs")
        value = {str(key).replace("-", "_"): each for key, each in value.items()}
        out, listed = value.pop("out", None), value.pop("runs", None)
        if not isinstance(out, str):
            raise UserError("out is missing: the folder of the runs")
        if not isinstance(listed, list) or not listed:
            raise UserError("runs is missing: a list of runs, such as `- name: greedy`")
        runs = tuple(_run(number, each, value) for number, each in enumerate(listed))
        names = [run.name for run in runs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f"runs: the name {twice} stands twice")
        return Suite(Path(out).expanduser(), runs)


def _run(number: int, value: Any, shared: dict[str, Any]) -> SuiteRun:
    with named(f"runs[{number}]"):
        if not isinstance(value, dict):
            raise UserError("expected keys such as name and search")
        own = {str(key).replace("-", "_"): each for key, each in value.items()}
        run = checked(SuiteRun, {**shared, **own}, _RULES)
        if "/" in run.name or run.name in ("", ".", ".."):
            raise UserError(f"name: {run.name!r} is no name of a folder")
        return run
