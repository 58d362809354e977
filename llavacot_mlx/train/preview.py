"""One sample as text, split into runs of one token kind."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.train.data.sample import Sample, TokenKind


@dataclass(frozen=True)
class Example:
    """One training sample as text, for display."""

    where: str
    runs: list[tuple[TokenKind, str]]
    """Consecutive tokens of one kind as text; special tokens are spelled out."""


def example_of(sample: Sample, tokenizer: Tokenizer) -> Example:
    """Decodes a sample, and groups consecutive tokens of one kind."""
    tokens = zip(sample.token_kinds.tolist(), sample.ids.tolist(), strict=True)
    runs = [
        (TokenKind(kind), tokenizer.decode_with_special_tokens([token for _, token in group]))
        for kind, group in itertools.groupby(tokens, key=lambda pair: pair[0])
    ]
    return Example(sample.where, runs)
