"""Scores answers as well-formed and right, with confidence intervals of the fractions."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from dataclasses import dataclass

from llavacot_mlx.demo.world import QUESTION_KINDS, Question, Scene
from llavacot_mlx.prompt.stages import Stage

# Strict: the four stages, each once, in order, with one space inside the tags and a blank line
# between, and nothing before, between or after; no tag inside a stage (a `<` alone may be).
WELL_FORMED = re.compile(
    r"\n\n".join(
        rf"{stage.opening} (?P<{stage.value}>(?:(?!</?[A-Z]).)*) {stage.closing}" for stage in Stage
    ),
    re.DOTALL,
)


@dataclass(frozen=True)
class Scored:
    """The scores of one answer."""

    kind: str
    layout: str
    multiple_choice: bool
    well_formed: bool
    caption_exact: bool
    reasoning_exact: bool
    right: bool


def scored(world: Scene, question: Question, text: str, ended: bool) -> Scored:
    """Scores `text`, an answer without special tokens; `ended` says if its turn was closed."""
    found = WELL_FORMED.fullmatch(text) if ended else None

    def exact(stage: Stage) -> bool:
        return found is not None and found[stage.value] == question.stage_text(stage)

    return Scored(
        kind=question.kind,
        layout=world.layout.name,
        multiple_choice=bool(question.choices),
        well_formed=found is not None,
        caption_exact=exact(Stage.CAPTION),
        reasoning_exact=exact(Stage.REASONING),
        right=exact(Stage.CONCLUSION),
    )


@dataclass(frozen=True)
class Share:
    """`hits` of `count`, with Wilson's 95% interval."""

    hits: int
    count: int

    @property
    def value(self) -> float:
        return self.hits / self.count

    @property
    def interval(self) -> tuple[float, float]:
        z = 1.96
        scale = 1 + z * z / self.count
        middle = (self.value + z * z / (2 * self.count)) / scale
        spread = self.value * (1 - self.value) / self.count + z * z / (4 * self.count**2)
        half = z * math.sqrt(spread) / scale
        return max(0.0, middle - half), min(1.0, middle + half)


def shares(results: list[Scored]) -> dict[str, Share]:
    """Fractions by name: form, exactness, right answers in all, by question kind and by picture."""
    hits: dict[str, list[bool]] = defaultdict(list)
    for one in results:
        hits["well-formed"].append(one.well_formed)
        hits["caption exact"].append(one.caption_exact)
        hits["reasoning exact"].append(one.reasoning_exact)
        hits["right"].append(one.right)
        hits[f"right: {one.kind}"].append(one.right)
        hits["right: multiple choice" if one.multiple_choice else "right: open"].append(one.right)
        hits[f"right: {one.layout} pictures"].append(one.right)
    first = ["well-formed", "right", *(f"right: {kind}" for kind in QUESTION_KINDS)]
    order = [name for name in first if name in hits]
    order += sorted(name for name in hits if name not in first)
    return {name: Share(sum(hits[name]), len(hits[name])) for name in order}


def table(figures: dict[str, Share]) -> str:
    """The fractions as a Markdown table."""
    lines = ["| | share | 95% interval | of |", "|---|---:|---:|---:|"]
    for name, share in figures.items():
        low, high = share.interval
        lines.append(
            f"| {name} | {100 * share.value:.1f}% | {100 * low:.1f}–{100 * high:.1f}% "
            f"| {share.count} |"
        )
    return "\n".join(lines)
