"""Weights whose values look wrong: not a number, infinite, or zero throughout."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np

from .errors import UserError
from .weights import SourceTensor

_READ_BYTES = 2**24
# The unsigned type of as many bits, the exponent's bits and the others of the value; the sign is
# in neither.
_BITS = {
    "F32": (np.uint32, 0x7F80_0000, 0x007F_FFFF),
    "F16": (np.uint16, 0x7C00, 0x03FF),
    "BF16": (np.uint16, 0x7F80, 0x007F),
}

Oddity = Literal["NaN", "infinity", "all zero"]


@dataclass(frozen=True)
class OddTensor:
    name: str
    oddity: Oddity
    count: int
    """Values that are so."""


def odd_tensors(tensors: Iterable[SourceTensor]) -> Iterator[OddTensor]:
    """Reads the floating-point ones of `tensors`, a piece at a time, and tells which are odd.

    Raises UserError where one cannot be read.
    """
    for tensor in tensors:
        if tensor.entry.dtype in _BITS and tensor.entry.nbytes:
            yield from _oddities(tensor)


def _oddities(tensor: SourceTensor) -> Iterator[OddTensor]:
    dtype, exponent, fraction = _BITS[tensor.entry.dtype]
    nans = infinities = nonzero = 0
    for values in _pieces(tensor, np.dtype(dtype)):
        special = (values & exponent) == exponent
        if special.any():
            is_nan = special & ((values & fraction) != 0)
            nans += int(is_nan.sum())
            infinities += int(special.sum() - is_nan.sum())
        nonzero += int(np.count_nonzero(values & (exponent | fraction)))
    found: tuple[tuple[Oddity, int], ...] = (("NaN", nans), ("infinity", infinities))
    yield from (OddTensor(tensor.name, oddity, count) for oddity, count in found if count)
    if not nonzero:
        size = tensor.entry.nbytes // np.dtype(dtype).itemsize
        yield OddTensor(tensor.name, "all zero", size)


def _pieces(tensor: SourceTensor, dtype: np.dtype) -> Iterator[np.ndarray]:
    entry = tensor.entry
    try:
        with entry.file.open("rb") as stream:
            stream.seek(entry.start)
            left = entry.nbytes
            while left:
                data = stream.read(min(left, _READ_BYTES))
                if not data:
                    raise UserError(f"{entry.file} became shorter while it was read")
                left -= len(data)
                yield np.frombuffer(data, dtype)
    except OSError as problem:
        raise UserError(f"{entry.file} cannot be read: {problem.strerror}") from None
