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
"""Images whose arrays have at most this many bytes are stacked where they are equally long, and
attended to in one call. One call per image costs more in overhead than in arithmetic there; above
it, a call has enough to do, and a stack would be a second copy of large K/V."""


class ImagesByRow:
    """The images of each row of a batch; rows about the same images share one copy of their K/V."""

    def __init__(self, by_row: Sequence[ImageKV | None]) -> None:
        """At least one row has an image."""
        rows: dict[int, list[int]] = defaultdict(list)
        images: dict[int, ImageKV] = {}
        without: list[int] = []
        for row, image_kv in enumerate(by_row):
            if image_kv is None:
                without.append(row)
            else:
                rows[id(image_kv)].append(row)
                images[id(image_kv)] = image_kv
        alike: dict[object, list[int]] = defaultdict(list)
        for name, image_kv in images.items():
            alike[_stack_key(image_kv, len(rows[name]), name)].append(name)
        self._parts = [
            _Part.of([images[name] for name in names], [rows[name] for name in names])
            for names in alike.values()
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
    """Images of the same length that are attended to in one call, by equally many rows each."""

    rows: list[int]
    """All rows of the first image, then those of the second, and so on."""
    index: mx.array
    image_kv: ImageKV | None
    """The K/V of a single image; None for several."""
    keys: tuple[mx.array, ...]
    """Of several images, per layer: (images, kv heads, tokens, head_dim)."""
    values: tuple[mx.array, ...]

    @classmethod
    def of(cls, images: list[ImageKV], rows: list[list[int]]) -> _Part:
        together = list(itertools.chain(*rows))
        if len(images) == 1:
            return cls(together, mx.array(together), images[0], (), ())
        layers = range(len(images[0].keys))
        keys, values = (
            tuple(_stacked([pair[layer] for pair in kv]) for layer in layers)
            for kv in ([image.keys for image in images], [image.values for image in images])
        )
        return cls(together, mx.array(together), None, keys, values)

    def attend(self, layer: int, queries: mx.array) -> mx.array:
        """`queries` are those of this part's rows, in the order of `rows`."""
        if self.image_kv is not None:
            return self.image_kv.attend(layer, queries)
        keys, values = self.keys[layer], self.values[layer]
        images, (rows, heads, tokens, head_dim) = keys.shape[0], queries.shape
        each = rows // images
        if each == 1:
            return attend(queries, keys, values)
        by_image = queries.reshape(images, each, heads, tokens, head_dim).swapaxes(1, 2)
        folded = by_image.reshape(images, heads, each * tokens, head_dim)
        outputs = attend(folded, keys, values).reshape(images, heads, each, tokens, head_dim)
        return outputs.swapaxes(1, 2).reshape(queries.shape)


def _stack_key(image_kv: ImageKV, rows: int, name: int) -> object:
    """Images with equal keys are stacked; `name` is equal for no two images."""
    largest = max(kv.nbytes for kv in (*image_kv.keys, *image_kv.values))
    if isinstance(image_kv.keys[0], QuantizedKV) or largest > STACKED_BYTES:
        return name
    return image_kv.length, rows


def _stacked(arrays: list[KV]) -> mx.array:
    return mx.concatenate([array for array in arrays if isinstance(array, mx.array)], axis=0)
