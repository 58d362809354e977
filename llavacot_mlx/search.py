"""The engine that runs a plan: fork, extend, score, keep, and go back.

It computes with `candidates.py`, yields what happens, and prints nothing. An image is encoded once,
a prompt read once, and a generated token computed once, however many candidates and retraces.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace

from .cache import VisionMemory
from .candidates import Ended, Ready, Start, Token, extend
from .events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    Retraced,
    SearchEvent,
)
from .judges import Judge
from .model.mllama import Mllama
from .plans import Plan, Retrace, Step, Unit
from .reader import Reader
from .stages import Stage
from .tokenizer import Tokenizer
from .trace import NodeRecord, SearchRecord, StageRecord, Usage


@dataclass(eq=False)
class Node:
    """One candidate: what it adds to its parent's path."""

    id: int
    parent: Node | None
    key: str
    """Its place in the tree, such as `0/2`; its random numbers depend on it and on the seed."""
    round: int
    ready: Ready
    stages: list[StageRecord] = field(default_factory=list)
    """Those that its path has ended, with its parents' parts."""
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprob: float = 0.0
    """Of its tokens, summed."""
    ended: bool = False
    """Whether nothing can follow it: the turn ended, or the token limit was reached."""
    score: float | None = None
    kept: bool = False
    children: int = 0

    @property
    def stage(self) -> Stage | None:
        """The stage that it ended last; None before any."""
        return self.stages[-1].stage if self.stages else None

    @property
    def closed(self) -> bool:
        """Whether that stage was closed by its tag."""
        return bool(self.stages) and self.stages[-1].closed

    @property
    def conclusion(self) -> str | None:
        """What its path concluded, white space and case aside; None without a conclusion."""
        for record in reversed(self.stages):
            if record.stage is Stage.CONCLUSION:
                return " ".join(record.text.casefold().split())
        return None

    @property
    def depth(self) -> int:
        """How many steps of the plan lie before it."""
        return self.key.count("/")

    @property
    def path_ids(self) -> list[int]:
        """Every generated token from the prompt to this node's last."""
        return (self.parent.path_ids if self.parent else []) + self.token_ids

    def record(self) -> NodeRecord:
        parent = self.parent.id if self.parent and self.parent.parent else None
        return NodeRecord(
            id=self.id,
            parent=parent,
            stage=self.stage,
            text=self.text,
            tokens=len(self.token_ids),
            closed=self.closed,
            score=self.score,
            kept=self.kept,
            round=self.round,
        )


