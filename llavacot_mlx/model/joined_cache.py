"""Several self-attention caches as one, whose batch is all their rows."""

from __future__ import annotations

from collections.abc import Sequence

import mlx.core as mx

from llavacot_mlx.model.shared_prefix import SharedPrefixCache


class JoinedCache:
    """The rows of several caches, one cache after the other, in one batch.

    The linear layers see one batch. Each cache attends on its own, so paths of different prompts
    are neither padded to one length nor masked against each other.
    """

    def __init__(self, caches: Sequence[SharedPrefixCache]) -> None:
        self._caches = caches

    @property
    def offset(self) -> mx.array:
        """The position of each path's next token, (batch,)."""
        return mx.array([length for cache in self._caches for length in cache.lengths])

    def attend(self, layer: int, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """See `SharedPrefixCache.attend`; the batch is the rows of all caches."""
        if len(self._caches) == 1:
            return self._caches[0].attend(layer, queries, keys, values)
        outputs, start = [], 0
        for cache in self._caches:
            rows = slice(start, start + len(cache.lengths))
            outputs.append(cache.attend(layer, queries[rows], keys[rows], values[rows]))
            start = rows.stop
        return mx.concatenate(outputs, axis=0)

    def advance(self, tokens: int) -> None:
        """Moves every cache past new tokens, once every layer has appended them."""
        for cache in self._caches:
            cache.advance(tokens)
