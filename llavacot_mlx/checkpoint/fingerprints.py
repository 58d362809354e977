"""Hashes that identify a checkpoint by a sample of its weights.

An adapter works only on its own base: on another of the same shapes it would give wrong results
without an error. A few megabytes of a 43 GB checkpoint are enough to identify it.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np

from llavacot_mlx.checkpoint.dtypes import ELEMENT_TYPES, FLOATS
from llavacot_mlx.checkpoint.safetensors import TensorEntry, list_tensors
from llavacot_mlx.checkpoint.weight_names import PATCH_EMBEDDING, canonical_name, is_channels_first
from llavacot_mlx.errors import UserError

_SAMPLE_BYTES = 4096


def base_hash(folder: Path) -> str:
    """SHA-256, in hex, over name, type, shape and a sample of the bytes of every tensor.

    The sample is the first 4096 bytes and 4096 bytes from the middle. Names and layout are
    canonical, so that a checkpoint and its conversion, sharded or not, have the same hash unless
    a weight's type changes. Raises UserError when the folder's weights cannot be read.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(_by_canonical_name(folder).items()):
        shape, sample = entry.shape, _sample
        if name == PATCH_EMBEDDING and is_channels_first(entry.name) and len(shape) == 4:
            shape, sample = (shape[0], *shape[2:], shape[1]), _channels_last_sample
        digest.update(json.dumps([name, entry.dtype, shape]).encode())
        digest.update(sample(entry))
    return digest.hexdigest()


def lineage_hash(folder: Path) -> str:
    """SHA-256, in hex, over the norms and gates as bfloat16: equal for all bit widths.

    Norms and gates are never quantized. Versions in float32 and bfloat16, and quantizations of
    either, have the same hash; a version converted through float16 may not, because its values were
    rounded twice. Checkpoints with equal norms and gates, such as fine-tunes of one model that kept
    them frozen, are not distinguished.
    Raises UserError when the folder's weights cannot be read.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(_by_canonical_name(folder).items()):
        if _is_norm_or_gate(name) and entry.dtype in FLOATS:
            digest.update(name.encode())
            digest.update(_as_bfloat16(_read(entry, 0, entry.nbytes), entry.dtype))
    return digest.hexdigest()


def _by_canonical_name(folder: Path) -> dict[str, TensorEntry]:
    named = ((canonical_name(name), entry) for name, entry in list_tensors(folder).items())
    return {name: entry for name, entry in named if name is not None}


def _is_norm_or_gate(name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return "gate" in leaf or "norm" in module.rpartition(".")[2]


def _sample(entry: TensorEntry) -> bytes:
    middle = entry.nbytes // 2
    return _read(entry, 0, _SAMPLE_BYTES) + _read(entry, middle, _SAMPLE_BYTES)


def _channels_last_sample(entry: TensorEntry) -> bytes:
    """The sample of a convolution stored in PyTorch's layout, as it would be in MLX's layout."""
    if entry.dtype not in FLOATS:
        return _sample(entry)
    stored = np.frombuffer(_read(entry, 0, entry.nbytes), np.uint8)
    values = stored.reshape(*entry.shape, ELEMENT_TYPES[entry.dtype].bits // 8)
    data = values.transpose(0, 2, 3, 1, 4).tobytes()
    middle = len(data) // 2
    return data[:_SAMPLE_BYTES] + data[middle : middle + _SAMPLE_BYTES]


def _read(entry: TensorEntry, start: int, count: int) -> bytes:
    """Reads up to `count` bytes of a tensor's data, from byte `start` on."""
    try:
        with entry.file.open("rb") as stream:
            stream.seek(entry.start + start)
            return stream.read(min(count, entry.nbytes - start))
    except OSError as problem:
        raise UserError(f"{entry.file} cannot be read: {problem.strerror}") from None


def _as_bfloat16(data: bytes, dtype: str) -> bytes:
    """Converts to bfloat16, rounding to nearest and ties to even, as MLX and PyTorch do."""
    if dtype == "BF16":
        return data
    values = np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype("<f4")
    bits = values.view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
