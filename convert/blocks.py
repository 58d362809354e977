"""From the bytes of a source to the bytes of a target, a block of rows at a time.

Rows are quantised one by one, so blocks of them give what the whole tensor would, and memory does
not depend on how large a tensor is. While one block is written, the next ones are converted and
the one after them is read.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Self

import mlx.core as mx
import numpy as np

from llavacot_mlx.checkpoint.dtypes import mlx_dtype
from llavacot_mlx.checkpoint.finite import is_finite
from llavacot_mlx.checkpoint.safetensors import TensorEntry
from llavacot_mlx.convert.plan import Step
from llavacot_mlx.errors import UserError

BLOCK_BYTES = 16 * 10**6
"""Of a source that are in memory as one block, or one row where a row is longer."""

_WORKERS = min(2, os.cpu_count() or 1)
"""Blocks that are converted at once: a CPU computes one in one thread, and a GPU has enough of
two."""


@dataclass(frozen=True)
class Block:
    """Some rows of a source; all of it where it is turned around or has none."""

    step: Step
    start: int
    """Bytes of the tensor before the block."""
    stop: int
    rows: int | None
    """None where the block is the whole."""

    @property
    def last(self) -> bool:
        return self.stop == self.step.source.entry.nbytes


@dataclass(frozen=True)
class ConvertedBlock:
    block: Block
    parts: tuple[memoryview, ...]
    """The bytes of these rows in each of the step's targets."""


def blocks_of(step: Step) -> Iterator[Block]:
    """The blocks of a step's source, in order."""
    entry = step.source.entry
    if step.source.transpose or not entry.shape or entry.nbytes <= BLOCK_BYTES:
        yield Block(step, 0, entry.nbytes, None)
        return
    row = entry.nbytes // entry.shape[0]
    rows = max(1, BLOCK_BYTES // row)
    for first in range(0, entry.shape[0], rows):
        count = min(rows, entry.shape[0] - first)
        yield Block(step, first * row, (first + count) * row, count)


def converted(steps: Iterable[Step]) -> Iterator[ConvertedBlock]:
    """The blocks of all steps in order, each converted when its turn is near.

    Raises UserError for a weight that is not finite, or is not in the type that it becomes.
    """
    blocks = (block for step in steps for block in blocks_of(step))
    pending: deque[Future[ConvertedBlock]] = deque()
    with BlockReader() as source, ExitStack() as stack:
        reader, workers = ThreadPoolExecutor(1), ThreadPoolExecutor(_WORKERS)
        for threads in (reader, workers):  # what waits is dropped when the caller stops early
            stack.callback(threads.shutdown, cancel_futures=True)
        for block in blocks:
            data = reader.submit(source.read, block)
            pending.append(workers.submit(_converted, block, data))
            if len(pending) > _WORKERS:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class BlockReader:
    """The files of a checkpoint, opened when they are needed. They are read, never mapped.

    A mapped page counts as the process's own memory.
    """

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def read(self, block: Block) -> np.ndarray:
        """The bytes of a block, (bytes,) of uint8. Raises UserError where they cannot be had."""
        return self.read_bytes(block.step.source.entry, block.start, block.stop)

    def read_bytes(self, entry: TensorEntry, start: int, stop: int) -> np.ndarray:
        """The bytes `start` to `stop` (exclusive) of a tensor, (bytes,) of uint8."""
        data = np.empty(stop - start, np.uint8)
        view, position = memoryview(data.data), entry.start + start
        try:
            while view:
                count = os.preadv(self._descriptor(entry.file), [view], position)
                if count == 0:
                    raise UserError(f"{entry.file} became shorter while it was read")
                view, position = view[count:], position + count
        except OSError as problem:
            raise UserError(f"{entry.file} cannot be read: {problem.strerror}") from None
        return data

    def _descriptor(self, file: Path) -> int:
        if file not in self._files:
            self._closing.close()  # tensors come in the order of files, so one is open at a time
            self._files.clear()
            descriptor = os.open(file, os.O_RDONLY)
            self._closing.callback(os.close, descriptor)
            self._files[file] = descriptor
        return self._files[file]


@cache
def _stream_of_each_thread() -> mx.ThreadLocalStream:
    # On a CPU a stream is a thread of MLX's own, so that blocks are computed side by side.
    return mx.new_thread_local_stream(mx.default_device())


def _converted(block: Block, data: Future[np.ndarray]) -> ConvertedBlock:
    with mx.stream(_stream_of_each_thread()):
        step = block.step
        array = array_of(block, data.result())
        parts = _parts(array, step)
        _check_finite(array, parts, step)
        return ConvertedBlock(block, tuple(raw(part) for part in parts))


def array_of(block: Block, data: np.ndarray) -> mx.array:
    """A block's bytes as the array that they are, in MLX's layout."""
    entry = block.step.source.entry
    shape = entry.shape if block.rows is None else (block.rows, *entry.shape[1:])
    array = in_type(data, entry.dtype).reshape(shape)
    return array.transpose(0, 2, 3, 1) if block.step.source.transpose else array


def in_type(data: np.ndarray, dtype: str) -> mx.array:
    """Bytes as the values that safetensors calls `dtype`."""
    return mx.array(data).view(mlx_dtype(dtype))


def _parts(array: mx.array, step: Step) -> list[mx.array]:
    floats = [t.dtype for t in step.targets if mx.issubdtype(t.dtype, mx.floating)]
    if floats:
        array = array.astype(floats[0])
    if step.quantization is None:
        return [array]
    chosen = step.quantization
    return list(mx.quantize(array, chosen.group_size, chosen.bits, chosen.mode))


def _check_finite(source: mx.array, parts: list[mx.array], step: Step) -> None:
    if not mx.issubdtype(source.dtype, mx.floating):
        return
    name, file = step.source.entry.name, step.source.entry.file
    is_copy = step.quantization is None and parts[0].dtype == source.dtype
    changed = [] if is_copy else [part for part in parts if mx.issubdtype(part.dtype, mx.floating)]
    read, written = is_finite(source), [is_finite(part) for part in changed]
    mx.eval(read, written, parts)
    if not read.item():
        raise UserError(f"{file}: {name} holds NaN or infinite values; this checkpoint is damaged")
    if not all(part.item() for part in written):
        raise UserError(f"{file}: {name} holds values too large for the type: use bfloat16")


def raw(array: mx.array) -> memoryview:
    """The bytes of an array, as a file has them."""
    # NumPy and the buffer protocol know no bfloat16, and bytes are bytes.
    flat = mx.contiguous(array).reshape(-1).view(mx.uint8)
    mx.eval(flat)
    return memoryview(flat)  # type: ignore[arg-type]
