"""The engine that runs a plan: expand, decode, score, keep, and retrace.

It decodes with `generate/batch_decode.py`, reports by yielding events, and prints nothing. However
many candidates and retraces there are, the image is encoded once, the prompt is read once, and each
generated token is computed once.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import replace

from llavacot_mlx.generate.batch_decode import Ended, Token, decode_batch
from llavacot_mlx.generate.decode_state import CandidateStart, DecodeState
from llavacot_mlx.generate.repetition import RepetitionDetector
from llavacot_mlx.generate.waiting import Waiting
from llavacot_mlx.plan.plan import Plan, Retrace, Step, Unit
from llavacot_mlx.plan.plan_yaml import plan_to_dict
from llavacot_mlx.prompt.stages import Stage, StageRecord, ends_sentence
from llavacot_mlx.search.context import SearchContext
from llavacot_mlx.search.judges.base import Judge, JudgeError
from llavacot_mlx.search.node import Node
from llavacot_mlx.trace.events import (
    CandidateEnded,
    CandidateScored,
    CandidatesKept,
    CandidateStarted,
    CandidateText,
    Noticed,
    Retraced,
    SearchEvent,
)
from llavacot_mlx.trace.finish import Finish
from llavacot_mlx.trace.record import ChoiceRecord, SearchRecord
from llavacot_mlx.trace.stage_reader import StageReader

_ALL_ALIKE = (
    "all candidates alike: the last round wrote nothing new, so the search does not go back again; "
    "a higher --temperature may help, and greedy does as well"
)


class Search:
    """Searches for one answer, and keeps the tree of all candidates."""

    def __init__(
        self,
        context: SearchContext,
        plan: Plan,
        judges: Mapping[str, Judge],
        seed: int,
        max_tokens: int,
        *,
        repetition_stop: bool = True,
    ) -> None:
        """`judges` holds a judge for each name in the plan; `max_tokens` limits a whole path."""
        self._context, self._plan, self._judges = context, plan, judges
        self._seed, self._max_tokens = seed, max_tokens
        self._repetition_stop = repetition_stop
        self.nodes: list[Node] = []
        """All candidates, in the order in which they started."""
        self.retraces = 0
        self._choices: list[ChoiceRecord] = []
        self._notices: list[str] = []
        self._root: Node
        self._best: Node | None = None  # from the last choice; before any, the first candidate

    def run(self, prompt: DecodeState) -> Iterator[SearchEvent | Waiting]:
        """Runs the plan from a prefilled prompt.

        Where the context has a shared decoder, Waiting is yielded before each of its passes.
        Raises UserError when K/V would exceed the budget.
        """
        # Step i extends frontiers[i], and what it keeps becomes frontiers[i + 1]. In swires:
        #
        #   [0] prompt -> [1] summary -> [2] captions -> [3] reasonings -> [4] conclusion
        #                     ^                              ^ the best of the pool, of all rounds
        #                     +-- retrace, where those are not good enough: drops [2]
        steps, retrace = self._plan.steps, self._plan.retrace
        self._root = Node(id=-1, parent=None, key="", step=-1, round=0, state=prompt)
        frontiers = [[self._root]]
        pool: list[Node] = []
        while len(frontiers) <= len(steps):
            index = len(frontiers) - 1
            step = steps[index]
            kept = frontiers[index]
            decides = retrace is not None and index == retrace.after
            wrote_new = False
            while True:
                candidates = yield from self._expand(kept, index)
                if decides or len(candidates) > step.keep:
                    yield from self._score(candidates, step)
                if decides:
                    wrote_new |= not _paths(candidates) <= _paths(pool)
                    pool += [node for node in candidates if node not in pool]
                    candidates = pool
                kept = keep_best(candidates, step.keep)
                if step.unit is not Unit.SENTENCE or all(node.ended for node in kept):
                    break
                yield from self._record_choice(candidates, kept, index)
            if retrace is None or not self._falls_short(retrace, index, pool, frontiers):
                yield from self._record_choice(candidates, kept, index)
                frontiers.append(kept)
            elif not wrote_new or not self._may_write_new(retrace):
                yield from self._record_choice(candidates, kept, index)
                yield from self._notice(_ALL_ALIKE)
                frontiers.append(kept)
            else:
                for node in itertools.chain(*frontiers[retrace.to + 1 :]):
                    node.state = None  # nodes in the pool hold the segments that they share with it
                del frontiers[retrace.to + 1 :]
                back_to = _next_stage(frontiers[-1][0])
                yield from self._record_choice(candidates, kept, index, back_to)
                self.retraces += 1
                yield self._retraced(retrace, pool, back_to)

    @property
    def best_ids(self) -> list[int]:
        """Returns the token ids of the chosen path; before the end, of the best path so far."""
        return self._best.path_ids if self._best is not None else []

    @property
    def finish(self) -> Finish:
        """Why the chosen path ends where it does."""
        finish = self._best.finish if self._best is not None else None
        return Finish.INTERRUPTED if finish is None else finish

    @property
    def best_stages(self) -> list[StageRecord]:
        """Returns the chosen path's ended stages, with their scores and numbers of candidates."""
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
        """Returns the tree as it is now."""
        return SearchRecord(
            method=self._plan.method,
            retraces=self.retraces,
            nodes=tuple(node.record() for node in self.nodes),
            choices=tuple(self._choices),
            plan=plan_to_dict(self._plan),
            notices=tuple(self._notices),
        )

    def _expand(
        self, parents: Sequence[Node], step_index: int
    ) -> Generator[SearchEvent | Waiting, None, list[Node]]:
        """Decodes the step's candidates together; ended parents are returned unchanged."""
        step = self._plan.steps[step_index]
        sampling = self._plan.sampling_for(step)
        unfinished = [parent for parent in parents if not parent.ended]
        ended = [parent for parent in parents if parent.ended]
        count = step.candidates
        if sampling.temperature == 0 and count > len(unfinished) > 0:
            count = len(unfinished)
            yield from self._notice(
                "at temperature 0 all candidates would write the same: each is written once"
            )
        new: list[Node] = []
        for number, parent in enumerate(unfinished):
            children = count // len(unfinished) + (number < count % len(unfinished))
            new += [self._add_child(parent, step_index) for _ in range(max(1, children))]
        if not new:
            return ended
        if self._best is None:
            self._best = new[0]
        self._reserve_prefixes()
        yield from self._decode_nodes(new, step)
        return ended + new

    def _decode_nodes(self, new: Sequence[Node], step: Step) -> Iterator[SearchEvent | Waiting]:
        """Decodes the new nodes together until each one has the unit that the step asks for."""
        context = self._context
        readers = [StageReader.after(context.tokenizer, node.path_ids) for node in new]
        begins = [len(reader.text) for reader in readers]
        detectors = [_detector_after(node.path_ids) for node in new]
        for node, reader in zip(new, readers, strict=True):
            yield CandidateStarted(node.id, node.parent_id, reader.next_stage, node.round)

        def complete(index: int) -> bool:
            node, reader = new[index], readers[index]
            if reader.turn_ended or (self._repetition_stop and detectors[index].repeating):
                return True
            if step.unit is Unit.STAGE:
                assert node.parent is not None
                return len(reader.records) > len(node.parent.stages)
            if step.unit is Unit.SENTENCE:
                return reader.open_stage is not None and ends_sentence(node.text)
            return False

        starts = [_candidate_start(node, step, self._max_tokens) for node in new]
        sampling = self._plan.sampling_for(step)
        for event in decode_batch(
            context, starts, sampling, self._seed, lambda token: complete(token.candidate)
        ):
            if isinstance(event, Waiting):
                yield event
                continue
            index = event.candidate
            node, reader = new[index], readers[index]
            if isinstance(event, Token):
                node.token_ids.append(event.token_id)
                node.logprob += event.logprob
                reader.push(event.token_id)
                detectors[index].push(event.token_id)
                yield from _append_text(node, reader, begins[index])
            else:
                assert isinstance(event, Ended)
                path = event.state.path.quantized(context.kv_budget.bits)
                node.state = DecodeState(path, event.state.logits)
                full = len(node.path_ids) >= self._max_tokens
                node.repeats = detectors[index].repeating
                if reader.turn_ended:
                    node.finish = Finish.STOP
                elif node.repeats and self._repetition_stop:
                    node.finish = Finish.REPETITION
                elif full or not complete(index):
                    node.finish = Finish.LENGTH
                if node.ended:
                    reader.finish()
                    yield from _append_text(node, reader, begins[index])
                _set_stage(node, reader)
                yield CandidateEnded(
                    node.id, node.stage, node.closed, len(node.token_ids), node.finish
                )
        context.kv_budget.reserve("candidates", 0)

    def _add_child(self, parent: Node, step: int) -> Node:
        key = f"{parent.key}/{parent.children}" if parent.parent else str(parent.children)
        assert parent.state is not None
        if self.nodes:  # all but the first node start from tokens that were computed already
            self._context.usage.reused_tokens += parent.state.path.length
        parent.children += 1
        node = Node(
            id=len(self.nodes),
            parent=parent,
            key=key,
            step=step,
            round=self.retraces,
            state=parent.state,
        )
        self.nodes.append(node)
        return node

    def _reserve_prefixes(self) -> None:
        """Reserves the bytes of the prompt and of every node that may still be read."""
        segments = {
            id(segment): segment.nbytes
            for node in (self._root, *self.nodes)
            if node.state is not None
            for segment in node.state.path.segments
        }
        self._context.kv_budget.reserve("prefixes", sum(segments.values()))

    def _score(self, candidates: Sequence[Node], step: Step) -> Iterator[SearchEvent]:
        """Scores the candidates that have no score yet; identical ones are judged once."""
        unscored = [node for node in candidates if node.score is None]
        first: dict[tuple[int, tuple[int, ...]], Node] = {}
        for node in unscored:
            assert node.parent is not None
            first.setdefault((node.parent.id, tuple(node.token_ids)), node)
        distinct = list(first.values())
        name = self._plan.judge_for(step)
        started = time.perf_counter()
        try:
            verdicts = self._judges[name].scores(distinct)
            assert len(verdicts) == len(distinct)
            if len(distinct) > 1 and all(score is None for score in verdicts):
                yield from self._notice(
                    f"the judge {name} came to no verdict, so the first candidates are kept"
                )
        except JudgeError as problem:
            verdicts = [None] * len(distinct)
            yield from self._notice(f"{problem}; the search continues without its scores")
        self._context.timings.judge_s += time.perf_counter() - started
        scores: dict[int, float | None] = {}
        for node, score in zip(distinct, verdicts, strict=True):
            if score is not None and not math.isfinite(score):
                score = None
                yield from self._notice(
                    f"judge {name} gave a score that is not a number; it counts as no verdict"
                )
            scores[node.id] = score
        for node in unscored:
            assert node.parent is not None
            node.score = scores[first[node.parent.id, tuple(node.token_ids)].id]
            yield CandidateScored(node.id, node.score, name)

    def _record_choice(
        self,
        candidates: Sequence[Node],
        kept: Sequence[Node],
        step: int,
        back_to: Stage | None = None,
    ) -> Iterator[SearchEvent]:
        """Records a choice, and frees the K/V of nodes that nothing will continue."""
        self._best = kept[0]
        recorded = {node for choice in self._choices for node in choice.nodes}
        new = tuple(node.id for node in self.nodes if node.id not in recorded)
        ids = tuple(node.id for node in kept)
        self._choices.append(ChoiceRecord(step, self.retraces, new, ids, back_to))
        # Later rounds only add to the pool, so a node that is not among its best now never will be.
        for node in candidates:
            if not node.kept:
                node.state = None
        yield CandidatesKept(ids)

    def _falls_short(
        self,
        retrace: Retrace,
        step: int,
        pool: Sequence[Node],
        frontiers: Sequence[Sequence[Node]],
    ) -> bool:
        """Returns whether the deciding candidate is not good enough and a retrace is left."""
        if step != retrace.after:
            return False
        if all(node.ended for node in frontiers[retrace.to]):
            return False  # nothing would be written again
        assert retrace.threshold is not None, "AnswerStream fills in the calibrated threshold"
        node = _deciding(retrace, pool)
        complete = node.closed and not node.repeats
        good = complete and node.score is not None and node.score >= retrace.threshold
        return not good and self.retraces < retrace.max_retraces

    def _may_write_new(self, retrace: Retrace) -> bool:
        """Returns whether another round may differ from the last one: not without sampling."""
        steps = self._plan.steps[retrace.to + 1 : retrace.after + 1]
        return any(self._plan.sampling_for(step).temperature > 0 for step in steps)

    def _retraced(self, retrace: Retrace, pool: Sequence[Node], back_to: Stage | None) -> Retraced:
        """Returns the event of a retrace, with the candidate that was not good enough."""
        node = _deciding(retrace, pool)
        return Retraced(
            stage=back_to,
            round=self.retraces,
            after=list(Stage)[retrace.after],
            rank=min(retrace.rank, len(pool)),
            score=node.score,
            threshold=retrace.threshold,
            cut_off=not node.closed or node.repeats,
        )

    def _notice(self, text: str) -> Iterator[SearchEvent]:
        """Yields a notice, unless one with the same text was yielded before."""
        if text not in self._notices:
            self._notices.append(text)
            yield Noticed(text)


