"""Typed values out of JSON and YAML: the right ones come out, and a wrong one is named."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import pytest
import yaml

from llavacot_mlx.checked import (
    Aliases,
    KeyRules,
    OneOf,
    PositiveInt,
    Range,
    checked,
    quoted,
    read_json,
    read_yaml,
    shown,
)
from llavacot_mlx.errors import UserError


class Fruit(enum.StrEnum):
    APPLE = "apple"
    PEAR = "pear"


@dataclass(frozen=True)
class Inner:
    count: int
    fruit: Fruit | None


@dataclass(frozen=True)
class Outer:
    name: str
    weight: float | None
    ripe: bool
    inner: tuple[Inner, ...]
    ids: tuple[int, ...]
    free: dict[str, Any]


GOOD: dict[str, Any] = {
    "name": "a",
    "weight": 1,
    "ripe": True,
    "inner": [{"count": 2, "fruit": "pear"}, {"count": 0, "fruit": None}],
    "ids": [3, 4],
    "free": {"anything": [1]},
}


def test_every_kind_of_field() -> None:
    assert checked(Outer, GOOD) == Outer(
        "a", 1.0, True, (Inner(2, Fruit.PEAR), Inner(0, None)), (3, 4), {"anything": [1]}
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"name": 1}, "name: expected a text, not 1"),
        ({"name": None}, "name: expected a text, not null"),
        ({"weight": "1"}, 'weight: expected a number, not "1"'),
        ({"weight": True}, "weight: expected a number, not true"),
        ({"weight": float("inf")}, "weight: expected a number, not Infinity"),
        ({"ripe": 1}, "ripe: expected true or false, not 1"),
        ({"inner": {}}, "inner: expected a list, not {}"),
        ({"inner": [GOOD["inner"][0], 7]}, "inner[1]: expected an object with count, fruit, not 7"),
        ({"inner": [{"count": 1.0, "fruit": None}]}, "inner[0].count: expected a whole number"),
        ({"inner": [{"count": True, "fruit": None}]}, "inner[0].count: expected a whole number"),
        ({"inner": [{"count": 1, "fruit": "plum"}]}, "inner[0].fruit: expected apple or pear"),
        ({"inner": [{"count": 1, "fruit": ["pear"]}]}, "inner[0].fruit: expected apple or pear"),
        ({"inner": [{"count": 1}]}, "inner[0].fruit is missing"),
        ({"inner": [{"count": 1, "fruit": None, "x": 0}]}, "inner[0].x: unknown key"),
        ({"ids": [3, "4"]}, 'ids[1]: expected a whole number, not "4"'),
        ({"free": []}, "free: expected an object, not []"),
        ({"ids": "3" * 99}, 'ids: expected a list, not "333'),
    ],
)
def test_what_is_wrong_is_named(change: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        checked(Outer, GOOD | change)
    assert str(raised.value).startswith(said)
    assert len(str(raised.value)) < 100


def test_the_whole_may_be_something_else() -> None:
    with pytest.raises(UserError, match=r"^expected an object with keys such as name, weight"):
        checked(Outer, [])


@dataclass(frozen=True)
class Head:
    heads: Annotated[int, Aliases("attention_heads", "heads"), Range(min=1)]
    kind: Annotated[str, OneOf("a", "b")] = "a"
    scale: float | tuple[float, ...] = 1.0
    by_name: dict[str, PositiveInt] = field(default_factory=dict)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"heads": 2}, Head(2)),
        ({"attention_heads": 2, "heads": 2, "kind": "b"}, Head(2, "b")),
        ({"heads": 2, "scale": [1, 2]}, Head(2, scale=(1.0, 2.0))),
        ({"heads": 2, "scale": 3, "by_name": {"x": 1}}, Head(2, scale=3.0, by_name={"x": 1})),
    ],
)
def test_spellings_defaults_and_unions(value: dict[str, Any], expected: Head) -> None:
    assert checked(Head, value) == expected


@pytest.mark.parametrize(
    ("value", "said"),
    [
        ({}, "attention_heads or heads is missing"),
        ({"heads": 0}, "heads: expected a whole number of at least 1, not 0"),
        ({"heads": 2, "attention_heads": 3}, "heads is 2, but attention_heads is 3"),
        ({"heads": 1, "kind": "c"}, 'kind: expected a or b, not "c"'),
        ({"heads": 1, "kind": []}, "kind: expected a or b, not []"),
        ({"heads": 1, "scale": "x"}, 'scale: expected a number or a list, not "x"'),
        ({"heads": 1, "scale": [1, "x"]}, 'scale[1]: expected a number, not "x"'),
        ({"heads": 1, "by_name": {"x": 0}}, "by_name.x: expected a whole number from 1 to"),
        ({"heads": 1, "knd": "a"}, "knd: unknown key; did you mean kind?"),
        ({"heads": 1, "zzz": "a"}, "zzz: unknown key; there are attention_heads, kind"),
    ],
)
def test_what_a_schema_narrows(value: dict[str, Any], said: str) -> None:
    with pytest.raises(UserError) as raised:
        checked(Head, value)
    assert str(raised.value).startswith(said)


def test_what_a_kind_of_file_does_with_its_keys() -> None:
    assert checked(Head, {"heads": 1, "zzz": 0}, KeyRules(unknown=None)) == Head(1)
    assert checked(Head, {"heads": 1, "zzz": None}, KeyRules(null_is_missing=True)) == Head(1)
    assert checked(Head, {"heads": 1, "by-name": {}}, KeyRules(dashes=True)) == Head(1)
    assert checked(Head, {"heads": 1, "kind": None}, KeyRules(null_is_missing=True)) == Head(1)
    with pytest.raises(UserError, match=r"^kind is missing; tell us$"):
        checked(Head, {"heads": 1}, KeyRules(missing="; tell us", defaults=False))


def test_an_error_about_a_billion_values_is_short() -> None:
    """YAML's anchors make them out of a few lines."""
    lines = ["a0: &a0 [x]"] + [f"a{n}: &a{n} [{f'*a{n - 1},' * 9}]" for n in range(1, 30)]
    value = yaml.safe_load("\n".join(lines))
    with pytest.raises(UserError) as raised:
        checked(Head, {"heads": value["a29"]})
    assert len(str(raised.value)) < 100


