"""The events of an answer, told again from its record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llavacot_mlx.cli.candidates import retold
from llavacot_mlx.events import (
    Answered,
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    Event,
    Interrupted,
    Noticed,
    Retraced,
    SearchEvent,
)
from llavacot_mlx.plan_file import plan_from
from llavacot_mlx.plans import Plan, Unit
from llavacot_mlx.stages import Closed, Stage, StageParser
from llavacot_mlx.trace import ChoiceRecord, NodeRecord, SearchRecord, Trace


def retelling(trace: Trace) -> Iterator[Event]:
    """What a view showed while the answer came, each text in one piece.

    What the person was told about the search comes first, since no record says when it was.
    """
    for notice in trace.search.notices:
        yield Noticed(notice)
    if trace.search.nodes:
        yield from _Search(trace.search).told()
    else:
        yield from retold(trace)
    yield Interrupted(trace) if trace.interrupted else Answered(trace)


def unit_of(trace: Trace) -> Unit:
    """What the candidates of the search wrote in one step, as a view wants to know."""
    return plan_from(trace.search.plan).steps[0].unit if trace.search.plan else Unit.STAGE


class _Search:
    """The tree, walked through once more in the order in which it grew."""

    def __init__(self, record: SearchRecord) -> None:
        self._record = record
        self._plan: Plan | None = plan_from(record.plan) if record.plan else None
        self._paths: dict[int | None, str] = {None: ""}  # the text up to a node's end

    def told(self) -> Iterator[SearchEvent]:
        record = self._record
        for place, choice in enumerate(record.choices):
            nodes = [record.nodes[node] for node in choice.nodes]
            yield from self._written(nodes, stopped=False)
            if self._was_judged(place):
                yield from (CandidateScored(node.id, node.score) for node in nodes)
            yield CandidatesKept(choice.kept)
            after = record.choices[place + 1 : place + 2]
            if choice.back_to is not None or (after and after[0].round > choice.round):
                yield Retraced(choice.back_to, choice.round + 1)
        # Those that were being written or judged when the search was stopped.
        last = record.nodes[sum(len(choice.nodes) for choice in record.choices) :]
        yield from self._written(last, stopped=True)
        yield from (CandidateScored(node.id, node.score) for node in last if node.score is not None)

    def _written(self, nodes: Sequence[NodeRecord], *, stopped: bool) -> Iterator[SearchEvent]:
        for node in nodes:
            stage = _next_stage(self._paths[node.parent])
            yield CandidateStarted(node.id, node.parent, stage, node.round)
        for node in nodes:
            self._paths[node.id] = self._paths[node.parent] + node.text
            if node.text:
                yield CandidateText(node.id, node.text)
            # A node learns its stage when it ends; one that was stopped before has none.
            if not stopped or node.stage is not None:
                yield CandidateEnded(node.id, node.stage, node.closed, node.tokens)

    def _was_judged(self, place: int) -> bool:
        """Whether a judge was asked: then a node without a score is one without a verdict."""
        choice = self._record.choices[place]
        nodes = [self._record.nodes[node] for node in choice.nodes]
        if any(node.score is not None for node in nodes):
            return True
        if self._plan is None:
            return False
        if self._plan.retrace is not None and choice.step == self._plan.retrace.after:
            return True
        # Parents whose answer was at its end have no child, and are candidates once more.
        parents = {node.parent for node in nodes}
        ended = [node for node in self._frontier(place) if node not in parents]
        return len(nodes) + len(ended) > self._plan.steps[choice.step].keep

    def _frontier(self, place: int) -> Sequence[int]:
        """The nodes that the choice's candidates went on from; none where it was the prompt."""
        choice = self._record.choices[place]
        for before in reversed(self._record.choices[:place]):
            if self._precedes(before, choice):
                return before.kept
        return ()

    def _precedes(self, before: ChoiceRecord, choice: ChoiceRecord) -> bool:
        assert self._plan is not None
        if before.step == choice.step:
            return self._plan.steps[choice.step].unit is Unit.SENTENCE
        return before.step == choice.step - 1


def _next_stage(path: str) -> Stage | None:
    """The stage that is open after a text, or that should come next; None after the last."""
    parser = StageParser()
    closed = [event.stage for event in parser.feed(path) if isinstance(event, Closed)]
    if parser.stage is not None:
        return parser.stage
    return closed[-1].following if closed else Stage.SUMMARY