class Search:
    """One search for one answer."""

    def __init__(
        self,
        model: Mllama,
        tokenizer: Tokenizer,
        memory: VisionMemory | None,
        plan: Plan,
        judge: Judge,
        seed: int,
        max_tokens: int,
        usage: Usage,
    ) -> None:
        self._model, self._tokenizer, self._memory = model, tokenizer, memory
        self._plan, self._judge, self._seed = plan, judge, seed
        self._max_tokens, self._usage = max_tokens, usage
        self.nodes: list[Node] = []
        """Every candidate, in the order in which they began."""
        self.retraces = 0
        self._best: Node | None = None

    def run(self, prompt: Ready) -> Iterator[SearchEvent]:
        """Runs the plan, from a prompt that was read."""
        steps, retrace = self._plan.steps, self._plan.retrace
        frontiers = [[Node(-1, None, "", 0, prompt)]]  # what each step goes on from
        pool: list[Node] = []  # of all rounds, at the step that decides about going back
        while len(frontiers) <= len(steps):
            index = len(frontiers) - 1
            candidates = yield from self._extended(frontiers[index], steps[index])
            decides = retrace is not None and index == retrace.after
            if decides or len(candidates) > steps[index].keep:
                yield from self._scored(candidates)
            if decides:
                pool += candidates
                candidates = pool
            kept = best(candidates, steps[index].keep)
            yield CandidatesKept(tuple(node.id for node in kept))
            if decides and retrace is not None and self._goes_back(retrace, kept):
                self.retraces += 1
                del frontiers[retrace.to + 1 :]
                yield Retraced(_next_stage(frontiers[-1][0]), self.retraces)
            else:
                frontiers.append(kept)
        self._best = frontiers[-1][0]

    @property
    def chosen_ids(self) -> list[int]:
        """The generated ids of the chosen path, once `run` is through."""
        assert self._best is not None
        return self._best.path_ids

    @property
    def chosen_stages(self) -> list[StageRecord]:
        """The stages of the chosen path, with the scores and numbers of their candidates."""
        path: list[Node] = []
        node = self._best
        while node is not None and node.parent is not None:
            path.insert(0, node)
            node = node.parent
        records = []
        for node in path:
            assert node.parent is not None
            rivals = sum(other.depth == node.depth for other in self.nodes)
            for record in node.stages[len(node.parent.stages) :]:
                records.append(replace(record, score=node.score, candidates=rivals))
        return records

    def record(self) -> SearchRecord:
        """The whole tree."""
        nodes = tuple(node.record() for node in self.nodes)
        return SearchRecord(self._plan.method, self.retraces, nodes)

    def _extended(
        self, parents: Sequence[Node], step: Step
    ) -> Generator[SearchEvent, None, list[Node]]:
        """Lets the step's candidates write, all together; what has ended stays as it is."""
        going = [parent for parent in parents if not parent.ended]
        ended = [parent for parent in parents if parent.ended]
        new: list[Node] = []
        for place, parent in enumerate(going):
            share = step.candidates // len(going) + (place < step.candidates % len(going))
            new += [self._child(parent) for _ in range(max(1, share))]
        if not new:
            return ended
        readers = [Reader.after(self._tokenizer, node.path_ids) for node in new]
        begins = [len(reader.text) for reader in readers]
        for node, reader in zip(new, readers, strict=True):
            parent_id = node.record().parent
            yield CandidateStarted(node.id, parent_id, reader.next_stage, node.round)

        def ends(token: Token) -> bool:
            reader = readers[token.candidate]
            node = new[token.candidate]
            stages = 0 if node.parent is None else len(node.parent.stages)
            return reader.turn_ended or (step.unit is Unit.STAGE and len(reader.records) > stages)

        starts = [
            Start(node.ready, node.key, self._max_tokens - len(node.path_ids)) for node in new
        ]
        for event in extend(
            self._model,
            self._memory,
            starts,
            self._plan.sampling,
            self._seed,
            ends,
            self._usage,
        ):
            node, reader = new[event.candidate], readers[event.candidate]
            if isinstance(event, Token):
                node.token_ids.append(event.token_id)
                node.logprob += event.logprob
                reader.push(event.token_id)
                yield from _grown(node, reader, begins[event.candidate])
            else:
                assert isinstance(event, Ended)
                node.ready = event.ready
                node.ended = reader.turn_ended or len(node.path_ids) >= self._max_tokens
                if node.ended:
                    reader.finish()
                    yield from _grown(node, reader, begins[event.candidate])
                node.stages = list(reader.records)
                yield CandidateEnded(node.id, node.stage, node.closed, len(node.token_ids))
        return ended + new

    def _child(self, parent: Node) -> Node:
        key = f"{parent.key}/{parent.children}".lstrip("/")
        if self.nodes:  # whatever begins later begins with work that was done already
            self._usage.reused_tokens += parent.ready.branch.length
        parent.children += 1
        node = Node(len(self.nodes), parent, key, self.retraces, parent.ready)
        self.nodes.append(node)
        return node

    def _scored(self, candidates: Sequence[Node]) -> Iterator[SearchEvent]:
        unscored = [node for node in candidates if node.score is None]
        for node, score in zip(unscored, self._judge.scores(unscored), strict=True):
            node.score = score
            yield CandidateScored(node.id, score)

    def _goes_back(self, retrace: Retrace, kept: Sequence[Node]) -> bool:
        last = kept[-1]
        good = last.closed and last.score is not None and last.score >= retrace.threshold
        return not good and self.retraces < retrace.most


def _grown(node: Node, reader: Reader, begin: int) -> Iterator[SearchEvent]:
    """Gives the node the text that the reader has from `begin` on, and tells what is new of it."""
    new = reader.text[begin + len(node.text) :]
    if new:
        node.text += new
        yield CandidateText(node.id, new)


def best(candidates: Sequence[Node], count: int) -> list[Node]:
    """Marks the best as kept and returns them, best first.

    A candidate whose stage never closed comes after all whose did, whatever its score.
    """

    def merit(node: Node) -> tuple[bool, float]:
        return node.closed, -float("inf") if node.score is None else node.score

    kept = sorted(candidates, key=merit, reverse=True)[:count]
    for node in candidates:
        node.kept = node in kept
    return kept


def _next_stage(node: Node) -> Stage | None:
    return Stage.SUMMARY if node.stage is None else node.stage.following
