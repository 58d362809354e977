"""Conversion of tensors in blocks of rows, from the bytes of the source to those of the output.

Each row is quantized by itself, so blocks give the same result as the whole tensor, and memory does
not depend on the size of a tensor. While one block is written, the next ones are converted and the
one after those is read.
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
from typing import Protocol, Self

import mlx.core as mx
import numpy as np

from llavacot_mlx.checkpoint.dtypes import mlx_dtype
from llavacot_mlx.checkpoint.finite import is_finite
from llavacot_mlx.checkpoint.safetensors import TensorEntry
from llavacot_mlx.convert.plan import TensorStep
from llavacot_mlx.errors import UserError

BLOCK_BYTES = 16 * 10**6
"""The size of a block of the source; a row that is longer is a block by itself."""

_WORKERS = min(2, os.cpu_count() or 1)
"""Blocks converted at once: a CPU computes each in one thread, and two keep a GPU busy."""


@dataclass(frozen=True)
class Block:
    """Rows of a source tensor; the whole tensor if it is transposed or has no rows."""

    step: TensorStep
    start: int
    """Offset in the tensor's data, in bytes."""
    stop: int
    rows: int | None
    """None if the block is the whole tensor."""

    @property
    def last(self) -> bool:
        return self.stop == self.step.source.entry.nbytes


@dataclass(frozen=True)
class ConvertedBlock:
    block: Block
    parts: tuple[memoryview, ...]
    """The bytes of the block in each of the step's output tensors."""


def blocks_of(step: TensorStep) -> Iterator[Block]:
    """Yields the blocks of a step's source, in order."""
    entry = step.source.entry
    if step.source.transpose or not entry.shape or entry.nbytes <= BLOCK_BYTES:
        yield Block(step, 0, entry.nbytes, None)
        return
    row = entry.nbytes // entry.shape[0]
    rows = max(1, BLOCK_BYTES // row)
    for first in range(0, entry.shape[0], rows):
        count = min(rows, entry.shape[0] - first)
        yield Block(step, first * row, (first + count) * row, count)


class BlockSource(Protocol):
    """Where the blocks of a checkpoint are read from. Use it in a `with`."""

    @property
    def readers(self) -> int:
        """Number of blocks that are read at once."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *_: object) -> None: ...

    def read(self, block: Block) -> np.ndarray:
        """Reads a block, (bytes,) of uint8. Raises UserError if that fails."""

    def stop(self) -> None:
        """Ends reads that are under way; they raise. It may be called from any thread."""


def converted(steps: Iterable[TensorStep], source: BlockSource) -> Iterator[ConvertedBlock]:
    """Yields the converted blocks of all steps in order, computing only a few ahead.

    Raises UserError for a weight that is not finite, or not finite in the type it is converted to.
    """
    blocks = (block for step in steps for block in blocks_of(step))
    pending: deque[Future[ConvertedBlock]] = deque()
    ahead = max(_WORKERS, source.readers)
    with source, ExitStack() as stack:
        reader, workers = ThreadPoolExecutor(source.readers), ThreadPoolExecutor(_WORKERS)
        for threads in (reader, workers):  # drops queued work when the caller stops early
            stack.callback(threads.shutdown, cancel_futures=True)
        stack.callback(source.stop)
        for block in blocks:
            data = reader.submit(source.read, block)
            pending.append(workers.submit(_converted, block, data))
            if len(pending) > ahead:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


class BlockReader:
    """Reads blocks of a checkpoint's files, each of which is opened when it is first needed.

    Files are read and not mapped, because mapped pages count as memory of the process.
    """

    readers = 1  # tensors come file by file, and a disk is read in order

    def __init__(self) -> None:
        self._files: dict[Path, int] = {}
        self._closing = ExitStack()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.close()

    def stop(self) -> None:
        """Does nothing: no read takes long."""

    def read(self, block: Block) -> np.ndarray:
        """Reads a block, (bytes,) of uint8. Raises UserError if that fails."""
        return self.read_bytes(block.step.source.entry, block.start, block.stop)

    def read_bytes(self, entry: TensorEntry, start: int, stop: int) -> np.ndarray:
        """Reads the bytes `start` to `stop` (exclusive) of a tensor, (bytes,) of uint8."""
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
            self._closing.close()  # tensors come file by file, so one open file is enough
            self._files.clear()
            descriptor = os.open(file, os.O_RDONLY)
            self._closing.callback(os.close, descriptor)
            self._files[file] = descriptor
        return self._files[file]


@cache
def _stream_of_each_thread() -> mx.ThreadLocalStream:
    # Each stream has an MLX thread of its own on a CPU, so that blocks are computed in parallel.
    return mx.new_thread_local_stream(mx.default_device())


def _converted(block: Block, data: Future[np.ndarray]) -> ConvertedBlock:
    with mx.stream(_stream_of_each_thread()):
        step = block.step
        array = array_of(block, data.result())
        parts = _parts(array, step)
        _check_finite(array, parts, step)
        return ConvertedBlock(block, tuple(raw(part) for part in parts))


def array_of(block: Block, data: np.ndarray) -> mx.array:
    """A block's bytes as an array in MLX's layout."""
    entry = block.step.source.entry
    shape = entry.shape if block.rows is None else (block.rows, *entry.shape[1:])
    array = in_type(data, entry.dtype).reshape(shape)
    return array.transpose(0, 2, 3, 1) if block.step.source.transpose else array


def in_type(data: np.ndarray, dtype: str) -> mx.array:
    """Bytes as an array of the type that safetensors files call `dtype`."""
    return mx.array(data).view(mlx_dtype(dtype))


def _parts(array: mx.array, step: TensorStep) -> list[mx.array]:
    floats = [t.dtype for t in step.targets if mx.issubdtype(t.dtype, mx.floating)]
    if floats:
        array = array.astype(floats[0])
    if step.quantization is None:
        return [array]
    chosen = step.quantization
    return list(mx.quantize(array, chosen.group_size, chosen.bits, chosen.mode))


def _check_finite(source: mx.array, parts: list[mx.array], step: TensorStep) -> None:
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
    """The bytes of an array, as they are written to a file."""
    # As uint8, because NumPy and the buffer protocol have no bfloat16.
    flat = mx.contiguous(array).reshape(-1).view(mx.uint8)
    mx.eval(flat)
    return memoryview(flat)  # type: ignore[arg-type]
