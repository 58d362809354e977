"""Validates values from JSON and YAML files against types, and names what is wrong.

A schema is a dataclass; `Annotated` narrows a field further:

    @dataclass(frozen=True)
    class Layer:
        heads: Annotated[int, Aliases("attention_heads", "heads"), Range(min=1)]
        activation: Annotated[str, OneOf("silu")] = "silu"

`checked(Layer, value)` returns a Layer, or raises an error that names the value by its path of
keys, such as `layers[3].heads: expected a whole number of at least 1, not 0`.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import difflib
import enum
import functools
import json
import math
import re
import types
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from llavacot_mlx.bounded_read import NotRegularError, TooLargeError, read_file
from llavacot_mlx.errors import MissingFileError, UserError
from llavacot_mlx.file_kinds import binary_kind, foreign_kind

MAX_JSON_BYTES = 100_000_000
"""Of a JSON file; a tokenizer.json has 17 MB."""
_MAX_JSON_VALUES = 5_000_000  # a tokenizer.json has a million; each takes up to 200 bytes
_MAX_YAML_BYTES = 200_000  # files written by hand have a few hundred bytes
_MAX_YAML_VALUES = 100_000  # with every alias written out
_MAX_DIGITS = 300  # of a whole number, so that it is a float, too
_MAX_SHOWN = 40  # characters of a wrong value that an error repeats
_MAX_NAME = 80  # characters of a key or a name that an error repeats
_INT_LIMIT = 2**63  # what every library takes

# No text: half of a character. Those from DC80 to DCFF stand for bytes of a file's name.
_LONE_SURROGATE = re.compile("[\ud800-\udc7f\udd00-\udfff]")

_FLOAT = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?")

T = TypeVar("T")


@dataclass(frozen=True)
class Range:
    """The numbers that a field accepts; `above` and `below` exclude their bounds."""

    min: float | None = None
    max: float | None = None
    above: float | None = None
    below: float | None = None

    def __contains__(self, value: float) -> bool:
        return (
            (self.min is None or value >= self.min)
            and (self.max is None or value <= self.max)
            and (self.above is None or value > self.above)
            and (self.below is None or value < self.below)
        )

    def __str__(self) -> str:
        if self.min is not None and self.max is not None:
            return f"from {self.min} to {self.max}"
        words = {"of at least": self.min, "of at most": self.max}
        words |= {"above": self.above, "below": self.below}
        return " and ".join(f"{word} {bound}" for word, bound in words.items() if bound is not None)


@dataclass(frozen=True)
class OneOf:
    """The only values that a field accepts."""

    options: tuple[Any, ...]

    def __init__(self, *options: Any) -> None:
        object.__setattr__(self, "options", options)

    def __contains__(self, value: Any) -> bool:
        return any(option == value for option in self.options)  # a value may be unhashable

    def __str__(self) -> str:
        return " or ".join(map(str, self.options))


@dataclass(frozen=True)
class Aliases:
    """The keys that a field may have, the preferred one first; all that are given must agree."""

    keys: tuple[str, ...]

    def __init__(self, *keys: str) -> None:
        object.__setattr__(self, "keys", keys)


PositiveInt = Annotated[int, Range(min=1, max=2**31 - 1)]
PositiveFloat = Annotated[float, Range(above=0)]


@dataclass(frozen=True)
class KeyRules:
    """How a kind of file treats missing and unknown keys."""

    unknown: str | None = ""
    """Ends the error about an unknown key. When it is empty, the error suggests the nearest known
    key; None allows unknown keys."""
    missing: str = ""
    """Ends the error about a missing key."""
    defaults: bool = True
    """Whether a missing key gets the field's default."""
    null_is_missing: bool = False
    dashes: bool = False
    """Whether keys may be written with dashes, like flags."""
    float_texts: bool = False
    """Whether a string such as `1e-5` is accepted as a number: PyYAML reads it as a string."""


_DEFAULT_RULES = KeyRules()


def checked(kind: type[T], value: Any, rules: KeyRules = _DEFAULT_RULES, path: str = "") -> T:
    """Converts `value`, parsed from JSON or YAML, to `kind`.

    `kind` is a dataclass, `tuple[X, ...]`, `dict[K, V]`, a union, an enum, Any, or a plain type;
    `Annotated` adds a Range, OneOf or Aliases. A float may be written as a whole number, and must
    be finite. `path` names the value, such as `search.nodes[3]`; it is empty for the outermost one.

    Raises UserError, which names the key, for a missing or unknown key or a value of another type.
    """
    return cast(T, _value(kind, value, rules, path))


