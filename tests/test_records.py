"""Dataclasses from JSON: the right ones come out, and a wrong one is named."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import Any

import pytest

from llavacot_mlx.errors import UserError
from llavacot_mlx.records import record_of


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
    assert record_of(Outer, GOOD, "") == Outer(
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
        ({"inner": [GOOD["inner"][0], 7]}, "inner[1]: expected an object, not 7"),
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
        record_of(Outer, GOOD | change, "")
    assert str(raised.value).startswith(said)
    assert len(str(raised.value)) < 100


def test_the_whole_may_be_something_else() -> None:
    with pytest.raises(UserError, match=r"the whole: expected an object, not \[\]"):
        record_of(Outer, [], "")
