"""A search as its events build it up, round by round: what the views draw."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from llavacot_mlx.cli.printable import printable_line
from llavacot_mlx.plan.plan import LOGPROB, MAJORITY, PAIRWISE, SELF, Unit
from llavacot_mlx.plan.plan_yaml import plan_from_dict
from llavacot_mlx.prompt.stages import (
    Opened,
    Stage,
    StageEvent,
    StageParser,
    StageRecord,
    Text,
    conclusion_among,
)
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    Retraced,
)
from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.trace.record import Trace

T = TypeVar("T")

_PLURALS = {
    Stage.SUMMARY: "summaries",
    Stage.CAPTION: "captions",
    Stage.REASONING: "reasonings",
    Stage.CONCLUSION: "conclusions",
}


_MEANINGS = {
    SELF: "the model's own probability that the text is right, 0 to 1",
    LOGPROB: "mean log-probability of its tokens, at most 0",
    PAIRWISE: "share of the comparisons that it won, 0 to 1",
    MAJORITY: "share of the candidates with the same conclusion, 0 to 1",
}


@dataclass
class CandidateProgress:
    """One candidate as far as it has come; its text is without the tags."""

    number: int
    """Counted from 1 over the whole search, so that later rounds can refer to it."""
    parent: int | None = None
    """The number of the candidate that it continues; None for the prompt."""
    parts: list[tuple[Stage | None, str]] = field(default_factory=list)
    ended: bool = False
    closed: bool = False
    tokens: int = 0
    score: float | None = None
    scored: bool = False
    """Whether the judge was asked; `score` is None when it came to no verdict."""
    judge: str = ""
    """The judge that was asked; empty if none was, and in traces of older versions."""
    kept: bool = False
    left_open: Stage | None = None
    """The stage that was open when it ended; its children's text begins in that stage."""
    finish: Finish | None = None
    """Why its path ended with it."""
    _records: list[StageRecord] = field(default_factory=list)
    _open_text: list[str] = field(default_factory=list)
    _parser: StageParser = field(default_factory=StageParser)

    def start_in(self, stage: Stage | None) -> None:
        """Says that the parent left `stage` open."""
        self._parser.stage = stage

    def write(self, text: str) -> None:
        self._read(self._parser.feed(text))

    def end(self) -> None:
        self.ended = True
        self.left_open = self._parser.stage
        self._read(self._parser.finish())

    def _read(self, events: list[StageEvent]) -> None:
        for event in events:
            if isinstance(event, Opened):
                self._open_text = []
            elif isinstance(event, Text):
                self.parts.append((event.stage, event.text))
                self._open_text.append(event.text)
            else:
                text = "".join(self._open_text).strip()
                self._records.append(StageRecord(event.stage, text, event.by_tag, tokens=0))

    @property
    def text(self) -> str:
        """All that it wrote, in one printable line."""
        return printable_line(" ".join(text for _, text in self._stage_texts()))

    @property
    def newest(self) -> tuple[Stage | None, str]:
        """The stage that it is writing, and the text of that stage in one printable line."""
        stage, text = list(self._stage_texts())[-1] if self.parts else (None, "")
        return stage, printable_line(text)

    @property
    def conclusion(self) -> str:
        """What it concluded so far, in one printable line; empty without a conclusion."""
        records = list(self._records)
        if self._parser.stage is Stage.CONCLUSION:
            written = "".join(self._open_text)
            records.append(StageRecord(Stage.CONCLUSION, written.strip(), closed=False, tokens=0))
        found = conclusion_among(records)
        return printable_line(found.text) if found is not None else ""

    @property
    def verdict(self) -> str:
        """Its score as shown: a dash if the judge came to no verdict, empty if none was asked."""
        if not self.scored:
            return ""
        return "–" if self.score is None else f"{self.score:.2f}"

    def _stage_texts(self) -> Iterator[tuple[Stage | None, str]]:
        """The text of each stage in one piece."""
        stage: Stage | None = None
        pieces: list[str] = []
        for at, piece in self.parts:
            if at is not stage and pieces:
                yield stage, "".join(pieces)
                pieces = []
            stage = at
            pieces.append(piece)
        if pieces:
            yield stage, "".join(pieces)


