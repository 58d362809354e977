"""The page's section on a search: its tree, and its rounds with all their candidates."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from llavacot_mlx.cli.html.search_tree_svg import SearchTree, search_tree
from llavacot_mlx.cli.views.search_view import (
    CandidateProgress,
    Round,
    SearchProgress,
    retrace_line,
    unit_of,
)
from llavacot_mlx.cli.views.summary_line import search_summary_line
from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    Retraced,
)
from llavacot_mlx.trace.record import SearchRecord, Trace

_SHORT_GIST = 80  # characters that a phone shows in full


@dataclass(frozen=True)
class ScoreBar:
    """A score, and how full its bar is drawn."""

    verdict: str
    share: float = 0.0
    """Percent."""
    threshold: float | None = None
    """Percent; None without a threshold, or if it is off the scale."""
    verdict_only: bool = False
    """Whether there is no bar, because the judge came to no verdict."""


@dataclass(frozen=True)
class TextPiece:
    """The part of a candidate's text that belongs to one stage."""

    heading: str
    text: str


@dataclass(frozen=True)
class CandidateCard:
    """One candidate of a round."""

    number: int
    fate: str
    """`path`, `kept` or `dropped`: the class in the style sheet."""
    fate_text: str
    forked_from: int | None
    """The number of its parent, if the candidates of its round have different ones."""
    score: ScoreBar | None
    warning: str
    gist: str
    pieces: list[TextPiece]
    parent: int | None
    tokens: int | None
    """None if it did not end."""


@dataclass(frozen=True)
class RoundCard:
    """Candidates that were written and judged together."""

    title: str
    notes: list[str]
    candidates: list[CandidateCard]
    folded_fate: str
    """Whether all wrote the same, so that one card tells them: the fate of the best of them."""
    legend: str
    """What the scores are, the first time that a judge gives any; empty otherwise."""


@dataclass(frozen=True)
class RetraceLine:
    """A retrace, and the reason for it."""

    text: str
    why: str
    """Empty if the plan states no threshold."""


@dataclass(frozen=True)
class SearchSection:
    """The section: one line, the tree, then rounds and retraces in order."""

    figures: str
    tree: SearchTree | None
    any_cut: bool
    story: list[RoundCard | RetraceLine]


def search_section(trace: Trace) -> SearchSection:
    """The search of a trace, which must have one."""
    search, path = trace.search, set(path_taken(trace.search))
    scales = _scales(search)
    return SearchSection(
        figures=search_summary_line(trace),
        tree=search_tree(search, path),
        any_cut=not all(node.closed for node in search.nodes),
        story=[
            # An older log does not say what was not good enough.
            RetraceLine(retrace_line(entry), "" if entry.rank else _retrace_reason(search))
            if isinstance(entry, Retraced)
            else _round(entry, path, scales, legend)
            for entry, legend in _rounds_and_retraces(trace)
        ],
    )


def path_taken(search: SearchRecord) -> list[int]:
    """The nodes of the chosen path, or of the best so far if the search was stopped."""
    if not search.nodes:
        return []
    kept = [choice.kept[0] for choice in search.choices if choice.kept]
    node: int | None = kept[-1] if kept else 0
    path: list[int] = []
    while node is not None:
        path.insert(0, node)
        node = search.nodes[node].parent
    return path


def stage_heading(stage: Stage | None) -> str:
    """The heading above the text of a stage."""
    return stage.value.capitalize() if stage else "Outside any stage"


def _rounds_and_retraces(trace: Trace) -> Iterator[tuple[Round | Retraced, str]]:
    """The rounds and the retraces in the order in which they happened, with legends of scores."""
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
                    yield ended, progress.new_legend(ended)
            case Retraced():
                yield event, ""
    if progress.round is not None:
        yield progress.round, progress.new_legend(progress.round)


@dataclass(frozen=True)
class _Scale:
    """The scores at which a bar is empty and full."""

    low: float = 0.0
    high: float = 1.0
    threshold: float | None = None

    def share(self, score: float) -> float:
        return 100 * (score - self.low) / (self.high - self.low)


def _scales(search: SearchRecord) -> Mapping[int, _Scale]:
    """The scale of each node's score: 0 to 1, or the range of its step's scores if wider.

    Each step has a scale of its own, because steps may have different judges.
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
            room = (high - low) / 10 or 1.0  # so that the bar of the lowest score is not empty
            low -= room
        scales.update(dict.fromkeys(nodes, _Scale(low, high, limit)))
    return scales


def _round(round: Round, path: set[int], scales: Mapping[int, _Scale], legend: str) -> RoundCard:
    kept = ", ".join(map(str, round.kept))
    notes = [f"kept {kept}" if kept else "stopped here", f"{round.tokens} tokens"]
    if round.identical:
        count = len(round.candidates)
        notes.insert(0, "both wrote the same" if count == 2 else f"all {count} wrote the same")
    cards = [_card(candidate, round, path, scales) for candidate in round.candidates]
    fates = [fate for fate in ("path", "kept", "dropped") if any(c.fate == fate for c in cards)]
    return RoundCard(round.title, notes, cards, fates[0] if round.identical else "", legend)


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
    """The whole text of a candidate, stage by stage."""
    texts = [
        (stage, "".join(text for _, text in group).strip())
        for stage, group in itertools.groupby(candidate.parts, key=lambda part: part[0])
    ]
    return [TextPiece(stage_heading(stage), text) for stage, text in texts if text]


def _retrace_reason(search: SearchRecord) -> str:
    """Why the search went back; empty if the plan states no threshold."""
    retrace = search.plan.get("retrace")
    if not retrace or retrace.get("threshold") is None:
        return ""
    rank = retrace["rank"]
    best = "best" if rank == 1 else f"{_ordinal(rank)} best"
    return f"The {best} {retrace['after']} of all rounds had to score {retrace['threshold']:.2f}."


def _ordinal(number: int) -> str:
    words = {2: "second", 3: "third"}
    return words.get(number, f"{number}th")
