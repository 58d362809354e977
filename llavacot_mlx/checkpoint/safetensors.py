"""Reads and validates the headers of safetensors files.

MLX reads the data. The headers are checked first, so that a truncated file, a wrong header or a
wrong index gives one clear error instead of a crash or a wrong tensor.
"""

from __future__ import annotations

import math
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from llavacot_mlx.bounded_read import open_regular
from llavacot_mlx.checked import (
    KeyRules,
    Range,
    brief,
    checked,
    decode_text,
    named,
    parse_json,
    quoted,
    read_json,
    shown,
)
from llavacot_mlx.checkpoint.dtypes import ELEMENT_TYPES
from llavacot_mlx.checkpoint.folder_files import files_in
from llavacot_mlx.checkpoint.weight_files import (
    INDEX_NAME,
    SINGLE_NAME,
    WeightFiles,
    choose_weight_files,
)
from llavacot_mlx.checkpoint.weight_names import canonical_name
from llavacot_mlx.errors import UserError
from llavacot_mlx.file_kinds import foreign_kind

_MAX_HEADER_BYTES = 100_000_000  # the format's own limit
_KIND_BYTES = 520
_MAX_DIMENSIONS = 8  # no weight has more than four


@dataclass(frozen=True)
class TensorEntry:
    """Where a tensor is stored, as its file's header says; checked against the file's size."""

    name: str
    file: Path
    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    start: int
    """Offset of its first byte in the file."""


def read_header(file: Path) -> dict[str, TensorEntry]:
    """Reads the header of a safetensors file: its tensors by name, without their data.

    Raises UserError when the file is shorter than its header says, when the header is not a table
    of tensors, or when an entry's bytes do not match its shape, lie outside the file or overlap.
    """
    try:
        with open_regular(file) as stream:
            size = os.fstat(stream.fileno()).st_size
            start = stream.read(_KIND_BYTES)
            if not start.startswith(b"{", 8) and (kind := foreign_kind(start)):
                raise UserError(f"{file} is {kind}")
            if len(start) < 8:
                raise UserError(f"{file} is truncated: it holds {size} bytes; download it again")
            (length,) = struct.unpack("<Q", start[:8])
            if length > min(_MAX_HEADER_BYTES, size - 8):
                raise UserError(
                    f"{file} is truncated or not a safetensors file: its header should take "
                    f"{length} bytes and the file holds {size}; download it again"
                )
            stream.seek(8)
            raw = stream.read(length)
    except FileNotFoundError:
        raise UserError(f"{file} is missing; download it again") from None
    except OSError as problem:
        raise UserError(f"{file} cannot be read: {problem.strerror}") from None
    try:
        table = parse_json(decode_text(raw))
        if not isinstance(table, dict):
            raise ValueError("no object")
    except (ValueError, RecursionError):
        raise UserError(f"{file}: the header is not valid JSON; download it again") from None
    table.pop("__metadata__", None)
    entries = {name: _entry(file, name, fields, 8 + length) for name, fields in table.items()}
    _check_extents(file, table, size - 8 - length)
    return entries


_Count = Annotated[int, Range(min=0)]


@dataclass(frozen=True)
class _Entry:
    """The header's entry for a tensor."""

    dtype: str
    shape: tuple[_Count, ...]
    data_offsets: tuple[_Count, ...]


def _entry(file: Path, name: str, fields: object, data: int) -> TensorEntry:
    try:
        entry = checked(_Entry, fields, KeyRules(unknown=None))
        start, end = entry.data_offsets
        if start > end:
            raise ValueError("data_offsets run backwards")
    except (UserError, ValueError) as problem:
        raise UserError(
            f"{file}: the header's entry for {quoted(name)} is malformed: {problem}"
        ) from None
    dtype, shape = entry.dtype, entry.shape
    if dtype not in ELEMENT_TYPES:
        raise UserError(f"{file}: {quoted(name)} is of the unknown type {quoted(dtype)}")
    if len(shape) > _MAX_DIMENSIONS:
        raise UserError(f"{file}: {quoted(name)} has {len(shape)} dimensions")
    nbytes = math.prod(shape) * ELEMENT_TYPES[dtype].bits // 8
    if nbytes != end - start:
        raise UserError(
            f"{file}: the header lies: {quoted(name)} of shape {shown(shape)} and type {dtype} "
            f"takes {nbytes} bytes, but {end - start} are set aside for it"
        )
    return TensorEntry(name, file, dtype, shape, nbytes, data + start)


