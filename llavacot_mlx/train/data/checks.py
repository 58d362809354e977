"""Checks the rows of a dataset, and lists the problems of rows that cannot be trained on."""

from __future__ import annotations

import math
from collections import Counter, defaultdict
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.image_source import is_inline, is_there
from llavacot_mlx.prompt.images import open_image
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.rows.conversation import Conversation
from llavacot_mlx.rows.problem import Problem, ProblemKind, RowError
from llavacot_mlx.train.data.dataset import Dataset
from llavacot_mlx.train.data.loader import THREADS
from llavacot_mlx.train.data.prefetch import prefetch
from llavacot_mlx.train.data.rules import Found, leaks, stage_problems
from llavacot_mlx.train.data.sample import Sample


@dataclass(frozen=True)
class CheckedRow:
    """The result of checking one row."""

    index: int
    """Index of the row in the dataset, from 0."""
    line: int
    """Its line number in the file, from 1."""
    problems: tuple[Problem, ...]
    conversation: Conversation | None
    """None if the row is not a conversation."""
    sample: Sample | None
    """The training sample; None if the row is not a conversation."""
    tiles: int
    """Number of tiles of its image; 0 without a readable image."""


@dataclass(frozen=True)
class LostFolder:
    """A folder of images of which none is there."""

    name: str
    """First part of the images' paths; empty for paths without a folder."""
    rows: tuple[int, ...]
    """Line numbers of the rows that name an image in it, two at least."""

    def __str__(self) -> str:
        if self.name:
            return f"all {len(self.rows)} of {self.name}/ are missing: was its archive unpacked?"
        return f"all {len(self.rows)} images are missing: is --images their folder?"


def first_folder(image: str) -> str:
    """The first folder of an image's path; empty if it has none."""
    if is_inline(image):
        return ""
    parts = PurePosixPath(image.replace("\\", "/")).parts
    return parts[0] if len(parts) > 1 else ""


def grouped(problems: Sequence[Problem], lost: Sequence[LostFolder]) -> list[Problem | LostFolder]:
    """The problems, with one item first for all missing images of a lost folder."""
    in_folders = {row for folder in lost for row in folder.rows}
    missing = ProblemKind.PICTURE_MISSING
    folders = lost if any(problem.kind is missing for problem in problems) else ()
    others = [each for each in problems if each.kind is not missing or each.row not in in_folders]
    return [*folders, *others]


@dataclass(frozen=True)
class Checked:
    """The result of checking a whole dataset."""

    problems: tuple[Problem, ...]
    """All problems, in row order; a row may have several."""
    rows: tuple[int, ...]
    """Indices of the rows without problems."""
    lengths: tuple[int, ...]
    """The number of tokens of each of `rows`."""
    lost_folders: tuple[LostFolder, ...] = ()

    @classmethod
    def of(cls, checked: Iterable[CheckedRow]) -> Checked:
        problems: list[Problem] = []
        good: list[tuple[int, int]] = []
        folders: defaultdict[str, list[int]] = defaultdict(list)  # rows with an image of each
        present: set[str] = set()
        for row in checked:
            problems += row.problems
            if row.conversation is not None and row.conversation.image is not None:
                folder = first_folder(row.conversation.image)
                folders[folder].append(row.line)
                if all(each.kind is not ProblemKind.PICTURE_MISSING for each in row.problems):
                    present.add(folder)
            if row.sample is not None and not row.problems:
                good.append((row.index, len(row.sample.ids)))
        return cls(
            tuple(problems),
            tuple(index for index, _ in good),
            tuple(count for _, count in good),
            tuple(
                LostFolder(name, tuple(rows))
                for name, rows in folders.items()
                if name not in present and len(rows) > 1
            ),
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
        sample = dataset.encoded(conversation, tokenizer)
    except RowError as error:
        problem = Problem(line, error.kind, error.detail)
        return CheckedRow(index, line, (problem,), None, None, 0)
    found: list[Found] = []
    tiles = 0
    if sample.image is not None:
        try:
            image = open_image(sample.image)
            tiles = math.prod(image_processor.arrangement(image.height, image.width))
        except UserError as error:
            there = is_there(sample.image)
            kind = ProblemKind.PICTURE_UNREADABLE if there else ProblemKind.PICTURE_MISSING
            found.append((kind, str(error)))
    found += _answer_problems(conversation.answers, dataset.has_stages)
    if len(sample.ids) > max_tokens:
        detail = f"{len(sample.ids)} tokens, and {max_tokens} are the most"
        found.append((ProblemKind.TOO_LONG, detail))
    problems = tuple(Problem(line, kind, detail) for kind, detail in found)
    return CheckedRow(index, line, problems, conversation, sample, tiles)


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
