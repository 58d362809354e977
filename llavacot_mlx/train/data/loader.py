"""Loads batches: rows are read and images decoded ahead of the step that needs them."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Generator, Iterable
from dataclasses import dataclass

from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.image_processor import ImageProcessor, Tiles
from llavacot_mlx.prompt.image_source import LocatedImage
from llavacot_mlx.prompt.images import open_image
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.train.data.batches import Batch, pad_batch
from llavacot_mlx.train.data.dataset import Dataset
from llavacot_mlx.train.data.prefetch import prefetch
from llavacot_mlx.train.data.sample import Sample

THREADS = min(4, os.cpu_count() or 1)
"""Decoding an image takes about ten milliseconds and a step takes seconds: a few are enough."""


@dataclass(frozen=True)
class Loader:
    """Reads the rows of a dataset in any order."""

    dataset: Dataset
    tokenizer: Tokenizer
    image_processor: ImageProcessor
    threads: int = THREADS

    def batches(self, order: Iterable[tuple[int, ...]]) -> Generator[Batch]:
        """Yields the batches of `order`, each a tuple of rows; `order` may be infinite.

        The result depends on `order` alone, not on timing. Threads run at most 2 × `threads` rows
        ahead, and stop when the iterator is closed. Raises UserError, which names the row, when the
        batch of an unreadable row is due.
        """
        wanted, again = itertools.tee(order)
        read = prefetch(self._read, (row for rows in again for row in rows), self.threads)
        with contextlib.closing(read):
            for rows in wanted:
                samples, pictures = zip(*itertools.islice(read, len(rows)), strict=True)
                yield pad_batch(rows, samples, pictures)

    def _read(self, row: int) -> tuple[Sample, Tiles | None]:
        sample = self.dataset.sample(row, self.tokenizer)
        return sample, None if sample.image is None else self._tiles(sample.image, sample.where)

    def _tiles(self, image: LocatedImage, where: str) -> Tiles:
        try:
            return self.image_processor(open_image(image))
        except UserError as problem:
            raise UserError(f"{where}: {problem}") from None
