"""Attention to images in a batch whose rows are about different images."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import mlx.core as mx

from llavacot_mlx.model.attention import attend
from llavacot_mlx.model.kv_cache import ImageKV
from llavacot_mlx.model.quantized_kv import KV, QuantizedKV

STACKED_BYTES = 2**18
"""Images whose arrays have at most this many bytes are copied into one stack for all rows with an
image of that length, and attended to in one call. One call per image costs more in overhead than in
arithmetic there. Above it, a call has enough to do, and rows about an image share its K/V."""


class ImagesByRow:
    """The images of each row of a batch; rows about the same images share one copy of their K/V."""

    def __init__(self, by_row: Sequence[ImageKV | None]) -> None:
        """At least one row has an image."""
        alike: dict[object, list[int]] = defaultdict(list)
        without: list[int] = []
        for row, image_kv in enumerate(by_row):
            if image_kv is None:
                without.append(row)
            else:
                alike[_part_key(image_kv)].append(row)
        self._parts = [
            _Part.of(rows, [image_kv for row in rows if (image_kv := by_row[row]) is not None])
            for rows in alike.values()
        ]
        self._blank_rows = len(without)
        order = [*itertools.chain(*(part.rows for part in self._parts)), *without]
        self._in_order = order == sorted(order)
        inverse = sorted(range(len(order)), key=order.__getitem__)
        self._inverse = mx.array(inverse)
        self._with_image = (
            mx.array([image_kv is not None for image_kv in by_row])[:, None, None]
            if without
            else None
        )

    @property
    def rows_with_image(self) -> mx.array | None:
        return self._with_image

    def attend(self, layer: int, queries: mx.array) -> mx.array:
        if len(self._parts) == 1 and self._in_order and not self._blank_rows:
            return self._parts[0].attend(layer, queries)
        outputs = [part.attend(layer, queries[part.index]) for part in self._parts]
        if self._blank_rows:
            outputs.append(mx.zeros((self._blank_rows, *queries.shape[1:]), queries.dtype))
        joined = mx.concatenate(outputs, axis=0)
        return joined if self._in_order else joined[self._inverse]


@dataclass(frozen=True)
class _Part:
    """Rows whose queries attend in one call."""

    rows: list[int]
    index: mx.array
    image_kv: ImageKV | None
    """The images of all these rows; None for a stack."""
    keys: tuple[mx.array, ...]
    """The stack, per layer: (rows, kv heads, tokens, head_dim)."""
    values: tuple[mx.array, ...]

    @classmethod
    def of(cls, rows: list[int], images: list[ImageKV]) -> _Part:
        if all(image is images[0] for image in images):
            return cls(rows, mx.array(rows), images[0], (), ())
        layers = range(len(images[0].keys))
        keys = tuple(_stacked([image.keys[layer] for image in images]) for layer in layers)
        values = tuple(_stacked([image.values[layer] for image in images]) for layer in layers)
        return cls(rows, mx.array(rows), None, keys, values)

    def attend(self, layer: int, queries: mx.array) -> mx.array:
        """`queries` are those of this part's rows."""
        if self.image_kv is not None:
            return self.image_kv.attend(layer, queries)
        return attend(queries, self.keys[layer], self.values[layer])


def _part_key(image_kv: ImageKV) -> object:
    """Rows with equal keys attend in one call."""
    largest = max(kv.nbytes for kv in (*image_kv.keys, *image_kv.values))
    if isinstance(image_kv.keys[0], QuantizedKV) or largest > STACKED_BYTES:
        return id(image_kv), "shared"
    return image_kv.length, "stacked"


def _stacked(arrays: list[KV]) -> mx.array:
    return mx.concatenate([array for array in arrays if isinstance(array, mx.array)], axis=0)
