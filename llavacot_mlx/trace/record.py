"""The record of one answer, as `--json` prints it."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from llavacot_mlx.checked import KeyRules, checked, named
from llavacot_mlx.errors import UserError
from llavacot_mlx.plan.plan import MAX_CANDIDATES
from llavacot_mlx.plan.plan_yaml import plan_from_dict, plan_to_dict
from llavacot_mlx.prompt.stages import (
    Closed,
    Stage,
    StageParser,
    StageRecord,
    conclusion_among,
)
from llavacot_mlx.trace.event_log import EventLog, event_from_dict, event_to_dict, stage_events
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    FreeText,
    LoggedEvent,
    Noticed,
    Retraced,
    StageEnded,
    StageStarted,
    StageText,
)
from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.usage import Timings, Usage

RULES = KeyRules(
    unknown="; a newer llavacot may have written it",
    missing="; an older llavacot may have written it",
    defaults=False,
)
"""How the keys of an object that this program wrote are checked."""


@dataclass(frozen=True)
class NodeRecord:
    """One candidate of a search."""

    id: int
    parent: int | None
    """The candidate that it continues; None for the prompt."""
    stage: Stage | None
    """The stage that it wrote last; None where it opened none."""
    text: str
    """Its text, tags included."""
    tokens: int
    closed: bool
    """False when it was cut off: its stage's closing tag, or its sentence's end, never came."""
    score: float | None
    kept: bool
    round: int
    """Number of retraces before it was written."""
    finish: Finish | None = None
    """Why its path ends with it; None where something could follow, and in older traces."""


@dataclass(frozen=True)
class ChoiceRecord:
    """A round of candidates, and those of it and of earlier rounds that were kept."""

    step: int
    """Index of the plan's step."""
    round: int
    nodes: tuple[int, ...]
    """The candidates of this round; empty if everything that they could continue had ended."""
    kept: tuple[int, ...]
    """The kept candidates, best first."""
    back_to: Stage | None = None
    """The stage that the search went back to; None where it did not."""


@dataclass(frozen=True)
class SearchRecord:
    """How the answer was found: the method, its plan, and the tree of candidates."""

    method: str
    retraces: int = 0
    nodes: tuple[NodeRecord, ...] = ()
    """The tree, one node per candidate; empty for methods that follow a single path."""
    choices: tuple[ChoiceRecord, ...] = ()
    """The choices, in order."""
    plan: dict[str, Any] = field(default_factory=dict)
    """The plan with all its numbers, in the form of a plan file (`plan_yaml.py`)."""
    notices: tuple[str, ...] = ()
    """Notices for the user, such as that a judge came to no verdict."""


