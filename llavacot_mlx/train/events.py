"""What happens in a training, in the order in which it does."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from .sample import TokenKind


@dataclass(frozen=True)
class KindMetrics:
    """How well the tokens of one kind are known."""

    loss: float
    """Nats a token."""
    accuracy: float
    """Share whose likeliest token is the right one."""
    tokens: int


@dataclass(frozen=True)
class Stepped:
    """The weights were changed once."""

    step: int
    """Counted from 1."""
    loss: float
    """Mean over the learned tokens of the whole step, in nats, before the change."""
    learned_tokens: int
    learning_rate: float
    grad_norm: float
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Answer:
    """What the model wrote on a validation question."""

    where: str
    question: str
    text: str
    reference: str
    """The reference's CONCLUSION, or its whole text where it has none."""
    conclusion: str | None
    well_formed: bool
    right: bool


@dataclass(frozen=True)
class Validating:
    """The training pauses to look at the model, which may take as long as many steps."""

    step: int


@dataclass(frozen=True)
class Validated:
    """The model was looked at on rows that it does not learn from."""

    step: int
    loss: float
    seconds: float
    kinds: dict[TokenKind, KindMetrics]
    answers: tuple[Answer, ...]


@dataclass(frozen=True)
class Saved:
    """The adapter and a checkpoint are on disk."""

    step: int
    folder: Path


Event = Stepped | Validating | Validated | Saved