@contextlib.contextmanager
def named(where: object) -> Iterator[None]:
    """Prefixes a UserError from the block with `where`, such as the file."""
    try:
        yield
    except UserError as problem:
        raise UserError(f"{where}: {problem}") from None


def nearest(name: str, known: Collection[str]) -> str | None:
    """The known name closest to `name`; None if none is similar."""
    return next(iter(difflib.get_close_matches(name, known, n=1)), None)


def shown(value: Any) -> str:
    """A value as JSON, truncated to 40 characters: it may be as large as a file."""
    if isinstance(value, str):
        value = value[: _MAX_SHOWN + 1]
    encoder = json.JSONEncoder(ensure_ascii=False, default=str, skipkeys=True, check_circular=False)
    text = ""
    for piece in encoder.iterencode(value):
        text += piece
        if len(text) > _MAX_SHOWN:
            return f"{text[:_MAX_SHOWN]}…"
    return text


def brief(name: object, length: int = _MAX_NAME) -> str:
    """A key or another name from a file, truncated to `length` characters."""
    text = str(name)
    return text if len(text) <= length else f"{text[:length]}…"


def quoted(name: object) -> str:
    """A name from a file as Python writes it, truncated to 80 characters; else as `shown`."""
    if isinstance(name, str):
        return repr(brief(name))
    return repr(name) if name is None or isinstance(name, bool) else shown(name)