@dataclass(frozen=True)
class Trace:
    """One question, its answer, and what the answer took in tokens, time and memory."""

    question: str
    image: str | None
    model: str
    seed: int
    stages: tuple[StageRecord, ...]
    text: str
    """The generated text, with tags and without the end-of-turn token."""
    prompt_token_ids: tuple[int, ...]
    token_ids: tuple[int, ...]
    """The generated ids, with the end-of-turn token if it came."""
    search: SearchRecord
    adapter: str | None = None
    """The folder of the model's adapter; None without one."""
    max_tokens: int = 0
    """Maximum number of tokens of one path."""
    kv_bits: int | None = None
    """Bits to which keys and values were quantized; None if they were not."""
    repetition_stop: bool = True
    """Whether a path that only repeated itself was stopped."""
    finish: Finish | None = None
    """Why the answer ended. None in a trace of a version that did not record it, whose stages are
    those of the exact tags."""
    interrupted: bool = False
    """Whether the answer was stopped early; the stages are then those of the best path so far."""
    asked_at: str = ""
    """When the question was asked: local time with its offset, as ISO 8601 has it. Empty in a trace
    of a version that did not record it."""
    usage: Usage = field(default_factory=Usage)
    timings: Timings = field(default_factory=Timings)
    peak_memory_bytes: int = 0
    events: tuple[LoggedEvent, ...] = ()
    """The events in order, as `event_log.EventLog` joins them. Empty if `from_dict` read an object
    without a log; `file.parse_trace` makes one for such a trace."""

    @property
    def answer(self) -> str | None:
        """The text of the conclusion, see `stages.conclusion_among`; None when there is none."""
        found = conclusion_among(self.stages)
        return None if found is None else found.text.strip()

    @property
    def answer_note(self) -> str:
        """How the answer was found, where it does not stand as trained; empty otherwise."""
        found = conclusion_among(self.stages)
        if found is None:
            return ""
        count = sum(record.stage is Stage.CONCLUSION for record in self.stages)
        several = f"the last whole one of {count} conclusions" if count > 1 else ""
        return "; ".join(filter(None, (found.note, several)))

    def stage_events(self) -> Iterator[StageStarted | StageText | StageEnded | FreeText]:
        """The events of the answer's stages, each piece of text whole."""
        return stage_events(self.text, self.stages, exact=self.finish is None)

    @property
    def well_formed(self) -> bool:
        """Whether each of the four stages is there once, in order, closed, and not empty."""
        return [record.stage for record in self.stages] == list(Stage) and all(
            record.closed and record.text.strip() for record in self.stages
        )

    def to_dict(self) -> dict[str, Any]:
        """Returns the object that `--json` prints, with `answer` after `seed` and without a log."""
        plain = dataclasses.asdict(dataclasses.replace(self, events=()))
        del plain["events"]
        head = {key: plain.pop(key) for key in ("question", "image", "model", "seed")}
        head |= {"answer": self.answer, "answer_note": self.answer_note}
        return {**head, **plain}

    def to_dict_with_log(self) -> dict[str, Any]:
        """Returns the object that a trace file holds: that of `to_dict`, and the event log."""
        return {**self.to_dict(), "events": [event_to_dict(event) for event in self.events]}

    def to_json(self) -> str:
        return json.dumps(self.to_dict(), ensure_ascii=False)

    @classmethod
    def from_dict(cls, value: Any) -> Trace:
        """Makes a trace from what `to_dict` or `to_dict_with_log` returned, read back from JSON.

        Raises UserError that names a key that is missing, unknown, of the wrong type, or in
        contradiction to another.
        """
        if not isinstance(value, dict) or not {"question", "stages", "search"} <= value.keys():
            raise UserError("not a trace: it has no question, stages and search")
        _check_size(value)
        derived = ("answer", "answer_note", "events")
        rest = _completed({key: part for key, part in value.items() if key not in derived})
        trace = checked(cls, {**rest, "events": []}, RULES)
        log = checked(tuple[Any, ...], value.get("events", []), RULES, "events")
        events = (event_from_dict(each, RULES, f"events[{n}]") for n, each in enumerate(log))
        trace = dataclasses.replace(trace, events=tuple(events))
        conclusions = [r.text.strip() for r in trace.stages if r.stage is Stage.CONCLUSION]
        before = conclusions[-1] if conclusions else None  # the rule of older versions
        if value.get("answer") != (before if trace.finish is None else trace.answer):
            raise UserError("answer: not the conclusion among stages")
        _check_stages(trace)
        trace = dataclasses.replace(trace, search=_with_whole_plan(trace.search))
        _check_tree(trace.search)
        if trace.events:
            _check_log(trace)
        return trace


_MAX_NODES = 30_000  # 58 retraces of 256 captions and 256 reasonings
_MAX_EVENTS = 8 * _MAX_NODES
_MAX_CHARACTERS = 2_000_000  # of an answer: 131,072 tokens are a third of it


