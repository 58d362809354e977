"""K/V of many paths at once: candidates that share what they have in common.

A path is a chain of segments, the prompt's first. A batch of paths reads the segments that all of
them share where they lie, and keeps only the rest, and what is decoded, row by row.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from llavacot_mlx.model.kv_budget import KVMeter
from llavacot_mlx.model.kv_cache import Segment, capacity_for, written
from llavacot_mlx.model.quantized_kv import KV, scores, unpacked, weighted

_STEP = 64
"""Columns by which a batch's own buffers grow."""


@dataclass(frozen=True)
class Branch:
    """The tokens of one path, from the prompt on."""

    segments: tuple[Segment, ...]

    @property
    def length(self) -> int:
        return sum(segment.length for segment in self.segments)

    def in_bits(self, bits: int | None) -> Branch:
        """With the last segment's K/V in so many bits where it is long; as it is for None."""
        return Branch((*self.segments[:-1], self.segments[-1].in_bits(bits)))

    def followed_by(self, segment: Segment) -> Branch:
        return Branch((*self.segments, segment))


class BranchBatch:
    """The self-attention cache of forward passes over several branches, a row for each.

    What all branches share is read by all rows from one place. A row's own part stands at the right
    end of the used columns, so that all rows write new tokens to the same column; the columns
    before a row's first own token are masked.
    """

    def __init__(self, branches: Sequence[Branch], meter: KVMeter | None = None) -> None:
        """A meter, where there is one, is told before the rows' own buffers are made or grow."""
        shared = _shared_segments(branches)
        self._shared = branches[0].segments[:shared]
        own = [branch.segments[shared:] for branch in branches]
        lengths = [sum(segment.length for segment in segments) for segments in own]
        self._columns = max(lengths)
        self._first_column = mx.array([self._columns - length for length in lengths])
        self._positions = mx.array([branch.length for branch in branches])
        self._seen = mx.array(0)  # the mask of this pass, the same for every layer
        layers = range(len(self._shared[0].keys))
        self._meter = meter
        self._taken_along = 0  # bytes that rows which left took along
        # What a column of one row takes in all layers.
        one = self._shared[0].keys[0]
        self._column_bytes = 2 * len(layers) * one.shape[1] * one.shape[3] * one.dtype.size
        self._meet(self._columns)
        self._keys = [
            self._buffer([[segment.keys[n] for segment in row] for row in own], n) for n in layers
        ]
        self._values = [
            self._buffer([[segment.values[n] for segment in row] for row in own], n) for n in layers
        ]

    @property
    def offset(self) -> mx.array:
        """The position of each row's next token, (rows,)."""
        return self._positions

    def attend(self, layer: int, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Appends K/V of new tokens, and lets their queries attend to all up to themselves.

        `queries` and the result are (rows, heads, new tokens, head_dim), `keys` and `values`
        (rows, kv heads, new tokens, head_dim). `advance` must follow once every layer was called.
        """
        rows, heads, new, head_dim = queries.shape
        kv_heads = keys.shape[1]
        group = heads // kv_heads * new  # queries that share a K/V head
        end = self._columns + new
        if layer == 0:
            self._seen = self._mask(new, end)
            self._meet(capacity_for(end, _STEP))
        self._keys[layer] = written(self._keys[layer], keys, self._columns, _STEP)
        self._values[layer] = written(self._values[layer], values, self._columns, _STEP)
        own_keys = self._keys[layer][:, :, :end]
        own_values = self._values[layer][:, :, :end]

        grouped = (queries * head_dim**-0.5).reshape(rows, kv_heads, group, head_dim)
        folded = grouped.swapaxes(0, 1).reshape(1, kv_heads, rows * group, head_dim)
        seen_scores = [
            scores(folded, segment.keys[layer])
            .reshape(kv_heads, rows, group, segment.length)
            .swapaxes(0, 1)
            for segment in self._shared
        ]
        own_scores = (grouped @ own_keys.swapaxes(-1, -2)).reshape(
            rows, kv_heads, -1, new, end
        ) + self._seen
        seen_scores.append(own_scores.reshape(rows, kv_heads, group, end))
        weights = mx.softmax(mx.concatenate(seen_scores, axis=-1), axis=-1, precise=True)

        ends = list(itertools.accumulate(segment.length for segment in self._shared))
        *shared_weights, own_weights = mx.split(weights, ends, axis=-1)
        result = own_weights @ own_values
        for segment, part in zip(self._shared, shared_weights, strict=True):
            seen = weighted(
                part.swapaxes(0, 1).reshape(1, kv_heads, rows * group, segment.length),
                segment.values[layer],
            )
            result = result + seen.reshape(kv_heads, rows, group, head_dim).swapaxes(0, 1)
        return result.reshape(rows, heads, new, head_dim)

    def advance(self, tokens: int) -> None:
        self._columns += tokens
        self._positions = self._positions + tokens

    def segment(self, row: int, tokens: int) -> Segment:
        """K/V of a row's last `tokens` tokens, copied out of the batch."""
        start, end = self._columns - tokens, self._columns
        self._taken_along += tokens * self._column_bytes
        keys, values = (
            tuple(mx.contiguous(buffer[row : row + 1, :, start:end]) for buffer in buffers)
            for buffers in (self._keys, self._values)
        )
        return Segment(keys, values, tokens)

    def keep(self, rows: Sequence[int]) -> None:
        """Leaves only these rows, in this order."""
        chosen = mx.array(list(rows))
        self._keys = [buffer[chosen] for buffer in self._keys]
        self._values = [buffer[chosen] for buffer in self._values]
        self._first_column = self._first_column[chosen]
        self._positions = self._positions[chosen]

    def _mask(self, new: int, end: int) -> mx.array:
        """(rows, 1, 1, new, end): 0 where a new token may look, -inf elsewhere."""
        column = mx.arange(end)
        own = column >= self._first_column[:, None]  # (rows, end)
        seen = column <= mx.arange(end - new, end)[:, None]  # (new, end)
        allowed = own[:, None, None, None, :] & seen
        dtype = self._shared[0].keys[0].dtype
        return mx.where(allowed, mx.array(0, dtype), mx.array(-mx.inf, dtype))

    def _meet(self, capacity: int) -> None:
        """Tells the meter that the rows' buffers will have so many columns."""
        if self._meter is not None:
            rows = self._positions.shape[0]
            self._meter.hold("rows", rows * capacity * self._column_bytes + self._taken_along)

    def _buffer(self, rows: list[list[KV]], layer: int) -> mx.array:
        """The own parts of all rows, right-aligned: (rows, kv heads, columns, head_dim)."""
        like = self._shared[0].keys[layer]
        _, heads, _, head_dim = like.shape
        padded = []
        for parts in rows:
            missing = self._columns - sum(part.shape[2] for part in parts)
            blank = mx.zeros((1, heads, missing, head_dim), dtype=like.dtype)
            padded.append(mx.concatenate([blank, *map(unpacked, parts)], axis=2))
        return mx.concatenate(padded, axis=0)


def _shared_segments(branches: Sequence[Branch]) -> int:
    """How many segments all branches begin with; the first, the prompt's, is always shared."""
    count = 0
    for segments in zip(*(branch.segments for branch in branches), strict=False):
        if any(segment is not segments[0] for segment in segments):
            break
        count += 1
    assert count, "the branches of a batch begin with the same prompt"
    return count
