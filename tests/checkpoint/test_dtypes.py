"""The table of element types agrees with MLX and NumPy, and loads neither."""

from __future__ import annotations

import subprocess
import sys

import mlx.core as mx
import numpy as np
import pytest

from llavacot_mlx.checkpoint.dtypes import (
    ELEMENT_TYPES,
    FLOAT_NAMES,
    FLOATS,
    file_name,
    mlx_dtype,
    named_dtype,
)
from llavacot_mlx.checkpoint.finite import is_finite
from llavacot_mlx.errors import UserError


@pytest.mark.parametrize("name", [n for n, element in ELEMENT_TYPES.items() if element.mlx_name])
def test_names_and_sizes_are_those_of_mlx(name: str) -> None:
    dtype = mlx_dtype(name)
    assert dtype.size * 8 == ELEMENT_TYPES[name].bits
    assert file_name(dtype) == name
    assert mx.issubdtype(dtype, mx.floating) == (name in FLOATS)


def test_a_type_that_no_model_has() -> None:
    with pytest.raises(KeyError):
        mlx_dtype("F8_E4M3")
    with pytest.raises(UserError, match="'float8' is not a type of weights: use float32"):
        named_dtype("float8")


def test_people_can_name_every_floating_point_type() -> None:
    assert {file_name(named_dtype(name)) for name in FLOAT_NAMES} == FLOATS


@pytest.mark.parametrize("name", sorted(FLOATS))
def test_the_bits_of_infinity_are_those_of_mlx(name: str) -> None:
    element, dtype = ELEMENT_TYPES[name], mlx_dtype(name)
    bits = mx.array([float("inf")], dtype).view(mx.uint32 if element.bits == 32 else mx.uint16)
    assert bits.item() == element.exponent
    assert element.exponent + element.fraction == 2 ** (element.bits - 1) - 1


@pytest.mark.parametrize("name", sorted(FLOATS))
@pytest.mark.parametrize("value", [0.0, -1.5, 6e4, -0.0, np.inf, -np.inf, np.nan, -np.nan])
def test_what_is_finite(name: str, value: float) -> None:
    array = mx.array([1.0, value, -2.0], mlx_dtype(name))
    assert is_finite(array).item() == bool(np.isfinite(value))
    assert is_finite(array[:0]).item()


@pytest.mark.processes
def test_the_table_loads_no_mlx() -> None:
    program = (
        "import sys, llavacot_mlx.checkpoint.dtypes; print({'mlx', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr
