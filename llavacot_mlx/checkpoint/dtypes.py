"""The element types of weights: their names in safetensors files and in MLX, and their bits.

MLX is imported only when an MLX type is requested.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, TypeAlias

from llavacot_mlx.errors import UserError

if TYPE_CHECKING:
    import mlx.core as mx


@dataclass(frozen=True)
class ElementType:
    """An element type of a safetensors file."""

    bits: int
    mlx_name: str | None = None
    """The type's name in MLX; None for types that no supported model uses."""
    exponent: int = 0
    """Bit mask of a floating-point value's exponent; 0 for other types."""
    fraction: int = 0
    """Bit mask of a floating-point value's fraction."""


ELEMENT_TYPES = {
    "F64": ElementType(64),
    "F32": ElementType(32, "float32", 0x7F80_0000, 0x007F_FFFF),
    "F16": ElementType(16, "float16", 0x7C00, 0x03FF),
    "BF16": ElementType(16, "bfloat16", 0x7F80, 0x007F),
    "F8_E5M2": ElementType(8),
    "F8_E4M3": ElementType(8),
    "I64": ElementType(64),
    "I32": ElementType(32),
    "I16": ElementType(16),
    "I8": ElementType(8),
    "U64": ElementType(64),
    "U32": ElementType(32, "uint32"),
    "U16": ElementType(16),
    "U8": ElementType(8, "uint8"),
    "BOOL": ElementType(8),
}
"""All element types, by their names in safetensors files."""

FLOATS = frozenset(name for name, element in ELEMENT_TYPES.items() if element.exponent)
"""The floating-point types that a model's weights can have, by their names in files."""

FloatName: TypeAlias = Literal["float32", "float16", "bfloat16"]
FLOAT_NAMES: tuple[FloatName, ...] = ("float32", "float16", "bfloat16")
"""The same types, by the names that flags and configurations use."""

_FILE_NAMES = {element.mlx_name: name for name, element in ELEMENT_TYPES.items()}


def mlx_dtype(file_name: str) -> mx.Dtype:
    """The MLX type of a weight stored as `file_name`, such as "BF16".

    Raises KeyError for a type that no supported model uses.
    """
    import mlx.core as mx

    name = ELEMENT_TYPES[file_name].mlx_name
    if name is None:
        raise KeyError(file_name)
    dtype: mx.Dtype = getattr(mx, name)
    return dtype


def file_name(dtype: mx.Dtype) -> str:
    """The name of an MLX type in a safetensors file, such as "BF16"."""
    return _FILE_NAMES[str(dtype).rpartition(".")[2]]


def named_dtype(name: str) -> mx.Dtype:
    """The MLX type called "float32", "float16" or "bfloat16". Raises UserError for other names."""
    if name not in FLOAT_NAMES:
        raise UserError(f"{name!r} is not a type of weights: use {', '.join(FLOAT_NAMES)}")
    return mlx_dtype(_FILE_NAMES[name])