@dataclass
class Round:
    """Candidates that are written and judged together, and that the search then chooses from."""

    stage: Stage | None
    """The stage that they write; None for whole answers and after the last stage."""
    unit: Unit
    number: int
    """Counted from 1; every retrace adds one."""
    candidates: list[CandidateProgress] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)
    """The numbers of the candidates kept, the best first; they may be of earlier rounds."""
    changes: int = 0
    """Increases whenever there is something new to draw."""
    _known: dict[str, Any] = field(default_factory=dict, repr=False)
    """What was computed from all candidates; each of them asks for it."""
    _known_at: tuple[int, int] = (0, 0)

    @property
    def title(self) -> str:
        """Such as `Caption · 4 candidates · round 2`."""
        count = len(self.candidates)
        parts = [self._noun.capitalize(), f"{count} candidate{'s' if count != 1 else ''}"]
        if self.unit is Unit.SENTENCE and self.stage is not None:
            parts.insert(0, self.stage.value.capitalize())
        if self.unit is Unit.ANSWER and self.ended:
            parts.append("their conclusions")
        if self.number > 1:
            parts.append(f"round {self.number}")
        return " · ".join(parts)

    @property
    def writing(self) -> str:
        """What is being written, such as `4 captions`."""
        count = len(self.candidates)
        return f"the {self._noun}" if count == 1 else f"{count} {plural(self.stage, self.unit)}"

    @property
    def ended(self) -> bool:
        return all(candidate.ended for candidate in self.candidates)

    @property
    def identical(self) -> bool:
        """Whether all candidates have ended and wrote the same; False if there is only one."""
        return self._once("identical", self._are_identical)

    def _are_identical(self) -> bool:
        if len(self.candidates) < 2 or not self.ended:
            return False
        return len({candidate.text for candidate in self.candidates}) == 1

    @property
    def identical_text(self) -> str:
        """One line for all candidates that wrote the same."""
        count = len(self.candidates)
        who = "both" if count == 2 else f"all {count}"
        return f"{who} wrote the same: {self.gist(self.candidates[0])}"

    @property
    def forked(self) -> bool:
        """Whether the candidates continue different parents."""
        parents = self._once("parents", lambda: {each.parent for each in self.candidates})
        return len(parents) > 1

    @property
    def kept_from_before(self) -> list[int]:
        """The numbers of the candidates kept that were written in earlier rounds."""
        own = {candidate.number for candidate in self.candidates}
        return [number for number in self.kept if number not in own]

    @property
    def tokens(self) -> int:
        return sum(candidate.tokens for candidate in self.candidates)

    def gist(self, candidate: CandidateProgress) -> str:
        """One line for an ended candidate: its text, or the conclusion of a whole answer.

        Of an answer without a conclusion, the stage that it came to.
        """
        if self.unit is not Unit.ANSWER:
            return candidate.text
        if candidate.conclusion:
            return candidate.conclusion
        stage, newest = candidate.newest
        return f"no conclusion; {stage}: {newest}" if stage else f"no conclusion; {newest}"

    def distinct_gist(self, candidate: CandidateProgress) -> str:
        """The gist from the word where those of this round differ: for where space is short."""
        shared = self._once("shared", self._shared_length)
        gist = self.gist(candidate)
        return f"…{gist[shared:]}" if shared else gist

    def _once(self, name: str, compute: Callable[[], T]) -> T:
        """The value of `compute`, kept until a candidate changes or starts."""
        now = (self.changes, len(self.candidates))
        if self._known_at != now:
            self._known, self._known_at = {}, now
        if name not in self._known:
            self._known[name] = compute()
        found: T = self._known[name]
        return found

    def _shared_length(self) -> int:
        """The number of characters with which all gists begin, up to a word's end."""
        if len(self.candidates) < 2 or not self.ended:
            return 0
        gists = [self.gist(candidate) for candidate in self.candidates]
        # What the first and the last in sorted order share, all of them share.
        pairs = zip(min(gists), max(gists), strict=False)
        same = itertools.takewhile(lambda pair: pair[0] == pair[1], pairs)
        return "".join(letter for letter, _ in same).rfind(" ") + 1

    @property
    def _noun(self) -> str:
        if self.unit is not Unit.STAGE:
            return self.unit.value
        return self.stage.value if self.stage else "text"


