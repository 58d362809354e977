"""Which checkpoint a folder holds, told from a sample of its weights.

An adapter is of use on one base alone, and on another of the same sizes it would do harm without
an error. A checkpoint of 43 GB is told apart by a few megabytes of it.
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

    The sample is the first 4096 bytes and as many from the middle. Names and layout are ours, so
    that a checkpoint and its conversion, sharded or not, have the same hash as long as no weight's
    type is changed. Raises UserError when the folder's weights cannot be read.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(_by_our_names(folder).items()):
        shape, sample = entry.shape, _sample
        if name == PATCH_EMBEDDING and is_channels_first(entry.name) and len(shape) == 4:
            shape, sample = (shape[0], *shape[2:], shape[1]), _turned_sample
        digest.update(json.dumps([name, entry.dtype, shape]).encode())
        digest.update(sample(entry))
    return digest.hexdigest()


def lineage_hash(folder: Path) -> str:
    """SHA-256, in hex, over the norms and gates as bfloat16: the same for a checkpoint in any bits.

    They are never quantized. Versions in float32, bfloat16 and quantized ones of either agree; one
    that went through float16 may not, because it was rounded twice. Two checkpoints that differ in
    none of them, such as fine-tunes of one model that left them frozen, are not told apart.
    Raises UserError when the folder's weights cannot be read.
    """
    digest = hashlib.sha256()
    for name, entry in sorted(_by_our_names(folder).items()):
        if _is_norm_or_gate(name) and entry.dtype in FLOATS:
            digest.update(name.encode())
            digest.update(_as_bfloat16(_read(entry, 0, entry.nbytes), entry.dtype))
    return digest.hexdigest()


def _by_our_names(folder: Path) -> dict[str, TensorEntry]:
    named = ((canonical_name(name), entry) for name, entry in list_tensors(folder).items())
    return {name: entry for name, entry in named if name is not None}


def _is_norm_or_gate(name: str) -> bool:
    module, _, leaf = name.rpartition(".")
    return "gate" in leaf or "norm" in module.rpartition(".")[2]


def _sample(entry: TensorEntry) -> bytes:
    middle = entry.nbytes // 2
    return _read(entry, 0, _SAMPLE_BYTES) + _read(entry, middle, _SAMPLE_BYTES)


def _turned_sample(entry: TensorEntry) -> bytes:
    """Of a convolution in PyTorch's layout, the sample of the same in MLX's."""
    if entry.dtype not in FLOATS:
        return _sample(entry)
    stored = np.frombuffer(_read(entry, 0, entry.nbytes), np.uint8)
    values = stored.reshape(*entry.shape, ELEMENT_TYPES[entry.dtype].bits // 8)
    data = values.transpose(0, 2, 3, 1, 4).tobytes()
    middle = len(data) // 2
    return data[:_SAMPLE_BYTES] + data[middle : middle + _SAMPLE_BYTES]


def _read(entry: TensorEntry, start: int, count: int) -> bytes:
    """At most `count` bytes of a tensor's data, from byte `start` of it."""
    try:
        with entry.file.open("rb") as stream:
            stream.seek(entry.start + start)
            return stream.read(min(count, entry.nbytes - start))
    except OSError as problem:
        raise UserError(f"{entry.file} cannot be read: {problem.strerror}") from None


def _as_bfloat16(data: bytes, dtype: str) -> bytes:
    """Rounded to nearest, ties to even, as MLX and PyTorch do."""
    if dtype == "BF16":
        return data
    values = np.frombuffer(data, "<f2" if dtype == "F16" else "<f4").astype("<f4")
    bits = values.view("<u4")
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype("<u2").tobytes()
