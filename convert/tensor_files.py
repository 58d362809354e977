"""Weight files filled from arrays that come one by one, so that one at a time is in memory.

`shards.ShardFile` is for conversions, which go on after a crash; these are written at one go.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import mlx.core as mx

from llavacot_mlx.convert.blocks import raw
from llavacot_mlx.convert.shards import P, Shard, split_into_shards, write_index


def write_weights(
    folder: Path,
    steps: Sequence[P],
    arrays: Callable[[Sequence[P]], Iterator[mx.array]],
    made_for: str = "mlx",
) -> None:
    """Writes what the steps plan, and the index; `arrays` makes the tensors of some of the steps.

    `made_for` is what the files say of themselves: "mlx", or "pt" for PyTorch.
    """
    shards = split_into_shards(steps, made_for)
    for shard in shards:
        _write_shard(folder, shard, arrays(shard.steps))
    write_index(folder, shards)


def _write_shard(folder: Path, shard: Shard[P], arrays: Iterator[mx.array]) -> None:
    """Writes `arrays`, which must come in the order of the shard's tensors and be as planned.

    The file is on disk when this returns.
    """
    tensors = [tensor for step in shard.steps for tensor in step.targets]
    with (folder / shard.file).open("xb") as stream:
        stream.write(shard.header)
        for tensor, array in zip(tensors, arrays, strict=True):
            assert tuple(array.shape) == tensor.shape, (tensor, array.shape)
            assert array.dtype == tensor.dtype, (tensor, array.dtype)
            stream.write(raw(array))
        stream.flush()
        os.fsync(stream.fileno())
