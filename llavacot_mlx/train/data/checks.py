"""Checks the rows of a dataset, and lists the problems of rows that cannot be trained on."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.images import open_image
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.train.data.conversation import Conversation
from llavacot_mlx.train.data.dataset import Dataset
from llavacot_mlx.train.data.encoding import encode
from llavacot_mlx.train.data.loader import THREADS
from llavacot_mlx.train.data.prefetch import prefetch
from llavacot_mlx.train.data.problem import Problem, ProblemKind, RowError
from llavacot_mlx.train.data.rules import Found, leaks, stage_problems
from llavacot_mlx.train.data.sample import Sample


@dataclass(frozen=True)
class CheckedRow:
    """The result of checking one row."""

    index: int
    """Index of the row in the dataset, from 0."""
    problems: tuple[Problem, ...]
    conversation: Conversation | None
    """None if the row is not a conversation."""
    sample: Sample | None
    """The training sample; None if the row is not a conversation."""
    tiles: int
    """Number of tiles of its image; 0 without a readable image."""


@dataclass(frozen=True)
class Checked:
    """The result of checking a whole dataset."""

    problems: tuple[Problem, ...]
    """All problems, in row order; a row may have several."""
    rows: tuple[int, ...]
    """Indices of the rows without problems."""
    lengths: tuple[int, ...]
    """The number of tokens of each of `rows`."""

    @classmethod
    def of(cls, checked: Iterable[CheckedRow]) -> Checked:
        problems: list[Problem] = []
        good: list[tuple[int, int]] = []
        for row in checked:
            problems += row.problems
            if row.sample is not None and not row.problems:
                good.append((row.index, len(row.sample.ids)))
        return cls(
            tuple(problems), tuple(index for index, _ in good), tuple(count for _, count in good)
        )

    @property
    def by_kind(self) -> dict[ProblemKind, list[Problem]]:
        """The problems by kind, the most frequent kind first."""
        counts = Counter(problem.kind for problem in self.problems)
        return {
            kind: [problem for problem in self.problems if problem.kind is kind]
            for kind, _ in counts.most_common()
        }


def check_rows(
    dataset: Dataset,
    tokenizer: Tokenizer,
    image_processor: ImageProcessor,
    max_tokens: int,
    threads: int = THREADS,
) -> Generator[CheckedRow]:
    """Checks every row in order: parses it, decodes its image, and encodes it.

    A row may have at most `max_tokens` tokens. Raises UserError only when the file cannot be read.
    """

    def check(index: int) -> CheckedRow:
        return _check_row(dataset, index, tokenizer, image_processor, max_tokens)

    return prefetch(check, range(len(dataset)), threads)


def _check_row(
    dataset: Dataset,
    index: int,
    tokenizer: Tokenizer,
    image_processor: ImageProcessor,
    max_tokens: int,
) -> CheckedRow:
    line = dataset.line(index)
    try:
        conversation = dataset.conversation(index)
    except RowError as error:
        problem = Problem(line, error.kind, error.detail)
        return CheckedRow(index, (problem,), None, None, 0)
    sample = encode(conversation, tokenizer, dataset.images)
    found: list[Found] = []
    tiles = 0
    if sample.image is not None:
        try:
            image = open_image(sample.image)
            tiles = math.prod(image_processor.arrangement(image.height, image.width))
        except UserError as error:
            there = _is_there(sample.image)
            kind = ProblemKind.PICTURE_UNREADABLE if there else ProblemKind.PICTURE_MISSING
            found.append((kind, str(error)))
    found += _answer_problems(conversation.answers, dataset.has_stages)
    if len(sample.ids) > max_tokens:
        detail = f"{len(sample.ids)} tokens, and {max_tokens} are the most"
        found.append((ProblemKind.TOO_LONG, detail))
    problems = tuple(Problem(line, kind, detail) for kind, detail in found)
    return CheckedRow(index, problems, conversation, sample, tiles)


def _answer_problems(answers: tuple[str, ...], has_stages: bool) -> list[Found]:
    each: list[list[Found]] = [
        [*(stage_problems(answer) if has_stages else ()), *leaks(answer)] for answer in answers
    ]
    bare = [any(kind is ProblemKind.NO_STAGES for kind, _ in found) for found in each]
    problems = []
    for number, found in enumerate(each, 1):
        for kind, detail in found:
            if kind is ProblemKind.NO_STAGES and not all(bare):
                # Other answers of the row have stages: a bug of LLaVA-CoT-100k's generator.
                kind = ProblemKind.NOT_REWRITTEN
            problems.append((kind, f"answer {number} {detail}" if len(answers) > 1 else detail))
    return problems


def _is_there(path: Path) -> bool:
    try:
        return path.exists()
    except OSError:  # such as a name that is too long
        return False