def _check_size(value: dict[str, Any]) -> None:
    """Raises UserError for more than any search makes, which would take minutes to show."""
    search = value["search"]
    nodes = search.get("nodes") if isinstance(search, dict) else None
    choices = search.get("choices") if isinstance(search, dict) else None
    for name, found, most in (
        ("search.nodes", nodes, _MAX_NODES),
        ("search.choices", choices, _MAX_NODES),
        ("events", value.get("events"), _MAX_EVENTS),
        ("stages", value["stages"], _MAX_NODES),
    ):
        if isinstance(found, list) and len(found) > most:
            raise UserError(f"{name}: {len(found)} of them, and {most} are the most")
    if isinstance(choices, list):
        chosen = [each.get("nodes") for each in choices if isinstance(each, dict)]
        rounds = [len(each) for each in chosen if isinstance(each, list)]
        rounds.append(len(nodes) - sum(rounds) if isinstance(nodes, list) else 0)
        if max(rounds) > MAX_CANDIDATES:
            raise UserError(
                f"search.choices: a round of {max(rounds)} candidates, and {MAX_CANDIDATES} are "
                "the most"
            )
    text = value.get("text")
    if isinstance(text, str) and len(text) > _MAX_CHARACTERS:
        raise UserError(f"text: {len(text)} characters, and {_MAX_CHARACTERS} are the most")


def _completed(value: dict[str, Any]) -> dict[str, Any]:
    """The object of a trace, with what older versions did not write."""

    def with_key(objects: Any, key: str, default: Any) -> Any:
        if not isinstance(objects, list):
            return objects
        return [{key: default, **each} if isinstance(each, dict) else each for each in objects]

    later = {"adapter": None, "finish": None, "asked_at": ""}
    value = {**later, "repetition_stop": "finish" in value, **value}
    value["stages"] = with_key(value["stages"], "note", "")
    search = value["search"]
    if isinstance(search, dict) and "nodes" in search:
        value["search"] = {**search, "nodes": with_key(search["nodes"], "finish", None)}
    if isinstance(usage := value.get("usage"), dict):
        uncounted = dict.fromkeys(("forward_passes", "drafted_tokens", "accepted_tokens"), 0)
        value["usage"] = {**uncounted, **usage}
    return value


def _check_stages(trace: Trace) -> None:
    """Raises UserError if the stages differ from those that the tags in the text say."""
    parser = StageParser(exact=trace.finish is None)
    ended, rest = (
        [(event.stage, event.by_tag) for event in events if isinstance(event, Closed)]
        for events in (parser.feed(trace.text), parser.finish())
    )
    recorded = [(record.stage, record.closed) for record in trace.stages]
    if recorded != ended + rest and not (trace.interrupted and recorded == ended):
        raise UserError("stages: not those that the tags in text say")


def _with_whole_plan(search: SearchRecord) -> SearchRecord:
    """The search with all numbers in its plan, also those that a plan may leave out.

    Raises UserError for a plan that is none. A trace may have an empty one.
    """
    if not search.plan:
        return search
    with named("search.plan"):
        plan = plan_to_dict(plan_from_dict(search.plan))
    return dataclasses.replace(search, plan=plan)


def _check_tree(search: SearchRecord) -> None:
    """Raises UserError if candidates, choices and plan contradict each other."""
    steps = len(search.plan["steps"]) if search.plan else None
    for index, node in enumerate(search.nodes):
        where = f"search.nodes[{index}]"
        if node.id != index:
            raise UserError(f"{where}.id: {node.id}, but nodes are numbered from 0 in their order")
        if node.parent is not None and not 0 <= node.parent < index:
            raise UserError(f"{where}.parent: {node.parent} is not an earlier node")
    count = 0  # number of nodes in the choices so far
    for index, choice in enumerate(search.choices):
        where = f"search.choices[{index}]"
        if choice.step < 0 or (steps is not None and choice.step >= steps):
            raise UserError(f"{where}.step: {choice.step} is not a step of the plan")
        if choice.nodes != tuple(range(count, count + len(choice.nodes))):
            raise UserError(f"{where}.nodes: not the next ones after those of the choices before")
        count += len(choice.nodes)
        if count > len(search.nodes):
            raise UserError(f"{where}.nodes: {choice.nodes[-1]} does not exist")
        for kept in choice.kept:
            if not 0 <= kept < count:
                raise UserError(f"{where}.kept: {kept} is not a node of this or an earlier round")