@pytest.mark.parametrize("text", ["1e-5", "1E5", "-2e+3", ".5e1", "1.e2", "7"])
def test_a_number_that_pyyaml_takes_for_a_text(text: str) -> None:
    rules = KeyRules(float_texts=True)
    kinds: tuple[Any, ...] = (float, float | None, Annotated[float, Range(min=-1e9)])
    for kind in kinds:
        assert checked(kind, text, rules) == float(text)
        with pytest.raises(UserError, match="expected a number"):
            checked(kind, text)
    assert checked(str, text, rules) == text


@pytest.mark.parametrize("text", ["1e5x", "e5", "1e", "nan", "inf", "1_000"])
def test_a_word_is_no_number(text: str) -> None:
    with pytest.raises(UserError, match="expected a number"):
        checked(float, text, KeyRules(float_texts=True))


@pytest.mark.parametrize("read", [read_json, read_yaml])
@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"\xff", "not UTF-8 text"),
        (b"[" * 100_000, "nested too deep"),
        (b"[1,", "is not valid"),
        (b" " * 1_000_001 + b"[", "too large|is not valid"),
    ],
)
def test_a_file_that_cannot_be_read_is_one_line(
    read: Callable[[Path], Any], content: bytes, said: str, tmp_path: Path
) -> None:
    file = tmp_path / "file"
    file.write_bytes(content)
    with pytest.raises(UserError, match=said) as raised:
        read(file)
    assert str(raised.value).startswith(str(file))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("read", [read_json, read_yaml])