def keep_best(candidates: Sequence[Node], count: int) -> list[Node]:
    """Marks the best candidates as kept, and returns them, best first.

    A candidate that was cut off ranks below all that were not, whatever its score, and one that
    went round in a circle below those.
    """
    kept = sorted(candidates, key=_rank_key, reverse=True)[:count]
    for node in candidates:
        node.kept = node in kept
    return kept


def _rank_key(node: Node) -> tuple[bool, bool, float]:
    return not node.repeats, node.closed, -math.inf if node.score is None else node.score


def _paths(nodes: Sequence[Node]) -> set[tuple[int, ...]]:
    """Returns the token ids of the nodes' paths, from the prompt on."""
    return {tuple(node.path_ids) for node in nodes}


def _deciding(retrace: Retrace, pool: Sequence[Node]) -> Node:
    """Returns the candidate that must be good enough."""
    ranked = sorted(pool, key=_rank_key, reverse=True)
    return ranked[min(retrace.rank, len(ranked)) - 1]


def _detector_after(token_ids: Sequence[int]) -> RepetitionDetector:
    detector = RepetitionDetector()
    for token_id in token_ids:
        detector.push(token_id)
    return detector


def _candidate_start(node: Node, step: Step, max_tokens: int) -> CandidateStart:
    assert node.state is not None
    left = max_tokens - len(node.path_ids)
    return CandidateStart(node.state, node.key, min(left, step.max_tokens or left))


def _append_text(node: Node, reader: StageReader, begin: int) -> Iterator[SearchEvent]:
    """Appends the reader's text from `begin` on to the node, and yields what is new."""
    new = reader.text[begin + len(node.text) :]
    if new:
        node.text += new
        yield CandidateText(node.id, new)


def _set_stage(node: Node, reader: StageReader) -> None:
    """Sets the stage that a node has reached, and whether it was cut off in it."""
    assert node.parent is not None
    node.stages = list(reader.records)
    if len(node.stages) > len(node.parent.stages):
        last = node.stages[-1]
        node.stage, node.stage_text, node.closed = last.stage, last.text, last.closed
    if reader.open_stage is not None:  # at a sentence's end
        node.stage, node.stage_text, node.closed = reader.open_stage, reader.open_text, True


def _next_stage(node: Node) -> Stage | None:
    return Stage.SUMMARY if node.stage is None else node.stage.following