def _check_log(trace: Trace) -> None:
    """Raises UserError if the log differs from the record."""
    _check_candidate_order(trace)
    _check_log_of_search(trace)
    if not trace.search.nodes:
        _check_log_of_stages(trace)


def _check_candidate_order(trace: Trace) -> None:
    """Raises UserError if candidates start out of order, or are named before they start."""
    nodes = trace.search.nodes
    started = 0
    for index, event in enumerate(trace.events):
        where = f"events[{index}]"
        match event:
            case CandidateStarted(node, parent):
                if node != started or node >= len(nodes) or parent != nodes[node].parent:
                    raise UserError(f"{where}: not the next candidate of search.nodes")
                started += 1
                continue
            case CandidateText(node) | CandidateEnded(node) | CandidateScored(node):
                named: tuple[int, ...] = (node,)
            case CandidatesKept(named):
                pass
            case _:
                continue
        for node in named:
            if not 0 <= node < started:
                raise UserError(f"{where}: candidate {node} has not started")
    if started < len(nodes) and not trace.interrupted:
        raise UserError(f"events: {started} of the {len(nodes)} candidates of search.nodes")


def _check_log_of_search(trace: Trace) -> None:
    """Raises UserError if the log of a search differs from its record.

    The engine changes the record before it reports, so the log of an interrupted answer may lack
    the last of what the record has.
    """

    def differ(logged: Sequence[Any], recorded: Sequence[Any]) -> bool:
        return logged != (recorded[: len(logged)] if trace.interrupted else recorded)

    search = trace.search
    texts: list[list[str]] = [[] for _ in search.nodes]
    ends: list[list[tuple[Stage | None, bool, int, Finish | None]]] = [[] for _ in search.nodes]
    scores: dict[int, float | None] = {}
    kept: list[tuple[int, ...]] = []
    retraces: list[int] = []
    notices: list[str] = []
    for event in trace.events:
        match event:
            case CandidateText(node, text):
                texts[node].append(text)
            case CandidateEnded(node, stage, closed, tokens, finish):
                ends[node].append((stage, closed, tokens, finish))
            case CandidateScored(node, score):
                scores[node] = score  # a candidate without a verdict may be judged again
            case CandidatesKept(nodes):
                kept.append(nodes)
            case Retraced(round=number):
                retraces.append(number)
            case Noticed(text):
                notices.append(text)
    for record, written, end in zip(search.nodes, texts, ends, strict=True):
        where = f"search.nodes[{record.id}]"
        if differ("".join(written), record.text):
            raise UserError(f"events: not the text of {where}")
        if differ(end, [(record.stage, record.closed, record.tokens, record.finish)]):
            raise UserError(f"events: not the end of {where}")
        last_score = scores.get(record.id)
        if last_score != record.score and not (trace.interrupted and last_score is None):
            raise UserError(f"events: not the score of {where}")
    if differ(kept, [choice.kept for choice in search.choices]):
        raise UserError("events: not the choices of search.choices")
    if differ(retraces, list(range(1, search.retraces + 1))):
        raise UserError("events: not the retraces of search.retraces")
    if differ(notices, list(search.notices)):
        raise UserError("events: not the notices of search.notices")


def _check_log_of_stages(trace: Trace) -> None:
    """Raises UserError if the stages of a single path differ from those of the record."""
    ended = [(event.stage, event.closed) for event in trace.events if isinstance(event, StageEnded)]
    stages = [(record.stage, record.closed) for record in trace.stages]
    if ended != (stages[: len(ended)] if trace.interrupted else stages):
        raise UserError("events: not the stages of this trace")
    if not trace.interrupted and _single_path_events(trace.events) != _single_path_events(
        trace.stage_events()
    ):
        raise UserError("events: not the text of this trace")


def _single_path_events(events: Iterable[LoggedEvent]) -> tuple[LoggedEvent, ...]:
    """Returns the events of a single path, with their texts joined across other events."""
    log = EventLog()
    for event in events:
        if isinstance(event, StageStarted | StageText | StageEnded | FreeText):
            log.add(event)
    return log.events
