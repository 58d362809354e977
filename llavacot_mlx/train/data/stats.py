"""Statistics of a dataset: lengths of rows and stages, sources, and tiles per image."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from llavacot_mlx.prompt.stages import Stage
from llavacot_mlx.train.data.checks import CheckedRow, first_folder
from llavacot_mlx.train.data.sample import TokenKind

NO_FOLDER = "(no folder)"
NO_PICTURE = "(no picture)"
_KINDS = {stage: TokenKind[stage.name] for stage in Stage}


@dataclass(frozen=True)
class Stats:
    """Statistics over all rows that are conversations, even those with other problems."""

    rows: int
    unreadable: int
    """Rows that are not conversations; no other count includes them."""
    with_problems: int
    """Rows with any problem, including the unreadable ones."""
    answers: int
    tokens: np.ndarray
    """(rows,) int64: number of tokens of each row, including the question."""
    learned: np.ndarray
    """(rows,) int64: number of tokens of each row that have a loss."""
    stages: dict[Stage, np.ndarray]
    """By stage, (answers with the stage,) int64: number of its tokens, without tags."""
    sources: dict[str, int]
    """Number of rows by the first folder of the image path, in descending order."""
    tiles: dict[int, int]
    """Number of rows by the number of tiles, of rows with a readable image."""

    @classmethod
    def of(cls, checked: Iterable[CheckedRow]) -> Stats:
        rows = unreadable = with_problems = answers = 0
        tokens: list[int] = []
        learned: list[int] = []
        stages: dict[Stage, list[int]] = {stage: [] for stage in Stage}
        sources: Counter[str] = Counter()
        tiles: Counter[int] = Counter()
        for row in checked:
            with_problems += bool(row.problems)
            if row.conversation is None or row.sample is None:
                unreadable += 1
                continue
            rows += 1
            answers += len(row.conversation.answers)
            tokens.append(len(row.sample.ids))
            learned.append(int(np.count_nonzero(row.sample.token_kinds)))
            for counts in _counts_by_answer(row.sample.token_kinds):
                for stage, kind in _KINDS.items():
                    if counts[kind]:
                        stages[stage].append(int(counts[kind]))
            sources[_source(row.conversation.image)] += 1
            if row.tiles:
                tiles[row.tiles] += 1
        return cls(
            rows=rows,
            unreadable=unreadable,
            with_problems=with_problems,
            answers=answers,
            tokens=np.array(tokens, dtype=np.int64),
            learned=np.array(learned, dtype=np.int64),
            stages={stage: np.array(counts, dtype=np.int64) for stage, counts in stages.items()},
            sources=dict(sources.most_common()),
            tiles=dict(sorted(tiles.items())),
        )

    def to_dict(self) -> dict[str, Any]:
        """The statistics as one JSON object."""
        return {
            "rows": self.rows,
            "unreadable": self.unreadable,
            "with_problems": self.with_problems,
            "answers": self.answers,
            "pictures": sum(self.tiles.values()),
            "tokens": {
                "row": _summary(self.tokens),
                "learned": _summary(self.learned),
                **{stage.value: _summary(counts) for stage, counts in self.stages.items()},
            },
            "sources": self.sources,
            "tiles": {str(count): rows for count, rows in self.tiles.items()},
        }


def _summary(counts: np.ndarray) -> dict[str, float] | None:
    if not counts.size:
        return None
    return {
        "count": counts.size,
        "mean": round(float(counts.mean()), 2),
        "median": float(np.median(counts)),
        "max": int(counts.max()),
    }


def _counts_by_answer(token_kinds: np.ndarray) -> Iterator[np.ndarray]:
    """Yields the number of tokens of each kind, (kinds,), for every answer.

    Answers are the runs of unmasked tokens; there is always a question between two of them.
    """
    edges = np.flatnonzero(np.diff(token_kinds != TokenKind.MASKED, prepend=False, append=False))
    for start, stop in edges.reshape(-1, 2):
        yield np.bincount(token_kinds[start:stop], minlength=len(TokenKind))


def _source(image: str | None) -> str:
    if image is None:
        return NO_PICTURE
    return first_folder(image) or NO_FOLDER
