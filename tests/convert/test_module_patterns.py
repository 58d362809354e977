"""Patterns of modules match as PEFT's regular expressions do, and cannot run away."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from llavacot_mlx.convert.module_patterns import ModulePatterns
from llavacot_mlx.errors import UserError


def matches(pattern: str, text: str) -> bool:
    return ModulePatterns({pattern: True}).value_for(text, False)


MODULE = "model.language_model.layers.10.self_attn.q_proj"

atoms = st.sampled_from(["a", "b", ".", r"\.", "[ab]", "[^a]", "[a-c.]", r"\d", r"\w", "^", "$"])
repeats = st.sampled_from(["", "", "*", "+", "?", "{2}", "{1,2}", "{0,}", "*?"])
patterns = st.recursive(
    atoms,
    lambda inner: (
        st.tuples(inner, inner).map("".join)
        | st.tuples(inner, inner).map(lambda pair: f"({pair[0]}|{pair[1]})")
        | st.tuples(inner, repeats).map(lambda pair: f"(?:{pair[0]}){pair[1]}")
    ),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(pattern=patterns, text=st.text("abc.1", max_size=6))
def test_a_pattern_matches_as_pefts_regular_expression(pattern: str, text: str) -> None:
    expected = re.match(rf"(.*\.)?({pattern})$", text) is not None
    assert matches(pattern, text) is expected


@pytest.mark.parametrize(
    ("pattern", "is_match"),
    [
        ("q_proj", True),
        ("proj", False),  # not the whole part after a dot
        (r"layers\.10\.self_attn\.q_proj", True),
        (r".*layers\.(9|1[0-2])\..*(q|v)_proj", True),
        (r"^model\.language_model\.layers\.\d+\.self_attn\.[qkv]_proj$", True),
        ("^layers.*", False),
    ],
)
def test_patterns_as_people_write_them(pattern: str, is_match: bool) -> None:
    assert matches(pattern, MODULE) is is_match


@pytest.mark.parametrize(
    "pattern",
    ["(.*)*x", "(([a-z._]+)*)*!", "(a+)+$", ".*" * 200 + "Z", "((.{0,1000}){0,1000}){0,1000}Z"],
)
def test_a_pattern_made_to_take_years_ends(pattern: str) -> None:
    """`re` did not come back from the first two; the last one is refused."""
    try:
        assert not matches(pattern, MODULE)
    except UserError as problem:
        assert "take too long" in str(problem)  # noqa: PT017


@pytest.mark.parametrize(
    "pattern",
    [
        "[",
        "(",
        ")",
        "(?P<x>a)",
        "(?=a)",
        r"\1",
        "a**",
        "*",
        "a{9999999}",
        "(" * 5000,
        "a" * 5000,
        "\\",
        "[a",
        "a{2",
    ],
)
def test_a_pattern_that_is_not_read_is_named(pattern: str) -> None:
    """Some of these were an internal error."""
    with pytest.raises(UserError, match=r"the pattern '.*'.*; name the modules"):
        ModulePatterns({pattern: 1})
