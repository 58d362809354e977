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

from llavacot_mlx.model.attention import softmax
from llavacot_mlx.model.kernels import kernels
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
    path's first own token are masked. Paths may leave and join between two passes.
    """

    def __init__(
        self, paths: Sequence[KVPath], budget: KVBudget | None = None, *, shares: bool = True
    ) -> None:
        """Buffers are reserved in the budget, if there is one, before they are made or grow.

        With `shares`, the paths start with the same prompt. Without it they may be of different
        prompts, and each has a copy of all its tokens.
        """
        shared = _count_shared_segments(paths) if shares else 0
        self._shared = paths[0].segments[:shared]
        first = paths[0].segments[0]
        self._dtype = first.keys[0].dtype
        self._columns = 0
        self._first_columns: list[int] = []
        self._lengths: list[int] = []
        self._current_mask = mx.array(0)  # the mask of this pass, the same for every layer
        self._budget = budget
        self._kept_bytes = 0  # K/V of paths that left the batch
        # Bytes of one column of one path in all layers.
        _, heads, _, head_dim = first.keys[0].shape
        self.column_bytes = 2 * len(first.keys) * heads * head_dim * self._dtype.size
        """Bytes of one token of one path, in all layers."""
        self._keys = [mx.zeros((0, heads, 0, head_dim), self._dtype) for _ in first.keys]
        self._values = list(self._keys)
        self.update([], paths)

    @property
    def offset(self) -> mx.array:
        """The position of each path's next token, (batch,)."""
        return mx.array(self._lengths)

    @property
    def arrays(self) -> list[mx.array]:
        """The buffers of the paths' own tokens."""
        return [*self._keys, *self._values]

    @property
    def lengths(self) -> Sequence[int]:
        """Number of tokens of each path."""
        return self._lengths

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
            self.reserve(new)
        self._keys[layer] = append_tokens(self._keys[layer], keys, self._columns, _STEP)
        self._values[layer] = append_tokens(self._values[layer], values, self._columns, _STEP)
        own_keys = self._keys[layer][:, :, :end]
        own_values = self._values[layer][:, :, :end]

        if not self._shared and kernels().fused_attention:
            return mx.fast.scaled_dot_product_attention(
                queries, own_keys, own_values, scale=head_dim**-0.5, mask=self._current_mask[:, 0]
            )
        grouped = (queries * head_dim**-0.5).reshape(batch, kv_heads, group, head_dim)
        own_scores = (grouped @ own_keys.swapaxes(-1, -2)).reshape(
            batch, kv_heads, -1, new, end
        ) + self._current_mask
        own_scores = own_scores.reshape(batch, kv_heads, group, end)
        if not self._shared:
            return (softmax(own_scores) @ own_values).reshape(batch, heads, new, head_dim)
        folded = grouped.swapaxes(0, 1).reshape(1, kv_heads, batch * group, head_dim)
        seen_scores = [
            attention_scores(folded, segment.keys[layer])
            .reshape(kv_heads, batch, group, segment.length)
            .swapaxes(0, 1)
            for segment in self._shared
        ]
        weights = softmax(mx.concatenate([*seen_scores, own_scores], axis=-1))

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
        self._lengths = [length + tokens for length in self._lengths]

    @property
    def room(self) -> int:
        return self._keys[0].shape[2] - self._columns

    def rewind(self, tokens: int) -> None:
        self.advance(-tokens)

    def segment(self, index: int, tokens: int) -> KVSegment:
        """Copies the K/V of the last `tokens` tokens of the path at `index` out of the batch."""
        start, end = self._columns - tokens, self._columns
        self._kept_bytes += tokens * self.column_bytes
        keys, values = (
            tuple(mx.contiguous(buffer[index : index + 1, :, start:end]) for buffer in buffers)
            for buffers in (self._keys, self._values)
        )
        return KVSegment(keys, values, tokens)

    def keep(self, indices: Sequence[int]) -> None:
        """Keeps only the paths at these indices of the batch, in this order."""
        self.update(indices, [])

    def update(self, kept: Sequence[int], joining: Sequence[KVPath]) -> None:
        """Keeps the paths at these indices, in this order, and appends others.

        With shared segments, the others start with them too.
        """
        shared = len(self._shared)
        own = [path.segments[shared:] for path in joining]
        own_lengths = [sum(segment.length for segment in segments) for segments in own]
        first_columns = [self._first_columns[index] for index in kept]
        # Columns that only paths which left have written are dropped.
        unused = min(first_columns, default=self._columns)
        columns = max([self._columns - unused, *own_lengths])
        shift = columns - self._columns  # of the kept tokens, to the right
        self._first_columns = [column + shift for column in first_columns]
        self._first_columns += [columns - length for length in own_lengths]
        self._lengths = [self._lengths[index] for index in kept]
        self._lengths += [path.length for path in joining]
        before, self._columns = self._columns, columns
        self.reserve(1)
        chosen = mx.array(list(kept), dtype=mx.int32)

        def rebuilt(buffer: mx.array, paths: list[list[KV]]) -> mx.array:
            rows = [
                _aligned_right(list(map(dequantized, parts)), buffer, columns) for parts in paths
            ]
            if kept:
                old = buffer[chosen][:, :, unused:before]
                rows.insert(0, _aligned_right([old], buffer, columns))
            return rows[0] if len(rows) == 1 else mx.concatenate(rows, axis=0)

        for layer in range(len(self._keys)):
            self._keys[layer] = rebuilt(
                self._keys[layer], [[segment.keys[layer] for segment in path] for path in own]
            )
            self._values[layer] = rebuilt(
                self._values[layer], [[segment.values[layer] for segment in path] for path in own]
            )

    def reserve(self, tokens: int) -> None:
        """Reserves the bytes that the buffers have with `tokens` more tokens of every path.

        Raises UserError beyond the budget. A pass reserves them itself; called before the pass,
        this says whether it can.
        """
        if self._budget is not None:
            columns = len(self._lengths) * capacity_for(self._columns + tokens, _STEP)
            self._budget.reserve("candidates", columns * self.column_bytes + self._kept_bytes)

    def _mask(self, new: int, end: int) -> mx.array:
        """Returns (batch, 1, 1, new, end): 0 where a new token may attend, -inf elsewhere."""
        column = mx.arange(end)
        own = column >= mx.array(self._first_columns)[:, None]  # (batch, end)
        seen = column <= mx.arange(end - new, end)[:, None]  # (new, end)
        allowed = own[:, None, None, None, :] & seen
        return mx.where(allowed, mx.array(0, self._dtype), mx.array(-mx.inf, self._dtype))


def _aligned_right(parts: list[mx.array], like: mx.array, columns: int) -> mx.array:
    """Joins consecutive tokens, (batch, heads, tokens, head_dim), so that they end at `columns`.

    The columns behind have room for the next token, so that it is written in place.
    """
    batch = parts[0].shape[0] if parts else 1
    _, heads, _, head_dim = like.shape
    missing = columns - sum(part.shape[2] for part in parts)
    room = capacity_for(columns + 1, _STEP) - columns
    before, behind = (
        mx.zeros((batch, heads, count, head_dim), like.dtype) for count in (missing, room)
    )
    return mx.concatenate([before, *parts, behind], axis=2)


def _count_shared_segments(paths: Sequence[KVPath]) -> int:
    """Counts the segments that all paths start with; the prompt's is always shared."""
    count = 0
    for segments in zip(*(path.segments for path in paths), strict=False):
        if any(segment is not segments[0] for segment in segments):
            break
        count += 1
    assert count, "the paths of a batch start with the same prompt"
    return count
