"""Decodes the paths of many prompts together, one token each per forward pass.

Whoever wants tokens joins with a group of rows, yields WAITING until the tokens of the next pass
are there, and says which rows continue. Rows join, end and leave between two passes. Each row draws
with its own key and attends to its own K/V, so its tokens do not depend on the others.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import mlx.core as mx
import numpy as np

from llavacot_mlx.errors import UserError
from llavacot_mlx.generate.context import DecodeContext
from llavacot_mlx.generate.decode_state import CandidateStart, DecodeState
from llavacot_mlx.generate.device import on_generation_stream
from llavacot_mlx.generate.prefill import PrefilledPrompt
from llavacot_mlx.generate.prefill_together import PrefillJob, prefill_together
from llavacot_mlx.generate.sampling import log_probabilities, row_keys, sample
from llavacot_mlx.generate.sampling_params import Sampling
from llavacot_mlx.generate.waiting import WAITING, Waiting
from llavacot_mlx.model.images_by_row import ImagesByRow
from llavacot_mlx.model.joined_cache import JoinedCache
from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.kv_cache import ImageAttention, ImageKV, capacity_for, span_of_all
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.model.shared_prefix import SharedPrefixCache
from llavacot_mlx.prompt.image_spans import Prompt
from llavacot_mlx.usage import Timings, Usage

_CLEAR_CACHE_INTERVAL = 256
"""Number of passes after which MLX's buffer cache is cleared."""
_COPIED_PREFIX = 256
"""Tokens of the longest prefix that each candidate of a search gets a copy of."""
_STEP = 64
"""Tokens by which the K/V that a path reserves grow."""


@dataclass(frozen=True)
class Sampled:
    """The next token of one row."""

    candidate: int
    """Its index among the group's starts."""
    token_id: int
    logprob: float
    """Log-probability under the model, before temperature and nucleus; 0 if not wanted."""


class RowGroup:
    """Rows that joined together: the candidates of one prompt, or its only path."""

    def __init__(
        self,
        context: DecodeContext,
        starts: Sequence[CandidateStart],
        sampling: Sampling,
        seed: int,
        *,
        continues: bool,
    ) -> None:
        """With `continues`, `state` is asked for later, so log-probabilities and paths are kept."""
        self.context, self.sampling, self.seed = context, sampling, seed
        self.continues = continues
        self.keys = [start.key for start in starts]
        self.states = [start.state for start in starts]
        """Where the rows start; empty once they joined if nothing continues them."""
        self.candidates = list(range(len(starts)))
        """The candidates that are still decoded, in the order of their rows."""
        self.position = 0
        """Number of tokens that each of them has."""
        self.kept_bytes = 0
        """Bytes of K/V that were taken along by rows that ended."""
        self._sampled: list[Sampled] | None = None
        self._error: UserError | None = None

    @property
    def is_ready(self) -> bool:
        """Whether `take` has something to return or to raise."""
        return self._sampled is not None or self._error is not None

    def take(self) -> list[Sampled]:
        """Returns the tokens of the last pass, once. Raises UserError beyond the K/V budget."""
        if self._error is not None:
            raise self._error
        assert self._sampled is not None
        sampled, self._sampled = self._sampled, None
        return sampled

    def put(self, sampled: list[Sampled]) -> None:
        """Hands over the tokens of a pass."""
        self._sampled = sampled
        self.position += 1
        self.context.usage.decoded_tokens += len(sampled)
        self.context.usage.forward_passes += 1

    def fail(self, error: UserError) -> None:
        """Ends all rows with an error."""
        self._error = error
        self.candidates = []

    def wait(self) -> Iterator[Waiting]:
        """Yields until `take` has the tokens of the next pass."""
        while not self.is_ready:
            yield WAITING


_Row = tuple[RowGroup, int]
"""A group and the index of its candidate."""


@dataclass
class _Block:
    """The rows of one cache: those of one group, or paths of many prompts."""

    cache: SharedPrefixCache
    rows: list[_Row]


