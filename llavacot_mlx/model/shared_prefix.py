"""A KV cache for many paths that share their common prefix.

A path is a chain of segments that starts with the prompt's. A batch of paths reads the segments
that all of them share from one place, and stores only the rest per path (as in Hydragen, arXiv
2402.05099).
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.kv_cache import KVSegment, append_tokens, capacity_for
from llavacot_mlx.model.quantized_kv import KV, attention_scores, dequantized, weighted_sum

_STEP = 64
"""Number of columns by which the buffers of the paths' own tokens grow."""


@dataclass(frozen=True)
class KVPath:
    """K/V of one path from the prompt on, as a chain of segments."""

    segments: tuple[KVSegment, ...]

    @property
    def length(self) -> int:
        return sum(segment.length for segment in self.segments)

    def quantized(self, bits: int | None) -> KVPath:
        """Quantizes the last segment if it is long; returns the path unchanged for None."""
        return KVPath((*self.segments[:-1], self.segments[-1].quantized(bits)))

    def extended_by(self, segment: KVSegment) -> KVPath:
        """Returns the path that continues this one with `segment`."""
        return KVPath((*self.segments, segment))


class SharedPrefixCache:
    """The self-attention cache of a batch of paths.

    All paths read their shared segments from one place. A path's own tokens are right-aligned in
    its buffer, so that the whole batch writes new tokens to the same column; the columns before a
    path's first own token are masked.
    """

    def __init__(self, paths: Sequence[KVPath], budget: KVBudget | None = None) -> None:
        """Buffers are reserved in the budget, if there is one, before they are made or grow."""
        shared = _count_shared_segments(paths)
        self._shared = paths[0].segments[:shared]
        own = [path.segments[shared:] for path in paths]
        lengths = [sum(segment.length for segment in segments) for segments in own]
        self._columns = max(lengths)
        self._first_column = mx.array([self._columns - length for length in lengths])
        self._positions = mx.array([path.length for path in paths])
        self._current_mask = mx.array(0)  # the mask of this pass, the same for every layer
        layers = range(len(self._shared[0].keys))
        self._budget = budget
        self._kept_bytes = 0  # K/V of paths that left the batch
        # Bytes of one column of one path in all layers.
        keys = self._shared[0].keys[0]
        self._column_bytes = 2 * len(layers) * keys.shape[1] * keys.shape[3] * keys.dtype.size
        self._reserve(self._columns)
        self._keys = [
            self._align_right([[segment.keys[n] for segment in path] for path in own], n)
            for n in layers
        ]
        self._values = [
            self._align_right([[segment.values[n] for segment in path] for path in own], n)
            for n in layers
        ]

    @property
    def offset(self) -> mx.array:
        """The position of each path's next token, (batch,)."""
        return self._positions

    def attend(self, layer: int, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Appends K/V of new tokens; each token's query attends to all tokens up to its own.

        `queries` and the result are (batch, heads, new tokens, head_dim), `keys` and `values`
        (batch, kv heads, new tokens, head_dim). Call `advance` after the last layer.
        """
        batch, heads, new, head_dim = queries.shape
        kv_heads = keys.shape[1]
        group = heads // kv_heads * new  # queries that share a K/V head
        end = self._columns + new
        if layer == 0:
            self._current_mask = self._mask(new, end)
            self._reserve(capacity_for(end, _STEP))
        self._keys[layer] = append_tokens(self._keys[layer], keys, self._columns, _STEP)
        self._values[layer] = append_tokens(self._values[layer], values, self._columns, _STEP)
        own_keys = self._keys[layer][:, :, :end]
        own_values = self._values[layer][:, :, :end]

        grouped = (queries * head_dim**-0.5).reshape(batch, kv_heads, group, head_dim)
        folded = grouped.swapaxes(0, 1).reshape(1, kv_heads, batch * group, head_dim)
        seen_scores = [
            attention_scores(folded, segment.keys[layer])
            .reshape(kv_heads, batch, group, segment.length)
            .swapaxes(0, 1)
            for segment in self._shared
        ]
        own_scores = (grouped @ own_keys.swapaxes(-1, -2)).reshape(
            batch, kv_heads, -1, new, end
        ) + self._current_mask
        seen_scores.append(own_scores.reshape(batch, kv_heads, group, end))
        weights = mx.softmax(mx.concatenate(seen_scores, axis=-1), axis=-1, precise=True)

        ends = list(itertools.accumulate(segment.length for segment in self._shared))
        *shared_weights, own_weights = mx.split(weights, ends, axis=-1)
        result = own_weights @ own_values
        for segment, part in zip(self._shared, shared_weights, strict=True):
            seen = weighted_sum(
                part.swapaxes(0, 1).reshape(1, kv_heads, batch * group, segment.length),
                segment.values[layer],
            )
            result = result + seen.reshape(kv_heads, batch, group, head_dim).swapaxes(0, 1)
        return result.reshape(batch, heads, new, head_dim)

    def advance(self, tokens: int) -> None:
        self._columns += tokens
        self._positions = self._positions + tokens

    @property
    def room(self) -> int:
        return self._keys[0].shape[2] - self._columns

    def rewind(self, tokens: int) -> None:
        self.advance(-tokens)

    def segment(self, index: int, tokens: int) -> KVSegment:
        """Copies the K/V of the last `tokens` tokens of the path at `index` out of the batch."""
        start, end = self._columns - tokens, self._columns
        self._kept_bytes += tokens * self._column_bytes
        keys, values = (
            tuple(mx.contiguous(buffer[index : index + 1, :, start:end]) for buffer in buffers)
            for buffers in (self._keys, self._values)
        )
        return KVSegment(keys, values, tokens)

    def keep(self, indices: Sequence[int]) -> None:
        """Keeps only the paths at these indices of the batch, in this order."""
        chosen = mx.array(list(indices))
        self._keys = [buffer[chosen] for buffer in self._keys]
        self._values = [buffer[chosen] for buffer in self._values]
        self._first_column = self._first_column[chosen]
        self._positions = self._positions[chosen]

    def _mask(self, new: int, end: int) -> mx.array:
        """Returns (batch, 1, 1, new, end): 0 where a new token may attend, -inf elsewhere."""
        column = mx.arange(end)
        own = column >= self._first_column[:, None]  # (batch, end)
        seen = column <= mx.arange(end - new, end)[:, None]  # (new, end)
        allowed = own[:, None, None, None, :] & seen
        dtype = self._shared[0].keys[0].dtype
        return mx.where(allowed, mx.array(0, dtype), mx.array(-mx.inf, dtype))

    def _reserve(self, capacity: int) -> None:
        """Reserves the bytes of `capacity` columns for every path."""
        if self._budget is not None:
            batch = self._positions.shape[0]
            self._budget.reserve(
                "candidates", batch * capacity * self._column_bytes + self._kept_bytes
            )

    def _align_right(self, own: list[list[KV]], layer: int) -> mx.array:
        """Right-aligns the paths' own tokens: returns (batch, kv heads, columns, head_dim)."""
        like = self._shared[0].keys[layer]
        _, heads, _, head_dim = like.shape
        padded = []
        for parts in own:
            missing = self._columns - sum(part.shape[2] for part in parts)
            blank = mx.zeros((1, heads, missing, head_dim), dtype=like.dtype)
            padded.append(mx.concatenate([blank, *map(dequantized, parts)], axis=2))
        return mx.concatenate(padded, axis=0)


def _count_shared_segments(paths: Sequence[KVPath]) -> int:
    """Counts the segments that all paths start with; the prompt's is always shared."""
    count = 0
    for segments in zip(*(path.segments for path in paths), strict=False):
        if any(segment is not segments[0] for segment in segments):
            break
        count += 1
    assert count, "the paths of a batch start with the same prompt"
    return count
