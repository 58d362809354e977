"""Batches of a dataset, with their pictures decoded ahead of the step that wants them."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass
from pathlib import Path

from llavacot_mlx.errors import UserError
from llavacot_mlx.pictures import TileCutter, Tiles, open_picture
from llavacot_mlx.tokenizer import Tokenizer

from .ahead import prefetch
from .batches import Batch, pad_batch
from .dataset import Dataset
from .encoding import encode
from .sample import Sample

THREADS = min(4, os.cpu_count() or 1)
"""Decoding a picture takes some ten milliseconds, and a step seconds: few are enough."""


@dataclass(frozen=True)
class Loader:
    """Reads the rows of a dataset, whatever order they are wanted in."""

    dataset: Dataset
    tokenizer: Tokenizer
    cutter: TileCutter
    threads: int = THREADS

    def batches(self, order: Iterable[tuple[int, ...]]) -> Generator[Batch]:
        """The batches of `order`, each a tuple of rows; it need not end.

        What comes follows from `order` alone, and not from the threads. They are at most
        2 × `threads` rows ahead, and end with the iterator. Raises UserError, which names the row,
        at the batch of a row that cannot be read.
        """
        wanted, again = itertools.tee(order)
        read = prefetch(self._read, (row for rows in again for row in rows), self.threads)
        with contextlib.closing(read):
            for rows in wanted:
                samples, pictures = zip(*itertools.islice(read, len(rows)), strict=True)
                yield pad_batch(rows, samples, pictures)

    def _read(self, row: int) -> tuple[Sample, Tiles | None]:
        dataset = self.dataset
        sample = encode(dataset.conversation(row), self.tokenizer, dataset.images)
        return sample, None if sample.image is None else self._tiles(sample.image, sample.where)

    def _tiles(self, image: Path, where: str) -> Tiles:
        try:
            return self.cutter.cut(open_picture(image))
        except UserError as problem:
            raise UserError(f"{where}: {problem}") from None
