"""The events of an answer, told again from its record."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from llavacot_mlx.cli.views.search_view import retold
from llavacot_mlx.plan.plan import Plan, Unit
from llavacot_mlx.plan.plan_yaml import plan_from
from llavacot_mlx.prompt.stages import Closed, Stage, StageParser
from llavacot_mlx.trace.events import (
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
from llavacot_mlx.trace.record import NodeRecord, SearchRecord, Trace


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
        judged = self._judged()
        for place, choice in enumerate(record.choices):
            yield from self._written([record.nodes[node] for node in choice.nodes], stopped=False)
            for node in judged[place]:
                yield CandidateScored(node, record.nodes[node].score)
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

    def _judged(self) -> list[list[int]]:
        """By choice, the nodes that a judge was asked about; one without a score got no verdict."""
        choices, nodes = self._record.choices, self._record.nodes
        judged = [
            self._candidates(place) if self._asks(place) else [] for place in range(len(choices))
        ]
        told: set[int] = set()
        for place in range(len(choices)):
            judged[place] = [node for node in judged[place] if node not in told]
            told.update(judged[place])
        for place, choice in enumerate(choices):
            judged[place] += [
                node for node in choice.nodes if node not in told and nodes[node].score is not None
            ]
        return judged

    def _candidates(self, place: int) -> list[int]:
        """What was chosen from: an answer that was at its end has no child, and stands again."""
        choice = self._record.choices[place]
        parents = {self._record.nodes[node].parent for node in choice.nodes}
        ended = [node for node in self._frontier(place) if node not in parents]
        return [*ended, *choice.nodes]

    def _asks(self, place: int) -> bool:
        """Whether the plan asks a judge about that choice's candidates."""
        if self._plan is None:
            return False
        step, retrace = self._record.choices[place].step, self._plan.retrace
        decides = retrace is not None and step == retrace.after
        return decides or len(self._candidates(place)) > self._plan.steps[step].keep

    def _frontier(self, place: int) -> Sequence[int]:
        """The nodes that the choice's candidates went on from; none where it was the prompt."""
        assert self._plan is not None
        step = self._record.choices[place].step
        repeated = self._plan.steps[step].unit is Unit.SENTENCE
        for before in reversed(self._record.choices[:place]):
            if before.step == step - 1 or (before.step == step and repeated):
                return before.kept
        return ()


def _next_stage(path: str) -> Stage | None:
    """The stage that is open after a text, or that should come next; None after the last."""
    parser = StageParser()
    closed = [event.stage for event in parser.feed(path) if isinstance(event, Closed)]
    if parser.stage is not None:
        return parser.stage
    return closed[-1].following if closed else Stage.SUMMARY
