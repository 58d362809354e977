"""An answer, and the search for it, as one self-contained HTML file.

This module works out what the page says; `page.html.j2` says it, and escapes every text.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined, Template

from llavacot_mlx import __version__
from llavacot_mlx.cli.html.page_picture import page_picture
from llavacot_mlx.cli.html.search_tree_svg import SearchTree, search_tree
from llavacot_mlx.cli.printable import printable, printable_line
from llavacot_mlx.cli.units import format_bytes, format_seconds
from llavacot_mlx.cli.views.plain import not_closed
from llavacot_mlx.cli.views.search_view import (
    CandidateProgress,
    Round,
    SearchProgress,
    retrace_line,
    unit_of,
)
from llavacot_mlx.cli.views.summary_line import search_summary_line, summary_line
from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.stages import Stage, StageRecord
from llavacot_mlx.trace.event_log import stage_events
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    FreeText,
    Retraced,
    StageEnded,
    StageStarted,
    StageText,
)
from llavacot_mlx.trace.record import SearchRecord, Trace

_FOLDER = Path(__file__).parent
_SHORT_GIST = 80  # characters that a phone shows in full


def page(trace: Trace, picture: bytes | None) -> str:
    """The whole page. Raises UserError where `picture` is not an image."""
    shown = None
    if picture is not None:
        try:
            shown = page_picture(picture)
        except UserError as problem:
            raise UserError(f"picture: {problem}") from None
    return _template().render(
        trace=trace,
        picture=shown,
        style=(_FOLDER / "page.css").read_text(encoding="utf-8"),
        parts=_parts(trace),
        search=_search(trace) if trace.search.nodes else None,
        notices=trace.search.notices,
        details=_details(trace),
        figures=summary_line(trace),
        version=__version__,
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=FileSystemLoader(_FOLDER),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    # Neither control characters nor overrides of the text's direction reach the page.
    environment.filters |= {"text": printable, "line": printable_line}
    return environment.get_template("page.html.j2")


def path_taken(search: SearchRecord) -> list[int]:
    """The nodes of the chosen path, the first first; before the end, of the best path so far."""
    if not search.nodes:
        return []
    kept = [choice.kept[0] for choice in search.choices if choice.kept]
    at: int | None = kept[-1] if kept else 0
    path: list[int] = []
    while at is not None:
        path.insert(0, at)
        at = search.nodes[at].parent
    return path


@dataclass(frozen=True)
class Fact:
    """A short remark beside a heading."""

    text: str
    warn: bool = False


@dataclass
class PathPart:
    """A stage of the path taken, or text outside any stage."""

    stage: Stage | None
    text: str = ""
    record: StageRecord | None = None
    """None outside a stage, and where the stage was stopped in the middle."""

    @property
    def heading(self) -> str:
        return _heading(self.stage)

    @property
    def facts(self) -> list[Fact]:
        if self.record is None:
            return [] if self.stage is None else [Fact("stopped here", warn=True)]
        facts = [Fact(f"{self.record.tokens} tokens")]
        if self.record.candidates > 1:
            facts.append(Fact(f"one of {self.record.candidates} candidates"))
        if self.record.score is not None:
            facts.append(Fact(f"score {self.record.score:.2f}"))
        if not self.record.closed:
            facts.append(Fact(not_closed(self.record.stage), warn=True))
        return facts


def _parts(trace: Trace) -> list[PathPart]:
    """The path taken, stage by stage."""
    parts: list[PathPart] = []
    records = iter(trace.stages)
    for event in stage_events(trace.text, trace.stages):
        match event:
            case StageStarted(stage):
                parts.append(PathPart(stage))
            case StageText(text=text):
                parts[-1].text += text
            case StageEnded():
                parts[-1].record = next(records)
            case FreeText(text):
                if not parts or parts[-1].stage is not None:
                    parts.append(PathPart(None))
                parts[-1].text += text
    for part in parts:
        part.text = part.text.strip()
    return [part for part in parts if part.stage is not None or part.text]


def _heading(stage: Stage | None) -> str:
    return stage.value.capitalize() if stage else "Outside any stage"


@dataclass(frozen=True)
class ScoreBar:
    """A score, and how full its bar is."""

    verdict: str
    share: float = 0.0
    """Percent."""
    threshold: float | None = None
    """Percent; None where there is none, or it is off the scale."""
    verdict_only: bool = False
    """Whether the judge came to no verdict."""


@dataclass(frozen=True)
class TextPiece:
    """A stage of what a candidate wrote."""

    heading: str
    text: str


@dataclass(frozen=True)
class CandidateCard:
    """One candidate of a round."""

    number: int
    fate: str
    """path, kept or dropped."""
    fate_text: str
    forked_from: int | None
    """The number of the candidate that it continues, where those of its round differ in that."""
    score: ScoreBar | None
    warning: str
    gist: str
    pieces: list[TextPiece]
    parent: int | None
    tokens: int | None
    """None before its end."""


@dataclass(frozen=True)
class RoundCard:
    """Candidates that were written and judged together."""

    title: str
    notes: list[str]
    candidates: list[CandidateCard]


@dataclass(frozen=True)
class RetraceLine:
    """Where the search went back."""

    text: str
    why: str


@dataclass(frozen=True)
class SearchStory:
    """A search, drawn and told."""

    figures: str
    tree: SearchTree | None
    any_cut: bool
    story: list[RoundCard | RetraceLine]


def _search(trace: Trace) -> SearchStory:
    search, path = trace.search, set(path_taken(trace.search))
    scales = _scales(search)
    return SearchStory(
        figures=search_summary_line(trace),
        tree=search_tree(search, path),
        any_cut=not all(node.closed for node in search.nodes),
        story=[
            RetraceLine(retrace_line(entry), _why(search))
            if isinstance(entry, Retraced)
            else _round(entry, path, scales)
            for entry in _story(trace)
        ],
    )


def _story(trace: Trace) -> Iterator[Round | Retraced]:
    """The rounds and the steps back, in the order in which they happened."""
    progress = SearchProgress(unit_of(trace))
    for event in trace.events:
        match event:
            case CandidateStarted():
                progress.start_candidate(event)
            case CandidateText() | CandidateEnded() | CandidateScored():
                progress.update_candidate(event)
            case CandidatesKept():
                ended = progress.end_round(event)
                if ended is not None:
                    yield ended
            case Retraced():
                yield event
    if progress.round is not None:
        yield progress.round


@dataclass(frozen=True)
class _Scale:
    """What the empty and the full bar of a score stand for."""

    low: float = 0.0
    high: float = 1.0
    threshold: float | None = None

    def share(self, score: float) -> float:
        return 100 * (score - self.low) / (self.high - self.low)


def _scales(search: SearchRecord) -> Mapping[int, _Scale]:
    """By node, the scale of its score: 0 to 1, or what that step's scores span where they leave it.

    A step's scores come from one judge, and those of two judges mean different things.
    """
    threshold, decides = None, None
    retrace = search.plan.get("retrace")
    if retrace:
        threshold = retrace.get("threshold")
        names = [step["write"] for step in search.plan["steps"]]
        decides = names.index(retrace["after"])
    steps: dict[int, list[int]] = {}
    for choice in search.choices:
        steps.setdefault(choice.step, []).extend(choice.nodes)
    scales: dict[int, _Scale] = {}
    for step, nodes in steps.items():
        limit = threshold if step == decides else None
        scores = [score for node in nodes if (score := search.nodes[node].score) is not None]
        low, high = min([0.0, *scores]), max([1.0, *scores])
        if scores and (low < 0 or high > 1):
            wanted = scores if limit is None else [*scores, limit]
            low, high = min(wanted), max(wanted)
            room = (high - low) / 10 or 1.0  # so that the lowest score has a bar as well
            low -= room
        scales.update(dict.fromkeys(nodes, _Scale(low, high, limit)))
    return scales


def _round(round: Round, path: set[int], scales: Mapping[int, _Scale]) -> RoundCard:
    kept = ", ".join(map(str, round.kept))
    notes = [f"kept {kept}" if kept else "stopped here", f"{round.tokens} tokens"]
    if round.identical:
        count = len(round.candidates)
        notes.insert(0, "both wrote the same" if count == 2 else f"all {count} wrote the same")
    cards = [_card(candidate, round, path, scales) for candidate in round.candidates]
    return RoundCard(round.title, notes, cards)


def _card(
    candidate: CandidateProgress, round: Round, path: set[int], scales: Mapping[int, _Scale]
) -> CandidateCard:
    node = candidate.number - 1
    fate = "path" if node in path else "kept" if candidate.kept else "dropped"
    texts = {"path": "on the path", "kept": "kept", "dropped": "dropped" if round.kept else ""}
    warning = ""
    if not candidate.closed:
        warning = "not closed" if candidate.ended else "not finished"
    return CandidateCard(
        number=candidate.number,
        fate=fate,
        fate_text=texts[fate],
        forked_from=candidate.parent if round.forked else None,
        score=_score_bar(candidate, scales.get(node, _Scale())) if candidate.scored else None,
        warning=warning,
        gist=_gist(candidate, round),
        pieces=_pieces(candidate),
        parent=candidate.parent,
        tokens=candidate.tokens if candidate.ended else None,
    )


def _gist(candidate: CandidateProgress, round: Round) -> str:
    gist = round.gist(candidate)
    if len(gist) > _SHORT_GIST and not round.identical:
        return round.distinct_gist(candidate)
    return gist


def _score_bar(candidate: CandidateProgress, scale: _Scale) -> ScoreBar:
    if candidate.score is None:
        return ScoreBar(candidate.verdict, verdict_only=True)
    threshold = None
    if scale.threshold is not None and scale.low <= scale.threshold <= scale.high:
        threshold = scale.share(scale.threshold)
    return ScoreBar(candidate.verdict, scale.share(candidate.score), threshold)


def _pieces(candidate: CandidateProgress) -> list[TextPiece]:
    """All that a candidate wrote, stage by stage."""
    texts = [
        (stage, "".join(text for _, text in group).strip())
        for stage, group in itertools.groupby(candidate.parts, key=lambda part: part[0])
    ]
    return [TextPiece(_heading(stage), text) for stage, text in texts if text]


def _why(search: SearchRecord) -> str:
    """Why the search went back; empty where the plan states no threshold."""
    retrace = search.plan.get("retrace")
    if not retrace or retrace.get("threshold") is None:
        return ""
    rank = retrace["rank"]
    best = "best" if rank == 1 else f"{_ordinal(rank)} best"
    return f"The {best} {retrace['after']} of all rounds had to score {retrace['threshold']:.2f}."


def _ordinal(number: int) -> str:
    words = {2: "second", 3: "third"}
    return words.get(number, f"{number}th")


def _details(trace: Trace) -> list[tuple[str, str]]:
    """How it was asked, and what it cost, by name."""
    usage, timings, plan = trace.usage, trace.timings, trace.search.plan
    computed = usage.prefilled_tokens + usage.decoded_tokens + usage.judge_tokens
    rows = [("Model", trace.model), ("Method", trace.search.method)]
    if trace.adapter is not None:
        rows.insert(1, ("Adapter", trace.adapter))
    if plan:
        rows += _plan_rows(plan, searched=bool(trace.search.nodes))
    rows += [
        ("Seed", str(trace.seed)),
        ("Longest answer", f"{trace.max_tokens} tokens"),
        ("Prompt", f"{usage.prompt_tokens} tokens, {_pictures(usage.images_encoded)}"),
        ("Decoded", f"{usage.decoded_tokens} tokens; the answer has {len(trace.token_ids)}"),
    ]
    if trace.search.nodes:
        rows += [
            ("Judged", f"{usage.judge_tokens} tokens"),
            (
                "Reused",
                f"{usage.reused_tokens} tokens; a run without reuse would have computed "
                f"{computed + usage.reused_tokens} instead of {computed}",
            ),
        ]
    rows.append(("Time", f"{format_seconds(timings.total_s)} in all"))
    memory = [f"{format_bytes(usage.kv_bytes)} of keys and values"] if usage.kv_bytes else []
    if trace.peak_memory_bytes:
        memory.insert(0, f"{format_bytes(trace.peak_memory_bytes)} at the peak")
    if memory:
        rows.append(("Memory", ", ".join(memory)))
    return rows


def _pictures(count: int) -> str:
    return "no picture" if not count else f"{count} picture{'s' if count != 1 else ''} encoded"


def _plan_rows(plan: Mapping[str, object], *, searched: bool) -> list[tuple[str, str]]:
    """A plan as it stands in the trace, in words."""
    rows = [("Drawn at", f"temperature {plan['temperature']:g}, top-p {plan['top_p']:g}")]
    if not searched:
        return rows
    steps = plan["steps"]
    assert isinstance(steps, list)
    described = []
    for step in steps:
        words = f"{step['write']} {step.get('candidates', 1)}"
        if step.get("candidates", 1) > 1:
            words += f" (keep {step.get('keep', 1)})"
        if "judge" in step:
            words += f" by {step['judge']}"
        described.append(words)
    rows += [("Judge", str(plan["judge"])), ("Candidates", " → ".join(described))]
    retrace = plan.get("retrace")
    if isinstance(retrace, dict):
        threshold = retrace.get("threshold")
        below = "" if threshold is None else f" while that is below {threshold:g}"
        rows.append(
            (
                "Goes back",
                f"from {retrace['after']} to {retrace['to']}, at most "
                f"{retrace['most']} times{below}",
            )
        )
    return rows
