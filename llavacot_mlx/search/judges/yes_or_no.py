"""How likely a model is to say yes, read off its next token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import mlx.core as mx

from llavacot_mlx.search.judges.base import JudgeError


@dataclass(frozen=True)
class YesOrNo:
    """The tokens that an answer of yes, or of no, can begin with."""

    yes: tuple[int, ...]
    no: tuple[int, ...]

    @classmethod
    def of(cls, encode: Callable[[str], Sequence[int]]) -> YesOrNo:
        """As a tokenizer writes the two words: in small letters or not, with a space or not.

        A token that both can begin with, such as the space alone, tells nothing and is left out.
        """
        yes, no = (
            {encode(text)[0] for word in (small, small.title()) for text in (word, f" {word}")}
            for small in ("yes", "no")
        )
        both = yes & no
        if yes <= both or no <= both:
            raise JudgeError("its tokenizer begins yes and no with the same token")
        return cls(tuple(sorted(yes - both)), tuple(sorted(no - both)))

    def chances(self, logits: mx.array) -> list[float]:
        """The probability of yes against no, of each row of (rows, vocabulary)."""
        logits = logits.astype(mx.float32)
        yes, no = (mx.logsumexp(logits[:, mx.array(ids)], axis=-1) for ids in (self.yes, self.no))
        return mx.sigmoid(yes - no).tolist()  # type: ignore[return-value]
