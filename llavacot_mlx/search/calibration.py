"""Statistics of a judge's scores, stored in `calibration.json` beside a model.

A judge's scores are only comparable with other scores of the same judge. Their mean and standard
deviation, measured on data that is not a benchmark (`llavacot calibrate`), turn the published
threshold of SWIRES into a score (arXiv 2411.10440v6, appendix D: the mean plus a number of standard
deviations).
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

from llavacot_mlx.atomic import write_file
from llavacot_mlx.checked import KeyRules, PositiveInt, Range, checked, read_json
from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.record import Trace

FILE_NAME = "calibration.json"


@dataclass(frozen=True)
class ScoreStats:
    """Mean and spread of the scores that a judge gave one stage."""

    mean: float
    std: Annotated[float, Range(min=0)]
    count: PositiveInt

    @classmethod
    def of(cls, scores: Sequence[float]) -> ScoreStats:
        """Computes them; `std` is the population's, as in the published threshold."""
        return cls(statistics.fmean(scores), statistics.pstdev(scores), len(scores))

    def threshold(self, deviations: float) -> float:
        """Returns the score that lies this many standard deviations above the mean."""
        return self.mean + deviations * self.std


Calibration = Mapping[str, Mapping[Stage, ScoreStats]]
"""Statistics by the judge's name and by stage."""


@dataclass(frozen=True)
class _CalibrationFile:
    judges: dict[str, dict[Stage, ScoreStats]]


def load_calibration(folder: Path) -> Calibration:
    """Reads the calibration of the model in `folder`; empty without a file.

    Raises UserError that names what is wrong with the file.
    """
    file = folder / FILE_NAME
    if not file.exists():
        return {}
    value = read_json(file)
    try:
        return checked(_CalibrationFile, value, KeyRules(unknown=None)).judges
    except UserError as problem:
        raise UserError(f"{file}: {problem}; write it again with llavacot calibrate") from None


def save_calibration(folder: Path, calibration: Calibration) -> Path:
    """Writes `calibration.json` into `folder` atomically, and returns its path."""
    value = {
        "judges": {
            judge: {stage.value: asdict(stats) for stage, stats in stages.items()}
            for judge, stages in calibration.items()
        }
    }
    file = folder / FILE_NAME
    write_file(file, json.dumps(value, indent=2).encode() + b"\n")
    return file


def scores_by_stage(trace: Trace) -> dict[Stage, list[float]]:
    """Returns the scores of a search's candidates, by the stage that they wrote."""
    scores: dict[Stage, list[float]] = {}
    for node in trace.search.nodes:
        if node.stage is not None and node.score is not None:
            scores.setdefault(node.stage, []).append(node.score)
    return scores
