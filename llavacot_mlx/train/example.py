"""One sample as text, in runs of what is learned of it."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from llavacot_mlx.tokenizer import Tokenizer

from .sample import Sample, Target


@dataclass(frozen=True)
class Example:
    where: str
    runs: list[tuple[Target, str]]
    """Neighbouring tokens of one kind, as text with special tokens spelled out."""


def example_of(sample: Sample, tokenizer: Tokenizer) -> Example:
    tokens = zip(sample.targets.tolist(), sample.ids.tolist(), strict=True)
    runs = [
        (Target(target), tokenizer.spelled([token for _, token in group]))
        for target, group in itertools.groupby(tokens, key=lambda pair: pair[0])
    ]
    return Example(sample.where, runs)
