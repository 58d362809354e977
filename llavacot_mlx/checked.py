"""Plain values out of JSON and YAML files, read with one clear error for whatever is wrong."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from .errors import UserError

_MAX_JSON_BYTES = 100_000_000  # a tokenizer.json has 17 MB
_MAX_YAML_BYTES = 1_000_000  # what people write by hand has a few hundred


def read_json(file: Path, hint: str = "") -> Any:
    """The parsed content of a JSON file; `hint` ends the error when the file is missing.

    Raises UserError when the file cannot be read, is too large, or is not JSON in UTF-8.
    """
    data = _read_bytes(file, _MAX_JSON_BYTES, hint)
    return _parsed(file, "JSON", json.loads, data)


def read_yaml(file: Path) -> Any:
    """The parsed content of a YAML file, in which `1e-5` is a number.

    Raises UserError when the file cannot be read, is too large, or is not YAML in UTF-8.
    """
    return _parsed(file, "YAML", parse_yaml, _read_bytes(file, _MAX_YAML_BYTES, ""))


def parse_yaml(text: str) -> Any:
    """The value of a YAML text, in which `1e-5` is a number, as in JSON and YAML 1.2.

    Raises ValueError when it is not YAML.
    """
    import yaml  # only commands that are given such a file pay for it

    class Loader(yaml.SafeLoader):
        """YAML 1.1 as PyYAML has it wants a dot in a float, and a sign in its exponent."""

    Loader.add_implicit_resolver(
        "tag:yaml.org,2002:float",
        re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+\Z"),
        list("-+.0123456789"),
    )
    try:
        return yaml.load(text, Loader)
    except yaml.YAMLError as problem:
        raise ValueError(problem) from None


def _parsed(file: Path, language: str, parse: Callable[[str], Any], data: bytes) -> Any:
    try:
        return parse(data.decode())
    except UnicodeDecodeError:
        said = "not UTF-8 text"
    except RecursionError:
        said = "nested too deep"
    except ValueError as problem:
        said = " ".join(str(problem).split())
    raise UserError(f"{file} is not valid {language}: {said}")


def _read_bytes(file: Path, max_bytes: int, hint: str) -> bytes:
    try:
        with file.open("rb") as stream:
            data = stream.read(max_bytes + 1)
    except FileNotFoundError:
        raise UserError(f"{file} is missing{hint and ': '}{hint}") from None
    except IsADirectoryError:
        raise UserError(f"{file} is a folder, not a file") from None
    except OSError as problem:
        raise UserError(f"{file} cannot be read: {problem.strerror}") from None
    except ValueError as problem:  # a NUL in the name
        raise UserError(f"{file}: {problem}") from None
    if len(data) > max_bytes:
        raise UserError(f"{file} is too large: more than {max_bytes // 10**6} MB")
    return data
