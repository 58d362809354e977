"""The probability that a model answers yes, read from its next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from llavacot_mlx.search.judges.base import JudgeError


@dataclass(frozen=True)
class YesOrNo:
    """The token ids with which an answer of yes or no can start."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, encode: Callable[[str], Sequence[int]]) -> YesOrNo:
        """Finds the tokens for both words, in lower and title case, with and without a space.

        A token that both words can start with, such as a lone space, carries no information and is
        left out.
        """
        yes, no = (
            {encode(text)[0] for word in (small, small.title()) for text in (word, f" {word}")}
            for small in ("yes", "no")
        )
        both = yes & no
        if yes <= both or no <= both:
            raise JudgeError("its tokenizer begins yes and no with the same token")
        return cls(tuple(sorted(yes - both)), tuple(sorted(no - both)))

    def yes_probabilities(self, logits: mx.array) -> list[float]:
        """Returns a probability of yes against no per row of `logits` (batch, vocabulary)."""
        logits = logits.astype(mx.float32)
        yes, no = (mx.logsumexp(logits[:, mx.array(ids)], axis=-1) for ids in (self.yes, self.no))
        return mx.sigmoid(yes - no).tolist()  # type: ignore[return-value]
