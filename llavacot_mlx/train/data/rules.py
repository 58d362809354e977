"""Checks an answer against the rules of the four stages."""

from __future__ import annotations

import re
from collections.abc import Iterator

from llavacot_mlx.prompt.stages import Closed, Opened, Stage, StageParser, Text
from llavacot_mlx.rows.problem import ProblemKind

LEAK_PHRASES = re.compile(
    r"\b(?:standard|reference|provided|given|expected|ground[- ]truth)\s+answers?\b"
    r"(?!\s+(?:choice|option)s?\b)"
    r"|\banswer\s+(?:that\s+)?(?:is|was)\s+(?:provided|given)\b"
    r"|\(Here (?:begins|ends) the \w+ stage\)",
    re.IGNORECASE,
)
"""Phrases of a teacher model that was shown the reference answer, or a form to fill in.

The published data was written by a model that saw the reference answer of each question, and some
of its texts mention that answer (a known flaw of LLaVA-CoT-100k). A model trained on them appeals
to an answer that it was never given. "The given answer choices" belong to the question and are
allowed.
"""

Found = tuple[ProblemKind, str]

_QUOTED = 60  # characters of a text that a detail quotes
_TAG = re.compile("</?(" + "|".join(stage.tag for stage in Stage) + ")>")


def leaks(answer: str) -> Iterator[Found]:
    """Yields the first phrase that reveals how an answer was generated."""
    if found := LEAK_PHRASES.search(answer):
        yield ProblemKind.LEAK, f"says {' '.join(found.group().split())!r}"


def stage_problems(answer: str) -> Iterator[Found]:
    """Yields the problems of an answer: each stage must occur once, in order, closed and not empty.

    Yields only NO_STAGES if there is no stage at all.
    """
    parser = StageParser(exact=True)
    opened: list[Stage] = []
    texts: list[str] = []
    unclosed: list[Stage] = []
    outside = ""
    for event in parser.feed(answer) + parser.finish():
        if isinstance(event, Opened):
            opened.append(event.stage)
            texts.append("")
        elif isinstance(event, Text) and event.stage is None:
            outside += event.text
        elif isinstance(event, Text):
            texts[-1] += event.text
        elif isinstance(event, Closed) and not event.by_tag:
            unclosed.append(event.stage)

    if not opened:
        yield ProblemKind.NO_STAGES, f"has no stage: {_quoted(answer)}"
        return
    for stage in Stage:
        if stage not in opened:
            conclusion = stage is Stage.CONCLUSION
            kind = ProblemKind.CONCLUSION_MISSING if conclusion else ProblemKind.STAGE_MISSING
            yield kind, f"{stage.tag} is missing"
        elif opened.count(stage) > 1:
            yield ProblemKind.STAGE_DOUBLED, f"{stage.tag} comes {opened.count(stage)} times"
    once = list(dict.fromkeys(opened))
    if once != sorted(once, key=list(Stage).index):
        order = ", ".join(stage.tag for stage in once)
        yield ProblemKind.STAGE_MISORDERED, f"the order is {order}"
    for stage, text in zip(opened, texts, strict=True):
        if not text.strip():
            yield ProblemKind.STAGE_EMPTY, f"{stage.tag} is empty"
        for tag in _TAG.finditer(text):
            doubled = tag[1] == stage.tag
            kind = ProblemKind.STAGE_DOUBLED if doubled else ProblemKind.STAGE_MISORDERED
            yield kind, f"{tag.group()} stands inside {stage.tag}"
    for stage in unclosed:
        yield ProblemKind.STAGE_NOT_CLOSED, f"{stage.closing} is missing"
    if outside.strip():
        yield ProblemKind.TEXT_OUTSIDE, f"has text outside the stages: {_quoted(outside)}"


def _quoted(text: str) -> str:
    text = " ".join(text.split())
    return repr(text if len(text) <= _QUOTED else f"{text[:_QUOTED]}…")
