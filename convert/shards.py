"""Writers of safetensors files that stream tensors, so that memory stays small."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Generic, Protocol, Self, TypeVar

import mlx.core as mx

from llavacot_mlx.checkpoint.dtypes import file_name
from llavacot_mlx.checkpoint.weight_files import INDEX_NAME
from llavacot_mlx.convert.blocks import ConvertedBlock, raw
from llavacot_mlx.convert.plan import PlannedTensor

_SHARD_BYTES = 5 * 10**9  # the usual size on the Hugging Face hub


class Planned(Protocol):
    """A step that produces tensors, which are all written to the same file."""

    @property
    def targets(self) -> tuple[PlannedTensor, ...]: ...
    @property
    def nbytes(self) -> int: ...


P = TypeVar("P", bound=Planned)


@dataclass(frozen=True)
class Shard(Generic[P]):
    """One weight file, and the steps that fill it."""

    file: str
    steps: tuple[P, ...]
    made_for: str
    """The format that the file declares: "mlx", or "pt" for PyTorch."""

    @cached_property
    def header(self) -> bytes:
        """The start of the file, which is known before any weight is read."""
        header: dict[str, object] = {"__metadata__": {"format": self.made_for}}
        position = 0
        for target in (target for step in self.steps for target in step.targets):
            header[target.name] = {
                "dtype": file_name(target.dtype),
                "shape": target.shape,
                "data_offsets": [position, position + target.nbytes],
            }
            position += target.nbytes
        text = json.dumps(header, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the format asks for data aligned to eight bytes
        return len(text).to_bytes(8, "little") + text

    @property
    def nbytes(self) -> int:
        return len(self.header) + sum(step.nbytes for step in self.steps)

    def steps_within(self, count: int) -> int:
        """The number of steps that are complete within the first `count` bytes of the file."""
        position = len(self.header)
        for done, step in enumerate(self.steps):
            position += step.nbytes
            if position > count:
                return done
        return len(self.steps)


def split_into_shards(steps: Sequence[P], made_for: str = "mlx") -> list[Shard[P]]:
    """Distributes the steps over files."""
    shards: list[list[P]] = [[]]
    size = 0
    for step in steps:
        if shards[-1] and size + step.nbytes > _SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(step)
        size += step.nbytes
    if len(shards) == 1:
        return [Shard("model.safetensors", tuple(shards[0]), made_for)]
    return [
        Shard(f"model-{number:05d}-of-{len(shards):05d}.safetensors", tuple(shard), made_for)
        for number, shard in enumerate(shards, start=1)
    ]


class ShardFile:
    """A shard that is being written, with the SHA-256 of its contents so far."""

    def __init__(self, folder: Path, shard: Shard[P], kept: int, digest: hashlib._Hash) -> None:
        """Continues after the first `kept` bytes of the file, whose digest is `digest`."""
        self._stream = (folder / shard.file).open("r+b" if kept else "wb")
        self._stream.truncate(kept)
        self._stream.seek(kept)
        self._digest = digest
        self.position = kept
        if not kept:
            self._write(shard.header)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def write_step(self, blocks: Iterable[ConvertedBlock]) -> None:
        """Writes all blocks of one step.

        The blocks of the first tensor, by far the largest, are written as they come. Those of the
        others, a scale and a bias per group, are kept in memory until it is complete.
        """
        waiting: list[list[memoryview]] = []
        for block in blocks:
            first, *others = block.parts
            self._write(first)
            waiting.append(others)
        for target in zip(*waiting, strict=True):
            for part in target:
                self._write(part)

    def sha256(self) -> str:
        """The SHA-256 of everything written so far, in hexadecimal."""
        return self._digest.hexdigest()

    def flush(self) -> int:
        """Flushes to the operating system; returns the descriptor for `os.fsync`, which is slow."""
        self._stream.flush()
        return self._stream.fileno()

    def _write(self, data: bytes | memoryview) -> None:
        self._digest.update(data)
        self._stream.write(data)
        self.position += len(data)


def write_index(folder: Path, shards: Sequence[Shard[P]]) -> None:
    names = {
        target.name: shard.file
        for shard in shards
        for step in shard.steps
        for target in step.targets
    }
    total = sum(step.nbytes for shard in shards for step in shard.steps)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(names.items()))}
    (folder / INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")


def write_weights(
    folder: Path,
    steps: Sequence[P],
    arrays: Callable[[Sequence[P]], Iterator[mx.array]],
    made_for: str = "mlx",
) -> None:
    """Writes the planned tensors and their index in one go, one array in memory at a time.

    `arrays` computes the tensors of the steps that it is given, in order. `made_for` is the format
    that the files declare: "mlx", or "pt" for PyTorch. A conversion, which can be resumed after a
    crash, writes each file with `ShardFile` instead.
    """
    shards = split_into_shards(steps, made_for)
    for shard in shards:
        _write_shard(folder, shard, arrays(shard.steps))
    write_index(folder, shards)


def _write_shard(folder: Path, shard: Shard[P], arrays: Iterator[mx.array]) -> None:
    """Writes `arrays`, the shard's tensors in order, and waits until the file is on the disk."""
    tensors = [tensor for step in shard.steps for tensor in step.targets]
    with (folder / shard.file).open("xb") as stream:
        stream.write(shard.header)
        for tensor, array in zip(tensors, arrays, strict=True):
            assert tuple(array.shape) == tensor.shape, (tensor, array.shape)
            assert array.dtype == tensor.dtype, (tensor, array.dtype)
            stream.write(raw(array))
        stream.flush()
        os.fsync(stream.fileno())
