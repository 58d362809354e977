"""Dataclasses from plain JSON values, with every key and type checked."""

from __future__ import annotations

import dataclasses
import enum
import functools
import json
import math
import types
from typing import Any, Union, get_args, get_origin, get_type_hints

from .errors import UserError

_SAID = {str: "a text", int: "a whole number", bool: "true or false", dict: "an object"}


def record_of(kind: Any, value: Any, where: str) -> Any:
    """`value` as `kind`: a dataclass, a tuple of one type, X | None, an enum, or a plain type.

    `where` names the value, such as `search.nodes[3]`; it is empty for the outermost one. Raises
    UserError that names the key which is missing, unknown, or not of its type.
    """
    origin = get_origin(kind)
    if dataclasses.is_dataclass(kind):
        return _dataclass(kind, value, where)
    if origin in (Union, types.UnionType):
        (inner,) = (option for option in get_args(kind) if option is not type(None))
        return None if value is None else record_of(inner, value, where)
    if origin is tuple:
        item = get_args(kind)[0]
        if not isinstance(value, list):
            raise _unexpected(where, "a list", value)
        return tuple(record_of(item, entry, f"{where}[{n}]") for n, entry in enumerate(value))
    kind = origin or kind
    if issubclass(kind, enum.Enum):
        if value not in list(kind):
            raise _unexpected(where, " or ".join(str(member.value) for member in kind), value)
        return kind(value)
    if kind is float:
        if type(value) not in (int, float) or not math.isfinite(value):
            raise _unexpected(where, "a number", value)
        return float(value)
    if type(value) is not kind:
        raise _unexpected(where, _SAID[kind], value)
    return value


def _dataclass(kind: Any, value: Any, where: str) -> Any:
    if not isinstance(value, dict):
        raise _unexpected(where or "the whole", "an object", value)
    types_of = _types(kind)
    before = f"{where}." if where else ""
    for key in value:
        if key not in types_of:
            raise UserError(f"{before}{key}: unknown key; a newer llavacot may have written it")
    for key in types_of:
        if key not in value:
            raise UserError(f"{before}{key} is missing; an older llavacot may have written it")
    return kind(**{key: record_of(of, value[key], before + key) for key, of in types_of.items()})


@functools.cache
def _types(kind: Any) -> dict[str, Any]:
    hints = get_type_hints(kind)
    return {field.name: hints[field.name] for field in dataclasses.fields(kind)}


def _unexpected(where: str, expected: str, value: Any) -> UserError:
    said = json.dumps(value, ensure_ascii=False)
    return UserError(f"{where}: expected {expected}, not {said[:40]}{'…' * (len(said) > 40)}")