def is_text(text: str) -> bool:
    """Whether a string is text: JSON can spell half of a surrogate pair, which is none."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


@functools.cache
def known_keys(kind: Any) -> frozenset[str]:
    """Returns the keys that a dataclass is read from."""
    return frozenset(key for field in _fields(kind) for key in field.keys)


def _value(kind: Any, value: Any, rules: KeyRules, path: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if kind is float and rules.float_texts:
        value = _number(value)
    if origin is Annotated:
        inner, *narrowings = arguments
        limits = [limit for limit in narrowings if isinstance(limit, Range | OneOf)]
        if limits and inner is float and rules.float_texts:
            value = _number(value)
        if limits and not _fits(inner, value):
            raise _unexpected(kind, value, path)
        result = _value(inner, value, rules, path)
        if any(result not in limit for limit in limits):
            raise _unexpected(kind, value, path)
        return result
    if origin in (Union, types.UnionType):
        return _union(arguments, value, rules, path)
    if not _fits(kind, value):
        raise _unexpected(kind, value, path)
    if dataclasses.is_dataclass(kind):
        return _object(kind, value, rules, path)
    if origin is tuple:
        item = arguments[0]
        return tuple(_value(item, each, rules, f"{path}[{n}]") for n, each in enumerate(value))
    if origin is dict:
        before = f"{path}." if path else ""
        return {
            _value(arguments[0], key, rules, f"{before}{brief(key)}"): _value(
                arguments[1], each, rules, f"{before}{brief(key)}"
            )
            for key, each in value.items()
        }
    return kind(value) if isinstance(kind, type) and issubclass(kind, enum.Enum | float) else value


def _union(options: tuple[Any, ...], value: Any, rules: KeyRules, path: str) -> Any:
    if value is None and type(None) in options:
        return None
    options = tuple(option for option in options if option is not type(None))
    if rules.float_texts and float in options and str not in options:
        value = _number(value)
    fitting = [option for option in options if _fits(option, value)] or options
    if len(options) > 1 and fitting == options:
        raise _unexpected(Union[options], value, path)  # noqa: UP007
    return _value(fitting[0], value, rules, path)


def _number(value: Any) -> Any:
    is_float = isinstance(value, str) and _FLOAT.fullmatch(value)
    return float(value) if is_float else value


def _fits(kind: Any, value: Any) -> bool:
    """Returns whether a value is of the kind; its elements are not checked."""
    origin = get_origin(kind)
    if origin is Annotated:
        return _fits(get_args(kind)[0], value)
    if origin in (Union, types.UnionType):
        return any(_fits(option, value) for option in get_args(kind))
    if kind is Any:
        return True
    if origin is tuple:
        return isinstance(value, list | tuple)
    if dataclasses.is_dataclass(kind) or origin is dict:
        return isinstance(value, dict)
    if issubclass(kind, enum.Enum):
        return value in list(kind)
    if kind is float:
        return type(value) in (int, float) and _is_finite(value)
    if kind is int:
        return type(value) is int and -_INT_LIMIT <= value < _INT_LIMIT
    if kind is str:
        return type(value) is str and not _LONE_SURROGATE.search(value)
    return type(value) is kind


def _is_finite(value: float) -> bool:
    try:
        return math.isfinite(value)
    except OverflowError:  # a whole number beyond all floats
        return False


def _object(kind: Any, value: dict[Any, Any], rules: KeyRules, path: str) -> Any:
    before = f"{path}." if path else ""
    if rules.dashes:
        value = {str(key).replace("-", "_"): each for key, each in value.items()}
    fields = _fields(kind)
    if rules.unknown is not None:
        for key, each in value.items():
            if key not in known_keys(kind) and not (each is None and rules.null_is_missing):
                raise UserError(
                    f"{before}{brief(key)}: unknown key{rules.unknown or _hint(key, fields)}"
                )
    found = {}
    for field in fields:
        given = [
            key
            for key in field.keys
            if key in value and not (rules.null_is_missing and value[key] is None)
        ]
        for key in given[1:]:
            if value[key] != value[given[0]]:
                raise UserError(
                    f"{before}{key} is {shown(value[key])}, but {given[0]} is "
                    f"{shown(value[given[0]])}"
                )
        if given:
            found[field.name] = _value(field.kind, value[given[0]], rules, before + given[0])
        elif field.is_needed or not rules.defaults:
            raise UserError(f"{before}{' or '.join(field.keys)} is missing{rules.missing}")
    return kind(**found)


def _hint(key: Any, fields: tuple[_Field, ...]) -> str:
    names = [field.keys[0] for field in fields]
    close = nearest(brief(key), names)
    return f"; did you mean {close}?" if close else f"; there are {', '.join(names)}"


@dataclass(frozen=True)
class _Field:
    name: str
    kind: Any
    keys: tuple[str, ...]
    is_needed: bool


@functools.cache
def _fields(kind: Any) -> tuple[_Field, ...]:
    hints = get_type_hints(kind, include_extras=True)
    found = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        aliases = [each for each in get_args(hint) if isinstance(each, Aliases)]
        keys = aliases[0].keys if aliases else (field.name,)
        missing = (field.default, field.default_factory)
        is_needed = all(each is dataclasses.MISSING for each in missing)
        found.append(_Field(field.name, hint, keys, is_needed))
    return tuple(found)


def _unexpected(kind: Any, value: Any, path: str) -> UserError:
    return UserError(f"{path}{path and ': '}expected {_described(kind)}, not {shown(value)}")


_TYPE_NAMES = {str: "a text", int: "a whole number", float: "a number", bool: "true or false"}


def _described(kind: Any) -> str:
    """Describes a kind in words, such as `a whole number of at least 1`."""
    origin, arguments = get_origin(kind), get_args(kind)
    if origin is Annotated:
        inner, *narrowings = arguments
        limits = [str(each) for each in narrowings if isinstance(each, Range)]
        options = [str(each) for each in narrowings if isinstance(each, OneOf)]
        return options[0] if options else " ".join([_described(inner), *limits])
    if origin in (Union, types.UnionType):
        return " or ".join(_described(option) for option in arguments if option is not type(None))
    if origin is tuple:
        return "a list"
    if origin is dict:
        return "an object"
    if dataclasses.is_dataclass(kind):
        described: Any = kind
        keys = [field.keys[0] for field in _fields(described)]
        return f"an object with {'keys such as ' if len(keys) > 3 else ''}{', '.join(keys[:3])}"
    if issubclass(kind, enum.Enum):
        return " or ".join(str(member.value) for member in kind)
    return _TYPE_NAMES[kind]


def read_json(file: Path, hint: str = "") -> Any:
    """Reads a JSON file; `hint` ends the error when the file is missing.

    Raises UserError when the file cannot be read, is too large, or is not JSON in UTF-8.
    """
    return _parsed(file, "JSON", parse_json, read_bytes(file, MAX_JSON_BYTES, hint))


def read_yaml(file: Path) -> Any:
    """Reads a YAML file, of which only the types that JSON has are accepted.

    Raises UserError when the file cannot be read, is too large, or is not YAML in UTF-8.
    """
    return _parsed(file, "YAML", _parse_yaml, read_bytes(file, _MAX_YAML_BYTES, ""))


def parse_json(text: str, *, constants: bool = True) -> Any:
    """Parses JSON; without `constants`, NaN and Infinity are errors, as the standard has it.

    Raises ValueError, also for a whole number of hundreds of digits, and RecursionError.
    """
    if text.count(",") + text.count("[") + text.count("{") > _MAX_JSON_VALUES:
        raise ValueError(f"more than {_MAX_JSON_VALUES} values")
    constant = None if constants else _refuse_constant
    return json.loads(text, parse_int=_parse_int, parse_constant=constant)


def _parse_int(digits: str) -> int:
    if len(digits) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(digits)} digits")
    return int(digits)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is not a number in JSON")


def _parse_yaml(text: str) -> Any:
    import yaml  # slow to import, and most commands read no YAML

    try:
        loader = _yaml_loader()(text)
        node = loader.get_single_node()
        if node is None:
            return None
        if _expanded(node, {}) > _MAX_YAML_VALUES:
            raise ValueError(f"its aliases make more than {_MAX_YAML_VALUES} values")
        return loader.construct_document(node)
    except yaml.YAMLError as problem:
        raise ValueError(problem) from None
    except (KeyError, IndexError, AttributeError):  # what PyYAML stumbles over
        raise ValueError("a tag that its value does not fit") from None


@functools.cache
def _yaml_loader() -> Any:
    """PyYAML's safe loader, reduced to JSON's types: a date is a text, and no set or bytes are
    made."""
    import yaml

    names = ("null", "bool", "int", "float", "str", "seq", "map", "merge")
    kept = {f"tag:yaml.org,2002:{name}" for name in names}
    base: Any = yaml.SafeLoader

    class JSONTypesLoader(base):
        yaml_implicit_resolvers = {  # noqa: RUF012
            first: [(tag, pattern) for tag, pattern in resolvers if tag in kept]
            for first, resolvers in base.yaml_implicit_resolvers.items()
        }
        yaml_constructors = {  # noqa: RUF012
            tag: make for tag, make in base.yaml_constructors.items() if tag in kept or tag is None
        }

        def construct_yaml_int(self, node: Any) -> int:
            if len(digits := self.construct_scalar(node)) > _MAX_DIGITS:
                raise ValueError(f"a number of {len(digits)} digits")
            return super().construct_yaml_int(node)

    JSONTypesLoader.add_constructor("tag:yaml.org,2002:int", JSONTypesLoader.construct_yaml_int)
    return JSONTypesLoader


def _expanded(node: Any, known: dict[int, float]) -> float:
    """The number of values below a YAML node, with every alias written out; infinite in a loop."""
    if id(node) in known:
        return known[id(node)]
    known[id(node)] = math.inf  # while it is being counted
    count = 1.0
    if isinstance(node.value, list):
        for each in node.value:  # a mapping has pairs
            parts = each if isinstance(each, tuple) else (each,)
            count += sum(_expanded(part, known) for part in parts)
    known[id(node)] = count
    return count


def decode_text(data: bytes) -> str:
    """Decodes UTF-8, without the byte order mark that some editors put first.

    Raises ValueError that says what is wrong, and what to do about a text in UTF-16 or UTF-32.
    """
    if encoding := wide_encoding(data):
        raise ValueError(
            f"it is {encoding} text: save it as UTF-8, or run: iconv -f {encoding} -t UTF-8"
        )
    try:
        return data.removeprefix(codecs.BOM_UTF8).decode()
    except UnicodeDecodeError:
        raise ValueError("not UTF-8 text") from None


def wide_encoding(start: bytes) -> str | None:
    """Returns `UTF-16` or `UTF-32` if a text begins in one, with a byte order mark or without."""
    if start.startswith((codecs.BOM_UTF32_LE, codecs.BOM_UTF32_BE)):
        return "UTF-32"
    if start.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        return "UTF-16"
    # JSON, YAML and CSV begin with two characters of ASCII.
    zeros = tuple(byte == 0 for byte in start[:4])
    encodings: dict[tuple[bool, ...], str] = {
        (False, True, False, True): "UTF-16LE",
        (True, False, True, False): "UTF-16BE",
        (False, True, True, True): "UTF-32LE",
        (True, True, True, False): "UTF-32BE",
    }
    return encodings.get(zeros)


def _parsed(file: Path, language: str, parse: Callable[[str], Any], data: bytes) -> Any:
    if kind := foreign_kind(data):
        raise UserError(f"{file} is {kind}")
    if kind := binary_kind(data):
        raise UserError(f"{file} is {kind}, not {language}")
    try:
        return parse(decode_text(data))
    except RecursionError:
        reason = "nested too deep"
    except ValueError as problem:
        reason = " ".join(str(problem).split())
    raise UserError(f"{file} is not valid {language}: {reason}")


def read_bytes(file: Path, max_bytes: int, hint: str = "") -> bytes:
    """Reads a file of a limited size; `hint` ends the error when it is missing.

    Raises UserError when it cannot be read or is too large, and MissingFileError.
    """
    try:
        return read_file(file, max_bytes)
    except FileNotFoundError:
        raise MissingFileError(f"{file} is missing{hint and ': '}{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder, not a file") from None
    except (NotRegularError, TooLargeError) as problem:
        raise UserError(f"{file} is {problem.strerror}") from None
    except OSError as problem:
        raise UserError(f"{file} cannot be read: {problem.strerror}") from None
    except ValueError as problem:  # a NUL in the name
        raise UserError(f"{file}: {problem}") from None