class SharedDecoder:
    """Reads the prompts of many answers, and decodes their rows in one batch.

    It must be used by one thread.
    """

    def __init__(self, model: Mllama) -> None:
        self._model = model
        self._prompts: list[PrefillJob] = []
        self._joining: list[RowGroup] = []
        self._groups: list[RowGroup] = []
        self._paths: _Block | None = None  # paths of all prompts, each with all its K/V
        self._blocks: list[_Block] = []  # groups whose paths share a prefix
        self._rows: list[_Row] = []  # of all blocks, in the order of the batch
        self._images: ImageAttention | None = None
        self._logits = mx.array(0)  # of the last pass, (its rows, vocabulary)
        self._logits_row: dict[_Row, int] = {}  # rows may leave before they are asked for
        self._next = (mx.array(0), mx.array(0))  # ids and log-probabilities of the next tokens
        self._passes = 0

    @property
    def rows(self) -> int:
        """Number of rows that the next pass decodes."""
        return sum(len(group.candidates) for group in (*self._groups, *self._joining))

    def join(
        self,
        context: DecodeContext,
        starts: Sequence[CandidateStart],
        sampling: Sampling,
        seed: int,
        *,
        continues: bool,
    ) -> RowGroup:
        """Lets rows join before the next pass.

        The starts share a prompt. `continues` says that `state` will be asked for, and that
        log-probabilities are wanted.
        """
        group = RowGroup(context, starts, sampling, seed, continues=continues)
        self._joining.append(group)
        return group

    def leave(self, group: RowGroup) -> None:
        """Ends all rows of a group. Their K/V are freed at the next pass, or by `settle`."""
        group.candidates = []

    def state(self, group: RowGroup, candidate: int) -> DecodeState:
        """Returns the state after a candidate's last token, of which the K/V are known already.

        To be called between the pass that returned the token and the next one.
        """
        row = self._logits_row[group, candidate]
        block = next(block for block in self._all_blocks() if (group, candidate) in block.rows)
        with on_generation_stream():
            index = block.rows.index((group, candidate))
            segment = block.cache.segment(index, group.position)
        group.kept_bytes += segment.nbytes
        path = group.states[candidate].path.extended_by(segment)
        return DecodeState(path, self._logits[row : row + 1])

    def prefill(
        self, prompt: Prompt, usage: Usage, timings: Timings, kv_budget: KVBudget
    ) -> Generator[Waiting, None, PrefilledPrompt]:
        """Reads a prompt in the next step. Raises UserError as `prefill` does."""
        job = PrefillJob(prompt, usage, timings, kv_budget)
        self._prompts.append(job)
        try:
            while job.result is None:
                yield WAITING
        finally:
            job.is_wanted = False
        if isinstance(job.result, UserError):
            raise job.result
        return job.result

    def step(self) -> None:
        """Reads the prompts that wait, or runs one forward pass over all rows.

        After a pass every group has its rows' next tokens. The pass computes the K/V of the tokens
        that it hands out, and queues the tokens after them.
        """
        if self._prompts:
            self._read_prompts()
        else:
            self._decode()

    def _read_prompts(self) -> None:
        jobs, self._prompts = self._prompts, []
        with on_generation_stream():
            prefill_together(self._model, [job for job in jobs if job.is_wanted], self)

    def _decode(self) -> None:
        with on_generation_stream():
            self._settle()
            self._reserve()
            if not self._rows:
                self._logits, self._logits_row = mx.array(0), {}
                return
            token_ids, logprobs = self._next
            cache = JoinedCache([block.cache for block in self._all_blocks()])
            spans = span_of_all(self._images, 1)
            hidden = self._model.hidden(token_ids[:, None], cache, spans)
            self._logits = self._model.logits(hidden[:, -1])
            self._logits_row = {row: index for index, row in enumerate(self._rows)}
            self._next = _sample(self._logits, self._rows, 1)
            mx.async_eval(*self._next)
        handed: dict[RowGroup, list[Sampled]] = defaultdict(list)
        evaluated = zip(self._rows, np.array(token_ids), np.array(logprobs), strict=True)
        for (group, candidate), token_id, logprob in evaluated:
            handed[group].append(Sampled(candidate, int(token_id), float(logprob)))
        for group, sampled in handed.items():
            group.put(sampled)
        self._passes += 1
        if self._passes % _CLEAR_CACHE_INTERVAL == 0:
            mx.clear_cache()

    def settle(self) -> None:
        """Frees the K/V of rows that have left without waiting for the next pass."""
        with on_generation_stream():
            self._settle()
            mx.eval(*self._next, *(block.cache.arrays for block in self._all_blocks()))

    def _all_blocks(self) -> list[_Block]:
        return [*([] if self._paths is None else [self._paths]), *self._blocks]

    def _settle(self) -> None:
        """Lets rows leave and join."""
        joining, self._joining = self._joining, []
        paths = []
        for group in joining:
            if not group.candidates:
                continue
            if self._copies_prefix(group):
                paths.append(group)
                continue
            try:
                cache = SharedPrefixCache(
                    [state.path for state in group.states], group.context.kv_budget
                )
            except UserError as error:
                group.fail(error)
                continue
            rows = [(group, candidate) for candidate in group.candidates]
            self._blocks.append(_Block(cache, rows))
        before = {row: index for index, row in enumerate(self._rows)}
        self._update_paths(paths)
        for block in self._blocks:
            kept = _alive(block.rows)
            if 0 < len(kept) < len(block.rows):
                try:
                    block.cache.keep(kept)
                except UserError as error:
                    block.rows[0][0].fail(error)
                    kept = []
            block.rows = [block.rows[index] for index in kept]
        self._blocks = [block for block in self._blocks if block.rows]
        rows = list(itertools.chain(*(block.rows for block in self._all_blocks())))
        if rows != self._rows:
            self._rearrange(rows, before)
        self._groups = list(dict.fromkeys(group for group, _ in rows))

    def _copies_prefix(self, group: RowGroup) -> bool:
        """Whether each row of a group gets a copy of its prefix.

        Then it is decoded in one cache with the rows of all other prompts. A single path's prefix
        is freed after that. Of a search, only a short one is copied, and only where the decoder has
        other prompts, too.
        """
        paths = [state.path for state in group.states]
        if any(segment.is_quantized for path in paths for segment in path.segments):
            return False
        if not group.continues:
            return True
        is_shared = group.context.decoder is self
        return is_shared and max(path.length for path in paths) <= _COPIED_PREFIX

    def _update_paths(self, joining: list[RowGroup]) -> None:
        """Lets paths leave and join the block in which each path has all its K/V."""
        new = [state.path for group in joining for state in group.states]
        rows = [(group, candidate) for group in joining for candidate in group.candidates]
        if self._paths is None:
            if new:
                self._paths = _Block(SharedPrefixCache(new, shares=False), rows)
            return
        kept = _alive(self._paths.rows)
        if not kept and not new:
            self._paths = None
        elif new or len(kept) < len(self._paths.rows):
            self._paths.cache.update(kept, new)
            self._paths.rows = [self._paths.rows[index] for index in kept] + rows

    def _rearrange(self, rows: list[_Row], before: dict[_Row, int]) -> None:
        """Brings the next tokens and the images into the order of the new rows."""
        new = [row for row in rows if row not in before]
        ids, logprobs = self._next
        if new:
            logits = mx.concatenate([group.states[candidate].logits for group, candidate in new])
            new_ids, new_logprobs = _sample(logits, new, 0)
            if before:
                ids = mx.concatenate([ids, new_ids])
                logprobs = mx.concatenate([logprobs, new_logprobs])
            else:
                ids, logprobs = new_ids, new_logprobs
        place = before | {row: len(before) + index for index, row in enumerate(new)}
        if rows:
            order = mx.array([place[row] for row in rows])
            self._next = (ids[order], logprobs[order])
        else:
            self._next = (mx.array(0), mx.array(0))
        self._rows = rows
        self._images = _images([group.context.image_kv for group, _ in rows])
        for group, _ in new:
            if not group.continues:
                prefix = group.states[0].path.segments[0]
                group.context.kv_budget.reserve(
                    "prefixes", prefix.nbytes if prefix.is_quantized else 0
                )
                group.states = []

    def _reserve(self) -> None:
        """Reserves what the next pass stores; groups beyond their budget end with an error."""
        failed = False
        for group, reserve in [*self._path_reservations(), *self._block_reservations()]:
            try:
                reserve()
            except UserError as error:
                group.fail(error)
                failed = True
        if failed:
            self._settle()

    def _path_reservations(self) -> Iterator[tuple[RowGroup, Callable[[], None]]]:
        if self._paths is None:
            return
        columns: dict[RowGroup, int] = defaultdict(int)
        for (group, _), length in zip(self._paths.rows, self._paths.cache.lengths, strict=True):
            columns[group] += capacity_for(length + 1, _STEP)
        for group, count in columns.items():
            total = count * self._paths.cache.column_bytes + group.kept_bytes
            yield group, partial(group.context.kv_budget.reserve, "candidates", total)

    def _block_reservations(self) -> Iterator[tuple[RowGroup, Callable[[], None]]]:
        for block in self._blocks:
            yield block.rows[0][0], partial(block.cache.reserve, 1)


