"""Loads the rows of a file as the inputs of training steps, in training order."""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass

from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_processor import Tiles
from llavacot_mlx.train.data.batches import Batch, batch_order, batches_from
from llavacot_mlx.train.data.loader import Loader
from llavacot_mlx.train.distributed import Workers
from llavacot_mlx.train.loss.feature_cache import FeatureCache, Features, compute_features
from llavacot_mlx.train.loss.step_inputs import Inputs
from llavacot_mlx.train.settings import TrainSettings


@dataclass(frozen=True)
class InputsLoader:
    """The rows of a file that are trained or validated on, and how they become inputs."""

    loader: Loader
    rows: Sequence[int]
    """Indices of the rows in the dataset."""
    lengths: Sequence[int]
    """Number of tokens of each row."""
    features: FeatureCache | None
    """The cache of image features, if there is one."""

    @contextmanager
    def batches(
        self, model: Mllama, settings: TrainSettings, done: int, workers: Workers
    ) -> Iterator[Iterator[Inputs | None]]:
        """Yields the inputs of every batch after the first `done` steps, without end.

        Each is this process's shard of a batch; None if the shard is empty.
        """
        order = batches_from(self.lengths, settings, done)
        with closing(self._inputs(model, settings, order, workers)) as inputs:
            yield inputs

    def batches_per_epoch(self, settings: TrainSettings) -> int:
        return len(batch_order(self.lengths, settings.batch_size, settings.seed, 0))

    def _inputs(
        self,
        model: Mllama,
        settings: TrainSettings,
        order: Iterator[tuple[int, ...]],
        workers: Workers,
    ) -> Generator[Inputs | None, None, None]:
        shards, sizes = itertools.tee(
            tuple(self.rows[index] for index in workers.shard(batch)) for batch in order
        )
        with closing(self.loader.batches(shard for shard in shards if shard)) as batches:
            for shard in sizes:
                yield self._make_inputs(model, settings, next(batches)) if shard else None

    def _make_inputs(self, model: Mllama, settings: TrainSettings, batch: Batch) -> Inputs:
        pictures = [
            tiles if tiles is None or settings.train_vision else self._image_features(model, tiles)
            for tiles in batch.pictures
        ]
        return Inputs.of(batch.ids, batch.token_kinds, pictures, model.config)

    def _image_features(self, model: Mllama, tiles: Tiles) -> Features:
        if self.features is None:
            return compute_features(model, tiles)
        return self.features.features(model, tiles)
