"""Quantization recipes: the named ones, and those read from a YAML file.

A recipe is a list of patterns. The first one that matches a weight's module applies, and a weight
without a match is not changed. Patterns are shell patterns over the module paths of MLX folders,
such as `language_model.model.layers.*.cross_attn.*`; text layers may be counted from the end, so
that `layers.-1.` is the last one of every checkpoint.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeAlias

from llavacot_mlx.checked import (
    OneOf,
    PositiveInt,
    brief,
    checked,
    named,
    nearest,
    quoted,
    read_yaml,
    shown,
)
from llavacot_mlx.checkpoint.dtypes import FLOAT_NAMES, FloatName
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.config import Quantization

Choice: TypeAlias = Quantization | FloatName
"""A quantization, or the type of an unquantized weight."""

DEFAULTS = {
    "affine": Quantization(group_size=64, bits=4, mode="affine"),
    "mxfp4": Quantization(group_size=32, bits=4, mode="mxfp4"),
    "mxfp8": Quantization(group_size=32, bits=8, mode="mxfp8"),
    "nvfp4": Quantization(group_size=16, bits=4, mode="nvfp4"),
}
"""MLX's defaults for each mode; the modes other than affine support nothing else."""

_TEXT = "language_model.*"
_LAYER = re.compile(r"(?<=^language_model\.model\.layers\.)\d+")
# The head decides between 128,000 words, and the first and the last layer face the vocabulary.
_SENSITIVE = (
    "language_model.lm_head",
    "language_model.model.embed_tokens",
    "language_model.model.layers.*.cross_attn.*",
    "language_model.model.layers.0.*",
    "language_model.model.layers.-1.*",
)


@dataclass(frozen=True)
class Recipe:
    """How each module's weights are stored."""

    name: str
    rules: tuple[tuple[str, Choice], ...]
    """Pairs of pattern and choice; the first matching pattern applies."""

    def choice_for(self, path: str, layers: int) -> Choice | None:
        """The choice for the module at `path`, in a model with `layers` text layers."""
        return next((choice for p, choice in self.rules if matches(p, path, layers)), None)


def matches(pattern: str, path: str, layers: int) -> bool:
    """Whether a pattern matches the module at `path`, in a model with `layers` text layers."""
    from_the_end = _LAYER.sub(lambda number: str(int(number[0]) - layers), path)
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(from_the_end, pattern)


def _affine(bits: int) -> Quantization:
    return Quantization(group_size=64, bits=bits, mode="affine")


def _mixed(bits: int, more: int) -> tuple[tuple[str, Choice], ...]:
    return (*((pattern, _affine(more)) for pattern in _SENSITIVE), (_TEXT, _affine(bits)))


SCHEMES: dict[str, Choice] = {
    **{f"{bits}bit": _affine(bits) for bits in (2, 3, 4, 5, 6, 8)},
    **{mode: DEFAULTS[mode] for mode in ("mxfp4", "mxfp8", "nvfp4")},
    **{name: name for name in FLOAT_NAMES},
}
"""The schemes that a YAML file can name."""

RECIPES = {
    name: Recipe(name, rules)
    for name, rules in {
        **{
            name: ((_TEXT, choice),)
            for name, choice in SCHEMES.items()
            if isinstance(choice, Quantization)
        },
        "mixed-3-6": _mixed(3, 6),
        "mixed-4-6": _mixed(4, 6),
        "mixed-4-8": _mixed(4, 8),
    }.items()
}


def uniform(quantization: Quantization) -> Recipe:
    """The whole text part alike; vision and the projector are 4% of the weights, and stay."""
    usual = (name for name, recipe in RECIPES.items() if recipe.rules == ((_TEXT, quantization),))
    group_size, bits, mode = quantization.group_size, quantization.bits, quantization.mode
    name = next(usual, f"{mode}, {bits} bits, groups of {group_size}")
    return Recipe(name, ((_TEXT, quantization),))


def with_vision(recipe: Recipe) -> Recipe:
    """Vision tower and projector in 8 bits as well, where the recipe does not name them."""
    eight = _affine(8)
    more = (("vision_tower.*", eight), ("multi_modal_projector", eight))
    return Recipe(f"{recipe.name}, vision in 8 bits", (*recipe.rules, *more))


def recipe_called(name: str) -> Recipe:
    """The recipe of that name, or in the YAML file of that name. Raises UserError."""
    if name in RECIPES:
        return RECIPES[name]
    file = Path(name).expanduser()
    if file.suffix in (".yaml", ".yml") or file.is_file():
        return read_recipe(file)
    close = nearest(name, RECIPES)
    hint = f"did you mean {close}? " if close else ""
    raise UserError(
        f"--recipe {name}: {hint}there are {', '.join(RECIPES)}, or name a file like my.yaml"
    )


def read_recipe(file: Path) -> Recipe:
    """The recipe in a YAML file: a mapping from patterns to schemes.

    A scheme is a word of `SCHEMES`, or a mapping with `mode`, `bits` and `group_size`, where
    those left out are MLX's defaults. Raises UserError.
    """
    values = read_yaml(file)
    if not isinstance(values, dict) or not values:
        raise UserError(
            f"{file}: a recipe is a mapping, such as 'language_model.*': 4bit on each line"
        )
    rules = []
    with named(file):
        for pattern, value in values.items():
            if not isinstance(pattern, str):
                raise UserError(f"{quoted(pattern)} is not a pattern; put it in quotes")
            rules.append((pattern, _choice(pattern, value)))
    return Recipe(file.name, tuple(rules))


@dataclass(frozen=True)
class _Scheme:
    """A scheme that is written as a mapping."""

    bits: PositiveInt | None = None
    group_size: PositiveInt | None = None
    mode: Annotated[str, OneOf(*DEFAULTS)] = "affine"


def _choice(pattern: str, value: Any) -> Choice:
    if isinstance(value, str) and value in SCHEMES:
        return SCHEMES[value]
    if not isinstance(value, dict):
        raise UserError(
            f"{brief(pattern)}: {shown(value)} is not a scheme; there are {', '.join(SCHEMES)}, "
            "or a mapping with bits, group_size and mode"
        )
    scheme = checked(_Scheme, value, path=brief(pattern))
    usual = DEFAULTS[scheme.mode]
    return Quantization(
        scheme.group_size or usual.group_size, scheme.bits or usual.bits, scheme.mode
    )