def _alive(rows: Sequence[_Row]) -> list[int]:
    return [index for index, (group, candidate) in enumerate(rows) if candidate in group.candidates]


def _images(by_row: Sequence[ImageKV | None]) -> ImageAttention | None:
    if not by_row or all(image_kv is None for image_kv in by_row):
        return None
    if all(image_kv is by_row[0] for image_kv in by_row):
        return by_row[0]
    return ImagesByRow(by_row)


def _sample(logits: mx.array, rows: Sequence[_Row], ahead: int) -> tuple[mx.array, mx.array]:
    """Samples tokens from logits (rows, vocabulary): ids and log-probabilities, (rows,) each.

    `ahead` is how far a token lies behind its group's position. A row draws with its own key.
    """
    alike: dict[Sampling, list[int]] = defaultdict(list)
    for index, (group, _) in enumerate(rows):
        alike[group.sampling].append(index)
    parts = []
    for sampling, indices in alike.items():
        chosen = [rows[index] for index in indices]
        keys = row_keys(
            [
                (group.seed, group.keys[candidate], group.position + ahead)
                for group, candidate in chosen
            ]
        )
        part = logits if len(alike) == 1 else logits[mx.array(indices)]
        parts.append(sample(part, sampling, keys))
    if len(parts) == 1:
        token_ids = parts[0]
    else:
        order = list(itertools.chain(*alike.values()))
        inverse = sorted(range(len(order)), key=order.__getitem__)
        token_ids = mx.concatenate(parts)[mx.array(inverse)]
    if any(group.continues for group, _ in rows):
        return token_ids, log_probabilities(logits, token_ids)
    return token_ids, mx.zeros(len(rows))
