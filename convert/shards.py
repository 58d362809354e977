"""Writing safetensors files tensor by tensor, so that one tensor at a time is in memory."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import mlx.core as mx

from llavacot_mlx.convert.plan import PlannedTensor, Step
from llavacot_mlx.safetensors import INDEX_NAME

_SHARD_BYTES = 5 * 10**9  # as large as hubs like them
_DTYPE_NAMES = {
    mx.float32: "F32",
    mx.float16: "F16",
    mx.bfloat16: "BF16",
    mx.uint32: "U32",
    mx.uint8: "U8",
}


def split_into_shards(steps: list[Step]) -> list[tuple[str, list[Step]]]:
    """File names and the steps that fill each file."""
    shards: list[list[Step]] = [[]]
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


def write_shard(file: Path, tensors: list[PlannedTensor], arrays: Iterator[mx.array]) -> None:
    """Writes `arrays`, which must come in the order of `tensors` and be as planned.

    The header goes first, because everything in it is known. The file is on disk when this returns.
    """
    header: dict[str, object] = {"__metadata__": {"format": "mlx"}}
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


def write_index(folder: Path, shards: list[tuple[str, list[Step]]]) -> None:
    names = {
        target.name: file for file, steps in shards for step in steps for target in step.targets
    }
    total = sum(step.nbytes for _, steps in shards for step in steps)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def _raw(array: mx.array) -> memoryview:
    # NumPy and the buffer protocol know no bfloat16, and bytes are bytes.
    return memoryview(mx.contiguous(array).reshape(-1).view(mx.uint8))  # type: ignore[arg-type]