def _check_extents(file: Path, table: dict[str, dict], available: int) -> None:
    position = 0
    extents = sorted((fields["data_offsets"], name) for name, fields in table.items())
    for (start, end), name in extents:
        if start != position:
            raise UserError(
                f"{file}: the header lies: the data of {quoted(name)} overlaps or has a gap"
            )
        position = end
    if position > available:
        raise UserError(
            f"{file} is truncated: its tensors take {position} bytes and {available} are there; "
            "download it again"
        )
    if position < available:  # the format allows none; with a wrong length all values are shifted
        raise UserError(
            f"{file}: the header lies: {available - position} bytes follow its last tensor; "
            "download it again"
        )


def list_tensors(folder: Path) -> dict[str, TensorEntry]:
    """All tensors of a checkpoint folder, by their names in the files.

    `find_weight_files` says which files count; where an index does, they must hold what it says.
    Nothing else is ever opened: pickles (`.bin`, `.pt`) can run code.
    """
    chosen = find_weight_files(folder)
    if chosen.is_indexed:
        return _list_indexed(folder, read_weight_map(folder / INDEX_NAME))
    tensors: dict[str, TensorEntry] = {}
    for name in chosen.names:
        for tensor, entry in read_header(folder / name).items():
            if tensor in tensors:
                raise UserError(
                    f"{quoted(tensor)} is both in {tensors[tensor].file} and in {entry.file}"
                )
            tensors[tensor] = entry
    if chosen.names == (SINGLE_NAME,) and chosen.note is not None:
        _check_whole(folder, tensors)
    return tensors


def find_weight_files(folder: Path) -> WeightFiles:
    """The files of a folder that are the model. Raises UserError as `choose_weight_files` does."""
    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder")
    index_file = folder / INDEX_NAME
    weight_map = read_weight_map(index_file) if index_file.exists() else None
    found = [file.name for file in files_in(folder, ".safetensors")]
    if not found and weight_map is None and (pickles := files_in(folder, ".bin", ".pt", ".pth")):
        raise UserError(
            f"{folder} holds only pickled weights ({pickles[0].name}), which can run code when "
            "read; get the safetensors version of this checkpoint"
        )
    return choose_weight_files(found, weight_map, folder)


def weights_note(folder: Path) -> str | None:
    """What a person should know about the choice of weight files; None without weights, too."""
    try:
        return find_weight_files(folder).note
    except UserError:
        return None  # whoever loads the model says what is wrong


def _check_whole(folder: Path, single: Mapping[str, TensorEntry]) -> None:
    """Refuses a `model.safetensors` that lacks what an index beside it has in other files."""
    index_file = folder / INDEX_NAME
    if not index_file.exists():
        return
    weight_map = read_weight_map(index_file)
    if not all((folder / shard).exists() for shard in weight_map.values()):
        return
    here = {canonical_name(name) for name in single}
    for name, shard in weight_map.items():
        if canonical_name(name) not in here:
            raise UserError(
                f"{folder}: {SINGLE_NAME} lacks {quoted(name)}, which {INDEX_NAME} finds in "
                f"{brief(shard)}: two models lie in one folder; remove the files of one of them"
            )


@dataclass(frozen=True)
class _Index:
    weight_map: dict[str, str] = field(default_factory=dict)


def read_weight_map(index_file: Path) -> dict[str, str]:
    """The file of each tensor, by the tensor's name, as an index file lists them.

    An empty file or object lists none. Raises UserError when the index is missing or damaged.
    """
    if index_file.is_file() and index_file.stat().st_size == 0:
        return {}
    index = read_json(index_file)
    with named(index_file):
        return checked(_Index, index, KeyRules(unknown=None, null_is_missing=True)).weight_map


def _list_indexed(folder: Path, weight_map: Mapping[str, str]) -> dict[str, TensorEntry]:
    index_file = folder / INDEX_NAME
    headers = {shard: read_header(folder / shard) for shard in sorted(set(weight_map.values()))}
    for name, shard in weight_map.items():
        if name not in headers[shard]:
            raise UserError(
                f"{index_file} says that {quoted(name)} is in {shard}, but it is not there"
            )
    for shard, entries in headers.items():
        for name in entries:
            if weight_map.get(name) != shard:
                raise UserError(
                    f"{folder / shard} holds {quoted(name)}, which {index_file} does not say"
                )
    return {name: headers[shard][name] for name, shard in weight_map.items()}
