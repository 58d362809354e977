"""The events of a training, in the order in which they happen."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.train.data.sample import TokenKind


@dataclass(frozen=True)
class KindMetrics:
    """Loss and accuracy on the tokens of one kind."""

    loss: float
    """Mean cross-entropy, in nats per token."""
    accuracy: float
    """Fraction of tokens that the model ranks first."""
    tokens: int


@dataclass(frozen=True)
class Stepped:
    """One training step was done."""

    step: int
    """Counted from 1."""
    loss: float
    """Mean over all tokens of the step that have a loss, in nats, before the update."""
    learned_tokens: int
    learning_rate: float
    grad_norm: float
    seconds: float
    peak_memory_bytes: int


@dataclass(frozen=True)
class Answer:
    """The model's answer to a validation question."""

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
    """A validation begins, which may take as long as many steps."""

    step: int


@dataclass(frozen=True)
class Validated:
    """A validation on held-out rows was done."""

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


@dataclass(frozen=True)
class Warned:
    """Something about the training that the user should know; once per run."""

    text: str


Event = Stepped | Validating | Validated | Saved | Warned
