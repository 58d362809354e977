"""Rows of a dataset on their way into the model: batches with what is seen of their pictures."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.model.mllama import Mllama

from .course import batches_from
from .features import FeatureCache
from .forward import Inputs
from .loader import Loader
from .settings import TrainSettings
from .workers import Workers


@dataclass(frozen=True)
class Question:
    """The first turn of a conversation, and how it was answered."""

    where: str
    image: Path | None
    text: str
    reference: str


@dataclass(frozen=True)
class BatchSource:
    """The rows of a file that can be learned from, as inputs of the model in a training's order."""