def test_a_file_that_is_none_is_named(read: Callable[[Path], Any], tmp_path: Path) -> None:
    for file, said in ((tmp_path, "is a folder"), (tmp_path / "no", "is missing")):
        with pytest.raises(UserError, match=rf"^{file} {said}"):
            read(file)


def bomb(levels: int) -> str:
    """YAML of 10^levels values in a few characters for each level."""
    text = "&a0 [x,x,x,x,x,x,x,x,x]"
    for level in range(1, levels):
        text = f"&a{level} [{text}" + f",*a{level - 1}" * 9 + "]"
    return text


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (f"a: {bomb(10)}", "its aliases make more than"),
        ("a: &a [*a]", "its aliases make more than"),
        ("a: &a {b: 1}\nb: &b {<<: [*a" + ", *a" * 200_000 + "]}", "too large"),
        ("a: !!binary x", "could not determine a constructor"),
        ("a: !!bool x", "a tag that its value does not fit"),
        ("a: !!int ''", "a tag that its value does not fit"),
        (f"a: {'9' * 301}", "a number of 301 digits"),
        (f"a: 0x{'f' * 5000}", "a number of 5002 digits"),
    ],
)
def test_yaml_that_would_never_end(text: str, says: str, tmp_path: Path) -> None:
    """A few hundred bytes of aliases once hung whatever showed, compared or copied them."""
    file = tmp_path / "a.yaml"
    file.write_text(text)
    with pytest.raises(UserError, match=says):
        read_yaml(file)


def test_yaml_has_the_types_of_json(tmp_path: Path) -> None:
    """A day that no month has was an internal error; a date is a text."""
    file = tmp_path / "a.yaml"
    file.write_text("{a: 2024-13-45, b: 2024-01-01, c: [1, 2.5, true, null], d: =}")
    assert read_yaml(file) == {
        "a": "2024-13-45",
        "b": "2024-01-01",
        "c": [1, 2.5, True, None],
        "d": "=",
    }
    file.write_text("a: &a {x: 1}\nb: [*a, *a]\nc: {<<: *a, y: 2}")  # a few aliases are fine
    assert read_yaml(file)["c"] == {"x": 1, "y": 2}


@pytest.mark.parametrize("kind", [int, float, PositiveInt, int | None])
@pytest.mark.parametrize("value", [10**299, -(10**299), 2**63])
def test_numbers_that_no_library_takes(kind: Any, value: int) -> None:
    """Whole numbers of hundreds of digits were an OverflowError where a float is meant."""
    if kind is float:
        assert checked(kind, value) == float(value)
        with pytest.raises(UserError, match="expected a number"):
            checked(float, value * 10**20 * 10**290)
        return
    with pytest.raises(UserError, match=r"expected a whole number.*, not .{41,43}$|, not 9"):
        checked(kind, value)


def test_json_of_too_much(tmp_path: Path) -> None:
    file = tmp_path / "a.json"
    file.write_text("[" + "9" * 301 + "]")
    with pytest.raises(UserError, match="a number of 301 digits"):
        read_json(file)
    file.write_text("[" + "[]," * 5_000_000 + "1]")
    with pytest.raises(UserError, match="more than 5000000 values"):
        read_json(file)


def test_half_a_character_is_no_text() -> None:
    for text in ("\ud800", "a\udfff", "\udc00"):
        with pytest.raises(UserError, match="expected a text"):
            checked(str, text)
    assert checked(str, "a\udc80") == "a\udc80"  # a byte of a file's name that is no UTF-8


def test_an_error_repeats_little() -> None:
    """Keys and values of a file once made lines of 100,000 characters."""
    long = "x" * 100_000
    for value in ({long: 1}, {"name": [long]}, {"name": {long: [long]}}, long, [long] * 9):
        with pytest.raises(UserError) as problem:
            checked(Outer, value)
        assert len(str(problem.value)) < 250
    assert len(shown({"a": long})) < 60
    assert len(quoted(long)) < 100
