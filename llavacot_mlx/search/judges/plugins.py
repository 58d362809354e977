"""External judges: a package's entry point, or a model named by its folder or hub id.

Nothing here imports mlx, so that the command line can check a judge's name before anything loads.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stdout
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING

from llavacot_mlx.checked import quoted
from llavacot_mlx.checkpoint.hub import Download, find
from llavacot_mlx.checkpoint.model_name import is_model_name
from llavacot_mlx.errors import UserError
from llavacot_mlx.plan.plan import BUILT_IN_JUDGES
from llavacot_mlx.search.judges.base import Candidate, ExternalJudge, JudgeError

if TYPE_CHECKING:
    from PIL import Image

    from llavacot_mlx.search.node import Node

GROUP = "llavacot.judges"
"""The entry point group of judges in Python packages."""


class ExternalJudgeAdapter:
    """Adapts an external judge to the candidates of one question."""

    def __init__(
        self, name: str, judge: ExternalJudge, image: Image.Image | None, question: str
    ) -> None:
        self._name, self._judge = name, judge
        self._image, self._question = image, question

    def scores(self, nodes: Sequence[Node]) -> list[float | None]:
        """Returns the judge's scores, and turns whatever goes wrong in it into a JudgeError."""
        candidates = [Candidate(node.stage, node.stage_text, node.answer) for node in nodes]
        try:
            with redirect_stdout(sys.stderr):  # stdout belongs to the answer
                scores = self._judge.scores(self._image, self._question, candidates)
        except JudgeError as failure:
            raise JudgeError(f"judge {self._name}: {failure}") from failure
        except Exception as error:
            raise JudgeError(f"judge {self._name} failed: {_one_line(error)}") from error
        try:
            return _check_scores(scores, len(nodes))
        except JudgeError as failure:
            raise JudgeError(f"judge {self._name} {failure}") from None


def _check_scores(scores: object, count: int) -> list[float | None]:
    if scores is None:
        raise JudgeError("returned nothing")
    if isinstance(scores, (str, bytes, Mapping)) or not hasattr(scores, "__iter__"):
        raise JudgeError(f"returned a {type(scores).__name__} in place of a list of scores")
    given = list(scores)
    if len(given) != count:
        raise JudgeError(f"returned {len(given)} scores for {count} candidates")
    return [None if score is None else _to_float(score) for score in given]


def _to_float(score: object) -> float:
    """Converts a score to float, including scalars of numpy, torch and mlx."""
    try:
        if not isinstance(score, (str, bytes)):
            return float(score)  # type: ignore[arg-type]
    except (TypeError, ValueError, OverflowError):
        pass
    raise JudgeError(f"returned {score!r:.40} in place of a number") from None


def check_judge_name(name: str) -> None:
    """Raises UserError for an impossible judge name; loads nothing.

    A hub id is accepted by its form.
    """
    if name not in BUILT_IN_JUDGES and not _entry_point(name) and not is_model(name):
        others = ", ".join(sorted({point.name for point in entry_points(group=GROUP)}))
        raise UserError(
            f"judge {quoted(name)}: there are {', '.join(BUILT_IN_JUDGES)}; "
            f"installed by packages: {others or 'none'}; "
            "any other judge is a model: its folder, or its id on the hub like owner/name"
        )


def is_model(name: str) -> bool:
    """Returns whether the name is that of a model, to be found by `hub.find`.

    Raises UserError for a file, and for a folder without a model.
    """
    if name in BUILT_IN_JUDGES or _entry_point(name):
        return False
    folder = Path(name).expanduser()
    if not folder.exists():
        return is_model_name(name)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"judge {name}: there is no config.json in it; a judge is a model's folder, "
            f"one of {', '.join(BUILT_IN_JUDGES)}, or one that a package installed"
        )
    return True


class ExternalJudges:
    """Loads external judges, each one once."""

    def __init__(self, report: Callable[[Download], None] = lambda _: None) -> None:
        """`report` receives the progress of a judge model's download, see `hub.find`."""
        self._report = report
        self._loaded: dict[str, ExternalJudge] = {}

    def get(self, name: str) -> ExternalJudge:
        """Returns the judge; the first call loads it, which may take as long as loading a model.

        Raises UserError that names the judge, when there is none or it cannot be loaded.
        """
        if name not in self._loaded:
            check_judge_name(name)
            found = _entry_point(name)
            with redirect_stdout(sys.stderr):
                self._loaded[name] = (
                    _load_entry_point(found) if found else _load_model_judge(name, self._report)
                )
        return self._loaded[name]


def _entry_point(name: str) -> EntryPoint | None:
    """Returns the judge's entry point; of several the first on Python's path, as imports do."""
    return next(iter(entry_points(group=GROUP, name=name)), None)


def _load_entry_point(point: EntryPoint) -> ExternalJudge:
    try:
        judge = point.load()()
    except Exception as error:
        raise UserError(
            f"judge {point.name}: its package's {point.value} failed: {_one_line(error)}"
        ) from error
    if not callable(getattr(judge, "scores", None)):
        raise UserError(
            f"judge {point.name}: {point.value} made a {type(judge).__name__}, "
            "which has no method `scores`"
        )
    return judge


def _load_model_judge(name: str, report: Callable[[Download], None]) -> ExternalJudge:
    from llavacot_mlx.search.judges.model_judge import load_judge

    try:
        return load_judge(find(name, report, any_type=True))
    except UserError as error:
        raise UserError(f"judge {error}") from error


def _one_line(error: Exception) -> str:
    text = re.sub(r"\s+", " ", str(error)).strip()
    return f"{type(error).__name__}: {text:.200}" if text else type(error).__name__
