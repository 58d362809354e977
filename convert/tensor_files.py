"""Weight files filled from arrays that come one by one, so that one at a time is in memory.

`shards` is for conversions, which go on after a crash; what is written here is written at one go.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

import mlx.core as mx

from llavacot_mlx.convert.plan import PlannedTensor
from llavacot_mlx.safetensors import INDEX_NAME

_SHARD_BYTES = 5 * 10**9  # as large as hubs like them
_DTYPE_NAMES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.uint8: "U8",
}


class Step(Protocol):
    """Something that makes some of the tensors to be written; they stay in one file."""

    @property
    def targets(self) -> tuple[PlannedTensor, ...]: ...
    @property
    def nbytes(self) -> int: ...


S = TypeVar("S", bound=Step)


def write_weights(
    folder: Path,
    steps: Sequence[S],
    arrays: Callable[[list[S]], Iterator[mx.array]],
    made_for: str = "mlx",
) -> None:
    """Writes what the steps plan, and the index; `arrays` makes the tensors of some of the steps.

    `made_for` is what the files say of themselves: "mlx", or "pt" for PyTorch.
    """
    shards = split_into_shards(steps)
    for file, shard in shards:
        targets = [planned for step in shard for planned in step.targets]
        write_shard(folder / file, targets, arrays(shard), made_for)
    write_index(folder, shards)


def split_into_shards(steps: Sequence[S]) -> list[tuple[str, list[S]]]:
    """File names and the steps that fill each file."""
    shards: list[list[S]] = [[]]
    size = 0
    for step in steps:
        if shards[-1] and size + step.nbytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(step)
        size += step.nbytes
    if len(shards) == 1:
        return [("model.safetensors", shards[0])]
    return [
        (f"model-{number:05d}-of-{len(shards):05d}.safetensors", shard)
        for number, shard in enumerate(shards, start=1)
    ]


def write_shard(
    file: Path, tensors: list[PlannedTensor], arrays: Iterator[mx.array], made_for: str
) -> None:
    """Writes `arrays`, which must come in the order of `tensors` and be as planned.

    The header goes first, because everything in it is known. The file is on disk when this returns.
    """
    header: dict[str, object] = {"__metadata__": {"format": made_for}}
    position = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": _DTYPE_NAMES[tensor.dtype],
            "shape": tensor.shape,
            "data_offsets": [position, position + tensor.nbytes],
        }
        position += tensor.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # the format asks for data aligned to eight bytes
    with file.open("xb") as stream:
        stream.write(len(text).to_bytes(8, "little"))
        stream.write(text)
        for tensor, array in zip(tensors, arrays, strict=True):
            assert tuple(array.shape) == tensor.shape, (tensor, array.shape)
            assert array.dtype == tensor.dtype, (tensor, array.dtype)
            stream.write(_raw(array))
        stream.flush()
        os.fsync(stream.fileno())


def write_index(folder: Path, shards: list[tuple[str, list[S]]]) -> None:
    names = {
        target.name: file for file, steps in shards for step in steps for target in step.targets
    }
    total = sum(step.nbytes for _, steps in shards for step in steps)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _raw(array: mx.array) -> memoryview:
    # NumPy and the buffer protocol know no bfloat16, and bytes are bytes.
    return memoryview(mx.contiguous(array).reshape(-1).view(mx.uint8))  # type: ignore[arg-type]
