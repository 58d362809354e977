"""Keys and values of text and images that stay between forward passes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from llavacot_mlx.model.attention import attend, attend_to_all
from llavacot_mlx.model.kv_budget import KVBudget
from llavacot_mlx.model.quantized_kv import KV, QuantizedKV, kv_arrays, slice_tokens

_STEP = 256
_MIN_QUANTIZED_LENGTH = 64
"""A segment of fewer tokens is not quantized: it takes little memory."""


class SelfAttentionCache(Protocol):
    """Stores the text's K/V for the self-attention layers of a forward pass."""

    @property
    def offset(self) -> int | mx.array:
        """The position of the next token: one number, or (batch,)."""

    def attend(self, layer: int, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Appends K/V of new tokens; each token's query attends to all tokens up to its own."""

    def advance(self, tokens: int) -> None:
        """Moves the offset past new tokens, once every layer has appended them."""


class RewindableCache(SelfAttentionCache, Protocol):
    """A cache whose last tokens can be taken back, as those of a draft that was wrong."""

    @property
    def room(self) -> int:
        """Number of tokens that can be appended before the buffers grow."""

    def rewind(self, tokens: int) -> None:
        """Takes the last tokens back, of those that the last pass appended."""


@dataclass(frozen=True)
class KVSegment:
    """K/V of consecutive tokens of a path, one pair of arrays per self-attention layer.

    Arrays are (1, kv heads, tokens, head_dim) and are never written to again, so any number of
    paths may share a segment.
    """

    keys: tuple[KV, ...]
    values: tuple[KV, ...]
    length: int

    @property
    def nbytes(self) -> int:
        return sum(kv.nbytes for kv in (*self.keys, *self.values))

    @property
    def is_quantized(self) -> bool:
        return isinstance(self.keys[0], QuantizedKV)

    def quantized(self, bits: int | None) -> KVSegment:
        """Quantizes K/V to `bits` if the segment is long; returns it unchanged for None."""
        if bits is None or self.length < _MIN_QUANTIZED_LENGTH:
            return self
        return KVSegment(
            _quantize_all(self.keys, bits), _quantize_all(self.values, bits), self.length
        )


class KVCache:
    """K/V of the text in the self-attention layers, of one conversation or of a batch of prompts.

    Buffers grow by whole steps, so that most tokens are written in place. Growth is reserved in the
    budget first, if there is one.
    """

    def __init__(self, num_layers: int, budget: KVBudget | None = None) -> None:
        self._budget = budget
        self.length = 0
        """Number of tokens whose K/V are stored."""
        self._keys: list[mx.array | None] = [None] * num_layers
        self._values: list[mx.array | None] = [None] * num_layers

    @classmethod
    def of(cls, keys: Sequence[mx.array], values: Sequence[mx.array]) -> KVCache:
        """Makes a cache from the K/V of tokens that were read already, one pair per layer."""
        cache = cls(len(keys))
        cache._keys, cache._values = list(keys), list(values)
        cache.length = keys[0].shape[2]
        return cache

    @property
    def offset(self) -> int:
        """The position of the next token."""
        return self.length

    def attend(self, layer: int, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Appends K/V of new tokens; each token's query attends to all tokens up to its own.

        `keys` and `values` are (batch, kv heads, new tokens, head_dim), `queries` and the result
        (batch, heads, new tokens, head_dim). Call `advance` after the last layer.
        """
        return attend(queries, *self.extend(layer, keys, values), mask="causal")

    def segment(self) -> KVSegment:
        """Returns the K/V of all tokens, to be shared. Nothing may be appended afterwards."""
        return KVSegment(
            tuple(keys[..., : self.length, :] for keys in self._keys if keys is not None),
            tuple(values[..., : self.length, :] for values in self._values if values is not None),
            self.length,
        )

    def clear(self) -> None:
        """Frees the buffers; nothing may be read or appended afterwards."""
        self._keys, self._values = [], []

    def extend(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends K/V of new tokens, and returns the K/V of all tokens.

        `keys` and `values` are (batch, kv heads, new tokens, head_dim); so are the results, with
        all tokens. Call `advance` after the last layer.
        """
        end = self.length + keys.shape[2]
        buffer = self._keys[layer]
        if layer == 0 and self._budget and (buffer is None or end > buffer.shape[2]):
            column = keys.nbytes // keys.shape[2]
            capacity = capacity_for(end, _STEP)
            self._budget.reserve("prefixes", 2 * len(self._keys) * column * capacity)
        all_keys = append_tokens(self._keys[layer], keys, self.length, _STEP)
        all_values = append_tokens(self._values[layer], values, self.length, _STEP)
        self._keys[layer], self._values[layer] = all_keys, all_values
        return all_keys[..., :end, :], all_values[..., :end, :]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    @property
    def room(self) -> int:
        buffer = self._keys[0]
        return 0 if buffer is None else buffer.shape[2] - self.length

    def rewind(self, tokens: int) -> None:
        self.length -= tokens

    def rows(self, lengths: Sequence[int]) -> list[KVCache]:
        """Splits a batch into one cache per row, with a copy of the first tokens of its row.

        A view would keep the K/V of the whole batch in memory as long as one of its rows.
        """
        pairs = [
            [array for array in buffers if array is not None]
            for buffers in (self._keys, self._values)
        ]
        return [
            KVCache.of(
                *(
                    [mx.contiguous(array[row : row + 1, :, :length]) for array in buffers]
                    for buffers in pairs
                )
            )
            for row, length in enumerate(lengths)
        ]

    def state(self) -> list[mx.array]:
        """Returns the buffers, to be evaluated together with a forward pass."""
        return [array for array in (*self._keys, *self._values) if array is not None]


def capacity_for(columns: int, step: int) -> int:
    """Rounds `columns` up to a multiple of `step`."""
    return -(-columns // step) * step


def append_tokens(buffer: mx.array | None, new: mx.array, start: int, step: int) -> mx.array:
    """Writes `new` tokens into a buffer (batch, heads, capacity, head_dim) from column `start` on.

    Returns the buffer, grown to a multiple of `step` columns if it was too small or None.
    """
    end = start + new.shape[2]
    if buffer is None or end > buffer.shape[2]:
        batch, heads, _, head_dim = new.shape
        capacity = capacity_for(end, step)
        grown = mx.zeros((batch, heads, capacity, head_dim), dtype=new.dtype)
        if buffer is not None:
            grown[..., :start, :] = buffer[..., :start, :]
        buffer = grown
    buffer[..., start:end, :] = new
    return buffer


@dataclass(frozen=True)
class ImageKV:
    """K/V of a conversation's images in the cross-attention layers, computed once.

    Only real tiles are in it. At and after an image's token the keys of absent tiles are masked, so
    leaving them out is exact.
    """

    keys: tuple[KV, ...]
    """Per cross-attention layer, after `k_norm`: (1, kv heads, tokens of all images, head_dim)."""
    values: tuple[KV, ...]
    image_lengths: tuple[int, ...]
    """Tokens of each image, in the order of the prompt."""

    @property
    def length(self) -> int:
        """Tokens of all images together."""
        return self.keys[0].shape[2]

    @property
    def nbytes(self) -> int:
        return sum(kv.nbytes for kv in (*self.keys, *self.values))

    @property
    def rows_with_image(self) -> mx.array | None:
        """See `ImageAttention`: every row attends to these images."""
        return None

    def attend(self, layer: int, queries: mx.array) -> mx.array:
        """Lets a whole batch attend to the same images: the batch is folded into the queries."""
        batch, heads, tokens, head_dim = queries.shape
        keys, values = self.keys[layer], self.values[layer]
        if batch == 1:
            return attend_to_all(queries, keys, values)
        folded = queries.swapaxes(0, 1).reshape(1, heads, batch * tokens, head_dim)
        outputs = attend_to_all(folded, keys, values)
        return outputs.reshape(heads, batch, tokens, head_dim).swapaxes(0, 1)

    @property
    def arrays(self) -> list[mx.array]:
        """All arrays of the K/V, to be evaluated together."""
        return [array for kv in (*self.keys, *self.values) for array in kv_arrays(kv)]

    def quantized(self, bits: int | None) -> ImageKV:
        """Quantizes K/V to `bits`; returns it unchanged for None."""
        if bits is None:
            return self
        return ImageKV(
            _quantize_all(self.keys, bits), _quantize_all(self.values, bits), self.image_lengths
        )

    def slice_images(self, start: int, stop: int) -> ImageKV:
        """Returns the K/V of images `start` to `stop` (exclusive)."""
        if (start, stop) == (0, len(self.image_lengths)):
            return self
        first = sum(self.image_lengths[:start])
        last = sum(self.image_lengths[:stop])
        return ImageKV(
            tuple(slice_tokens(keys, first, last) for keys in self.keys),
            tuple(slice_tokens(values, first, last) for values in self.values),
            self.image_lengths[start:stop],
        )


def _quantize_all(arrays: tuple[KV, ...], bits: int) -> tuple[KV, ...]:
    return tuple(
        array if isinstance(array, QuantizedKV) else QuantizedKV.of(array, bits) for array in arrays
    )


class ImageAttention(Protocol):
    """Lets the queries of a batch attend to images in the cross-attention layers."""

    @property
    def rows_with_image(self) -> mx.array | None:
        """(batch, 1, 1), false where a row of the batch has no image; None if all rows have one."""

    def attend(self, layer: int, queries: mx.array) -> mx.array:
        """Maps queries (batch, heads, tokens, head_dim) to outputs of the same shape.

        `layer` counts the cross-attention layers. Rows without an image get zeros.
        """


@dataclass(frozen=True)
class ImageSpan:
    """Positions of a forward pass that attend to the same images."""

    start: int
    """First position, counted from the start of the pass."""
    stop: int
    """End (exclusive)."""
    image_kv: ImageAttention
    after_image: bool
    """False for positions before the first image. transformers masks such a position in full and
    then clears that mask, so it attends to every key, absent tiles included, while the output of
    its MLP is dropped. The weights were trained with it."""


def span_of_all(image_kv: ImageAttention | None, tokens: int) -> list[ImageSpan]:
    """Lets all `tokens` new tokens attend to all images; empty without an image."""
    return [] if image_kv is None else [ImageSpan(0, tokens, image_kv, after_image=True)]
