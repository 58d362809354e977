"""The paper's numbers, and when a score of ours is within noise of one of them.

arXiv 2411.10440v6, tables 2 and 4, and appendix E for the reasoning subsets; the row of the stage
beam is from v1, whose AI2D is the variant without masks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from llavacot_mlx.plan.plan import Method

MMSTAR, MMBENCH, MMVET = "mmstar", "mmbench", "mmvet"
MATHVISTA, AI2D, HALLUSIONBENCH = "mathvista", "ai2d", "hallusionbench"
AI2D_NO_MASK = "ai2d-no-mask"
THE_SIX = (MMSTAR, MMBENCH, MMVET, MATHVISTA, AI2D, HALLUSIONBENCH)

_Row = dict[str, float]


def _row(*scores: float) -> _Row:
    return dict(zip(THE_SIX, scores, strict=True))


BASE = "Llama-3.2-11B-Vision-Instruct"
LLAVA_COT = "LLaVA-CoT"
WITH_STAGE_BEAM = "LLaVA-CoT, stage beam of 2 (v1)"
WITH_SWIRES = "LLaVA-CoT with SWIRES"

SCORES: dict[str, _Row] = {
    BASE: _row(49.8, 65.8, 57.6, 48.6, 77.3, 40.3),
    "direct training": _row(54.3, 76.2, 49.9, 49.5, 81.2, 42.9),
    "without the structured tags": _row(55.7, 74.2, 57.0, 54.1, 79.1, 45.0),
    LLAVA_COT: _row(57.6, 75.0, 60.3, 54.8, 78.7, 47.8) | {AI2D_NO_MASK: 85.7},
    WITH_SWIRES: _row(62.5, 77.6, 64.9, 57.7, 81.0, 49.1),
    WITH_STAGE_BEAM: {
        MMSTAR: 58.1,
        MMBENCH: 75.6,
        MMVET: 61.7,
        MATHVISTA: 56.1,
        AI2D_NO_MASK: 87.5,
        HALLUSIONBENCH: 48.2,
    },
}

REASONING_SCORES: dict[str, _Row] = {
    BASE: _row(46.6, 64.9, 63.8, 48.6, 77.3, 40.3),
    LLAVA_COT: _row(57.5, 73.1, 66.7, 54.8, 78.7, 47.8),
    WITH_SWIRES: _row(63.0, 75.8, 71.4, 57.7, 81.0, 49.1),
}

REASONING: dict[str, tuple[str, tuple[str, ...]]] = {
    MMSTAR: (
        "category",
        ("instance reasoning", "logical reasoning", "math", "science & technology"),
    ),
    MMBENCH: ("l2-category", ("attribute_reasoning", "logic_reasoning", "relation_reasoning")),
    MMVET: ("category", ("spat", "math")),
}
"""The categories whose mean is a set's reasoning score; the other sets count whole."""

SEEN_IN_TRAINING: dict[str, tuple[str, tuple[str, ...]]] = {
    MMSTAR: ("bench", ("AI2D_TEST", "ScienceQA_TEST")),
    MATHVISTA: (
        "source",
        ("GEOQA+", "CLEVR-Math", "ChartQA", "AI2D", "DocVQA", "ScienceQA", "A-OKVQA"),
    ),
}
"""The field and its values that name sources which LLaVA-CoT was trained on."""


def paper_row(method: str) -> str:
    """The row of the paper that a run with this search method stands beside."""
    if method in (Method.SWIRES, Method.SWIRES_CODE):
        return WITH_SWIRES
    return WITH_STAGE_BEAM if method == Method.STAGE_BEAM else LLAVA_COT


@dataclass(frozen=True)
class PaperComparison:
    """A score beside the paper's."""

    row: str
    score: float
    difference: float
    """Ours minus theirs, in points."""
    noise: float
    """Half the width of the 95% interval of such a difference, in points."""
    within_noise: bool


def compare_with_paper(
    row: str, theirs: float, ours: float, half_width: float, size: int
) -> PaperComparison:
    """Compares two scores in points; `half_width` is that of our 95% interval.

    The paper's is one draw of `size` questions. An 11B model in 4 bits and one in bfloat16 are
    never compared by this, but question by question.
    """
    share = theirs / 100
    theirs_se = 100 * math.sqrt(share * (1 - share) / size)
    noise = 1.96 * math.hypot(half_width / 1.96, theirs_se)
    difference = ours - theirs
    return PaperComparison(
        row, theirs, round(difference, 2), round(noise, 2), abs(difference) <= noise
    )
