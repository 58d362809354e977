"""Small changes of a file; most leave it nearly right, and so get far into a reader."""

from __future__ import annotations

import copy
import json
import random
import struct
from collections.abc import Callable
from typing import Any

import yaml

Mutator = Callable[[bytes, random.Random], bytes]

_NUMBERS = (0, 1, -1, 2, 0.5, -0.0, 1e-320, 1e308, 2**31 - 1, 2**31, 2**63, 2**64, 10**29, -(2**70))
_TEXTS = (
    *("", " ", "0", "x", "\0", "\x1b[31mred\x9b", "a\nb\r\u2028", "../../etc/passwd", "/dev/zero"),
    *("~root", "\ud800", "\udc80", "owner/name", "https://example.com/a", "file:///etc/passwd"),
    *("http://[", "x" * 100_000, "é" * 5000, "(a+)+$", "(.*)*x", "[", "{}", "%s%n", "NaN", "1e999"),
)
_OTHERS = (None, True, False, [], {}, [[]], [None], {"": None}, {"a": {"b": []}})
# As they stand in the file: JSON of Python's own cannot spell them.
_RAW = (
    "NaN",
    "Infinity",
    "-Infinity",
    "1e999",
    "9" * 600,
    "9" * 6000,
    "[" * 5000,
    "-",
    "0x10",
    "'",
)
_MARK = "@raw@"


def odd_value(rng: random.Random) -> Any:
    """A value that is wrong in most places."""
    return copy.deepcopy(rng.choice(rng.choice((_NUMBERS, _TEXTS, _OTHERS))))


def mutate_value(value: Any, rng: random.Random) -> Any:
    """Changes a value parsed from JSON or YAML in one place, in place where possible."""
    places = list(_places(value))
    if not places:
        return odd_value(rng)
    holder, key = rng.choice(places)
    what = rng.randrange(7)
    if what == 0 and isinstance(holder, dict):
        del holder[key]
    elif what == 1 and isinstance(holder, dict):
        holder[str(odd_value(rng))] = holder[key]
    elif what == 2 and isinstance(holder, list):
        holder.insert(key, odd_value(rng))
    elif what == 3 and isinstance(holder, list):
        holder.extend([holder[key]] * rng.choice((1, 3, 1000)))
    elif what == 4 and isinstance(holder[key], int | float):
        holder[key] = rng.choice(
            (holder[key] * 2, holder[key] + 1, -holder[key], holder[key] * 10**9)
        )
    elif what == 5:
        other, its_key = rng.choice(places)
        holder[key] = copy.deepcopy(other[its_key])
    else:
        holder[key] = odd_value(rng)
    return value


def _places(value: Any) -> Any:
    """All pairs of a container and a key of it. Of a long list the first few."""
    items: Any = ()
    if isinstance(value, dict):
        items = list(value.items())[:500]
    elif isinstance(value, list):
        items = list(enumerate(value[:20]))
    for key, inner in items:
        yield value, key
        yield from _places(inner)


def json_file(data: bytes, rng: random.Random) -> bytes:
    if rng.randrange(6) == 0:
        return any_bytes(data, rng)
    value = json.loads(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        value = mutate_value(value, rng)
    if rng.randrange(5) == 0 and (places := list(_places(value))):
        holder, key = rng.choice(places)
        holder[key] = _MARK
    text = json.dumps(value).replace(f'"{_MARK}"', rng.choice(_RAW))
    return _encoded(text, rng)


def yaml_file(data: bytes, rng: random.Random) -> bytes:
    what = rng.randrange(8)
    if what == 0:
        return any_bytes(data, rng)
    if what == 1:
        return data + rng.choice(_YAML)
    value = yaml.safe_load(data)
    for _ in range(rng.choice((1, 1, 2))):
        value = mutate_value(value, rng)
    if what == 2 and (places := list(_places(value))):
        holder, key = rng.choice(places)
        holder[key] = _MARK
    text = json.dumps(value).replace(f'"{_MARK}"', rng.choice((*_RAW, *_YAML_VALUES)))
    return _encoded(text, rng)


def _bomb(levels: int) -> str:
    text = "&a0 [x,x,x,x,x,x,x,x,x]"
    for level in range(1, levels):
        text = f"&a{level} [{text}" + f",*a{level - 1}" * 9 + "]"
    return text


_YAML_VALUES = (
    *(_bomb(3), _bomb(12), "&a [*a]", "*nobody", "2024-13-45", "!!binary '@'", "!!set {a}"),
    *("!!python/object/apply:os.system ['id']", "1:99:99", "0o17", "!!int ''", "!!bool x", "~"),
)
_YAML = (
    b"\n\0",
    b"\n\t- x",
    b"\n<<: *x",
    b"\n---\nb: 1",
    b"\n? [a]\n: 1",
    b"\n%YAML 9.9",
    b"\n<<: [1]",
)


def json_lines(data: bytes, rng: random.Random) -> bytes:
    lines = data.splitlines()
    index = rng.randrange(len(lines))
    lines[index] = json_file(lines[index], rng)
    if rng.randrange(8) == 0:
        return b"[" + b",".join(lines) + rng.choice((b"]", b"", b"]]", b",]"))
    return rng.choice((b"\n", b"\n", b"\r\n", b"\n\n")).join(lines)


def safetensors_file(data: bytes, rng: random.Random) -> bytes:
    """Changes the length, the header, or the bytes."""
    (length,) = struct.unpack("<Q", data[:8])
    header, body = data[8 : 8 + length], data[8 + length :]
    what = rng.randrange(5)
    if what == 0:
        wrong = rng.choice((length - 1, length + 1, length - 8, 0, 2**31, 2**63, 10**8))
        return struct.pack("<Q", wrong % 2**64) + header + body
    if what == 1:
        return data[: rng.randrange(len(data))]
    if what == 2:
        return data + rng.randbytes(rng.choice((1, 8, 1000)))
    if what == 3:
        return any_bytes(data[: 8 + length], rng) + body
    header = json_file(header, rng)
    return struct.pack("<Q", len(header)) + header + body


def any_bytes(data: bytes, rng: random.Random) -> bytes:
    """Changes bytes without knowing what they mean."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at = rng.randrange(len(changed) + 1)
        what = rng.randrange(6)
        if what == 0 and at < len(changed):
            changed[at] ^= 1 << rng.randrange(8)
        elif what == 1:
            del changed[at:]
        elif what == 2:
            del changed[at : at + rng.choice((1, 2, 4, 100))]
        elif what == 3:
            changed[at:at] = rng.randbytes(rng.choice((1, 4, 100)))
        elif what == 4:
            changed[at : at + 4] = rng.choice(
                (b"\xff" * 4, b"\0" * 4, b"\x7f\xff\xff\xff", b"\xff\xff\0\0")
            )
        else:
            changed[at:at] = changed[at : at + rng.choice((10, 1000))]
    return bytes(changed)


def picture_file(data: bytes, rng: random.Random) -> bytes:
    """Changes mostly the first bytes, where the sizes and the kinds are."""
    head = rng.choice((64, 200, len(data)))
    return any_bytes(data[:head], rng) + data[head:]


def _encoded(text: str, rng: random.Random) -> bytes:
    encoding = rng.choice(("utf-8",) * 12 + ("utf-16", "utf-8-sig", "latin-1"))
    return text.encode(encoding, errors="replace")
