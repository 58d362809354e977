"""What a conversation keeps between forward passes: the text's K/V, and the images'."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import mlx.core as mx

from llavacot_mlx.model.attention import attend
from llavacot_mlx.model.kv_budget import KVMeter
from llavacot_mlx.model.quantized_kv import KV, QuantizedKV, arrays_of, tokens_of

_STEP = 256
_LONG = 64
"""Tokens from which on a prefix is worth quantizing; a shorter one weighs little."""


class SelfAttentionCache(Protocol):
    """Where the self-attention layers of a forward pass keep and find the text's K/V."""

    @property
    def offset(self) -> int | mx.array:
        """The position of each row's next token: one number, or (rows,)."""

    def attend(self, layer: int, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Appends K/V of new tokens, and lets their queries attend to all up to themselves."""

    def advance(self, tokens: int) -> None:
        """Counts tokens that were appended in every layer."""


@dataclass(frozen=True)
class Segment:
    """K/V of consecutive tokens of a path, one pair of arrays a self-attention layer.

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
    def quantized(self) -> bool:
        return isinstance(self.keys[0], QuantizedKV)

    def in_bits(self, bits: int | None) -> Segment:
        """With K/V in so many bits where it is a long one; as it is for None."""
        if bits is None or self.length < _LONG:
            return self
        return Segment(_in_bits(self.keys, bits), _in_bits(self.values, bits), self.length)


class TextCache:
    """K/V of the text in the self-attention layers of one conversation.

    Buffers grow by whole steps, so that most tokens are written in place. A meter, where there is
    one, is told before they do.
    """

    def __init__(self, num_layers: int, meter: KVMeter | None = None) -> None:
        self._meter = meter
        self.length = 0
        """Tokens whose K/V are kept; the position of the next one."""
        self._keys: list[mx.array | None] = [None] * num_layers
        self._values: list[mx.array | None] = [None] * num_layers

    @property
    def offset(self) -> int:
        """The position of the next token."""
        return self.length

    def attend(self, layer: int, queries: mx.array, keys: mx.array, values: mx.array) -> mx.array:
        """Appends K/V of new tokens, and lets their queries attend to all up to themselves.

        `keys` and `values` are (1, kv heads, new tokens, head_dim), `queries` and the result (1,
        heads, new tokens, head_dim). `advance` must follow once every layer was called.
        """
        return attend(queries, *self.extend(layer, keys, values), mask="causal")

    def segment(self) -> Segment:
        """K/V of all tokens, to be shared: nothing may be appended afterwards."""
        return Segment(
            tuple(keys[..., : self.length, :] for keys in self._keys if keys is not None),
            tuple(values[..., : self.length, :] for values in self._values if values is not None),
            self.length,
        )

    def extend(self, layer: int, keys: mx.array, values: mx.array) -> tuple[mx.array, mx.array]:
        """Appends K/V of new tokens and returns those of all.

        `keys` and `values` are (1, kv heads, new tokens, head_dim); so are the results, with all
        tokens. `advance` must follow once every layer was extended.
        """
        end = self.length + keys.shape[2]
        buffer = self._keys[layer]
        if layer == 0 and self._meter and (buffer is None or end > buffer.shape[2]):
            column = keys.nbytes // keys.shape[2]
            capacity = capacity_for(end, _STEP)
            self._meter.hold("prefixes", 2 * len(self._keys) * column * capacity)
        all_keys = written(self._keys[layer], keys, self.length, _STEP)
        all_values = written(self._values[layer], values, self.length, _STEP)
        self._keys[layer], self._values[layer] = all_keys, all_values
        return all_keys[..., :end, :], all_values[..., :end, :]

    def advance(self, tokens: int) -> None:
        self.length += tokens

    def state(self) -> list[mx.array]:
        """The buffers, to be evaluated together with a step."""
        return [array for array in (*self._keys, *self._values) if array is not None]


def capacity_for(columns: int, step: int) -> int:
    """How many columns a buffer for `columns` has: whole steps."""
    return -(-columns // step) * step


def written(buffer: mx.array | None, new: mx.array, start: int, step: int) -> mx.array:
    """A buffer (rows, heads, capacity, head_dim) with `new` tokens from column `start` on.

    Where its capacity is too small it grows to a whole number of `step` columns.
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
class VisionMemory:
    """K/V of the images of a conversation in the cross-attention layers: computed once, then read.

    Only real tiles are in it: for a row at or after an image's token, the keys of absent tiles are
    masked, so leaving them out is exact.
    """

    keys: tuple[KV, ...]
    """One a cross-attention layer: (1, kv heads, tokens of all images, head_dim), `k_norm` done."""
    values: tuple[KV, ...]
    image_lengths: tuple[int, ...]
    """Tokens of each image, in the order of the prompt."""

    @property
    def arrays(self) -> list[mx.array]:
        """Everything that is in memory, to be evaluated together."""
        return [array for kv in (*self.keys, *self.values) for array in arrays_of(kv)]

    def in_bits(self, bits: int | None) -> VisionMemory:
        """With K/V in so many bits; as it is for None."""
        if bits is None:
            return self
        return VisionMemory(
            _in_bits(self.keys, bits), _in_bits(self.values, bits), self.image_lengths
        )

    def of_images(self, start: int, stop: int) -> VisionMemory:
        """The part that belongs to images `start` to `stop` (exclusive)."""
        if (start, stop) == (0, len(self.image_lengths)):
            return self
        first = sum(self.image_lengths[:start])
        last = sum(self.image_lengths[:stop])
        return VisionMemory(
            tuple(tokens_of(keys, first, last) for keys in self.keys),
            tuple(tokens_of(values, first, last) for values in self.values),
            self.image_lengths[start:stop],
        )


def _in_bits(arrays: tuple[KV, ...], bits: int) -> tuple[KV, ...]:
    return tuple(
        array if isinstance(array, QuantizedKV) else QuantizedKV.of(array, bits) for array in arrays
    )


@dataclass(frozen=True)
class Sight:
    """What some rows of a forward pass see of the images."""

    start: int
    """First row of the pass that it holds for."""
    stop: int
    memory: VisionMemory
    open: bool
    """False for rows before the first image. transformers masks such a row in full and then clears
    that mask, so it attends to every key, absent tiles included, while the output of its MLP is
    dropped. The weights were trained with it."""


def sight_of_all(memory: VisionMemory | None, rows: int) -> list[Sight]:
    """Every one of `rows` new rows sees the whole memory; nothing is seen without an image."""
    return [] if memory is None else [Sight(0, rows, memory, open=True)]