class SearchProgress:
    """Builds up the rounds of a search from its events."""

    def __init__(self, unit: Unit) -> None:
        self._unit = unit
        self._candidates: dict[int, CandidateProgress] = {}
        self.round: Round | None = None
        """The round that is being written or judged; None between two rounds."""
        self._notices: list[str] = []
        self._explained: set[str] = set()  # judges whose scores were explained

    @property
    def started(self) -> bool:
        """Whether the answer is searched for: a candidate has started."""
        return bool(self._candidates)

    def holds(self, notice: str) -> bool:
        """Keeps a notice that comes between two rounds; returns whether it did.

        It belongs before the next round, or under the answer if none follows.
        """
        held = self.started and self.round is None
        if held:
            self._notices.append(notice)
        return held

    def release_notices(self) -> list[str]:
        """Returns the notices that were kept, and forgets them."""
        notices, self._notices = self._notices, []
        return notices

    def start_candidate(self, event: CandidateStarted) -> Round:
        """Adds a candidate, and returns its round."""
        if self.round is None:
            stage = None if self._unit is Unit.ANSWER else event.stage
            self.round = Round(stage, self._unit, event.round + 1)
        candidate = CandidateProgress(
            event.node + 1, None if event.parent is None else event.parent + 1
        )
        parent = None if event.parent is None else self._candidates.get(event.parent)
        if parent is not None:
            candidate.start_in(parent.left_open)
        self._candidates[event.node] = candidate
        self.round.candidates.append(candidate)
        self.round.changes += 1
        return self.round

    def update_candidate(self, event: CandidateText | CandidateEnded | CandidateScored) -> None:
        candidate = self._candidates[event.node]
        match event:
            case CandidateText(text=text):
                candidate.write(text)
            case CandidateEnded(closed=closed, tokens=tokens, finish=finish):
                candidate.closed, candidate.tokens = closed, tokens
                candidate.finish = finish
                candidate.end()
            case CandidateScored(score=score, judge=judge):
                candidate.score, candidate.scored, candidate.judge = score, True, judge
        if self.round is not None:
            self.round.changes += 1

    def new_legend(self, round: Round) -> str:
        """Returns what the scores of a round are, the first time that its judge gives any."""
        judges = {candidate.judge: None for candidate in round.candidates if candidate.judge}
        new = [judge for judge in judges if judge not in self._explained]
        self._explained.update(new)
        return "; ".join(map(_legend, new))

    def end_round(self, event: CandidatesKept) -> Round | None:
        """Returns the round that ends with this choice; None if nothing was written in it."""
        ended, self.round = self.round, None
        if ended is not None:
            for candidate in ended.candidates:
                candidate.kept = candidate.number - 1 in event.nodes
            ended.kept = [node + 1 for node in event.nodes]
        return ended


def plural(stage: Stage | None, unit: Unit = Unit.STAGE) -> str:
    """What several candidates are called, such as `captions`."""
    if unit is not Unit.STAGE:
        return f"{unit.value}s"
    return _PLURALS[stage] if stage else "texts"


def _legend(judge: str) -> str:
    """What a judge's scores are, such as `scores by self: … , 0 to 1`."""
    meaning = _MEANINGS.get(judge, "higher is better")
    return f"scores by {printable_line(Path(judge).name)}: {meaning}"


def retrace_line(event: Retraced) -> str:
    """Returns one line about a retrace: `second best reasoning 0.17, needs 0.85: back to …`."""
    target = "beginning" if event.stage is None else plural(event.stage)
    return f"↩ {_shortfall(event)}: back to the {target}, round {event.round + 1}"


def _shortfall(event: Retraced) -> str:
    """What was not good enough, with its score and the one that it needed."""
    if event.after is None or event.rank is None or event.threshold is None:
        return "not good enough"  # an older log does not say more
    ordinals = {1: "", 2: "second ", 3: "third "}
    which = f"{ordinals.get(event.rank, f'{event.rank}th ')}best {event.after.value}"
    if event.cut_off:
        return f"{which} was cut off"
    score = "has no score" if event.score is None else f"{event.score:.2f}"
    return f"{which} {score}, needs {event.threshold:.2f}"


def unit_of(trace: Trace) -> Unit:
    """What each candidate of the search wrote in one step."""
    return plan_from_dict(trace.search.plan).steps[0].unit if trace.search.plan else Unit.STAGE
