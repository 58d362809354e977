"""Which of a folder's safetensors files are the model, on the disk and on the hub."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.checked import brief, quoted
from llavacot_mlx.checkpoint.adapter_config import WEIGHTS_NAME as ADAPTER_NAME
from llavacot_mlx.errors import MissingFileError, UserError

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
PEFT_WEIGHTS_NAME = "adapter_model.safetensors"

_SHARD = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.safetensors")
_SHOWN = 2  # names of files that a message lists


@dataclass(frozen=True)
class WeightFiles:
    """The files that are the model."""

    names: tuple[str, ...]
    is_indexed: bool
    """Whether the index says which tensors are in them."""
    note: str | None = None
    """What a person should know about the choice."""


def choose_weight_files(
    found: Collection[str], weight_map: Mapping[str, str] | None, where: object
) -> WeightFiles:
    """Chooses among the safetensors files of a folder, as transformers does.

    `found` are the names of all of them, `weight_map` is the content of the index; None without
    one. `where`, the folder or the id, is named in errors.

    - A whole `model.safetensors` comes before the shards of an index that does not name it.
    - An index none of whose shards is there is stale, and the other files count.
    - Without an index all files count, but for adapters and copies in another format.

    Raises UserError when there are no weights, or some of them are missing.
    """
    usable = sorted(name for name in found if name not in (ADAPTER_NAME, PEFT_WEIGHTS_NAME))
    if weight_map is None:
        return _without_index(usable, where)
    shards = sorted(set(weight_map.values()))
    for shard in shards:
        if Path(shard).name != shard or not shard.endswith(".safetensors"):
            raise UserError(
                f"{where}: {INDEX_NAME} names {quoted(shard)}: only safetensors files beside "
                "the index are read"
            )
    missing = [shard for shard in shards if shard not in usable]
    others = [name for name in usable if name not in shards]
    if len(missing) == len(shards):
        if not others:
            said = f"names {_listed(shards)}, of which none is there" if shards else "names none"
            raise UserError(f"{where} holds no weights: {INDEX_NAME} {said}; download them again")
        chosen = _without_index(others, where)
        said = f"names {_listed(shards)}, of which none is there" if shards else "names no weights"
        note = f"{where}: {INDEX_NAME} is stale: it {said}; {_listed(chosen.names)} counts"
        return WeightFiles(chosen.names, False, note)
    if missing:
        rest = f"; or, if {_listed(others)} is the whole model, remove the index" if others else ""
        raise MissingFileError(
            f"{Path(str(where)) / brief(missing[0])} is missing, but {INDEX_NAME} names it: "
            f"download it again{rest}"
        )
    if SINGLE_NAME in others:
        note = (
            f"{where}: {SINGLE_NAME} is used, as transformers does; {INDEX_NAME} names "
            f"{_listed(shards)} instead: remove the ones that you do not mean"
        )
        return WeightFiles((SINGLE_NAME,), False, note)
    return WeightFiles(tuple(shards), True)


def _without_index(names: list[str], where: object) -> WeightFiles:
    if not names:
        raise UserError(f"{where} holds no weights (*.safetensors)")
    if SINGLE_NAME in names:
        copies = [name for name in names if _is_a_copy(name)]
        rest = tuple(name for name in names if name not in copies)
        note = f"{where}: {SINGLE_NAME} is used, and {_listed(copies)} is not" if copies else None
        return WeightFiles(rest, False, note)
    if any(_SHARD.fullmatch(name) for name in names):
        names = [name for name in names if not name.startswith("consolidated")]
    for match in filter(None, map(_SHARD.fullmatch, names)):
        stem, _, count = match.groups()
        for number in range(1, int(count) + 1):
            shard = f"{stem}-{number:05d}-of-{count}.safetensors"
            if shard not in names:
                raise MissingFileError(
                    f"{Path(str(where)) / shard} is missing: there are {count.lstrip('0')} parts; "
                    "download it again"
                )
    return WeightFiles(tuple(names), False)


def _is_a_copy(name: str) -> bool:
    """Whether a file beside `model.safetensors` holds the same model once more."""
    return _SHARD.fullmatch(name) is not None or name.startswith("consolidated")


def _listed(names: Collection[str]) -> str:
    first, rest = [brief(name) for name in list(names)[:_SHOWN]], len(names) - _SHOWN
    return ", ".join(first) + (f" and {rest} more" if rest > 0 else "")
