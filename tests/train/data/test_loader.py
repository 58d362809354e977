"""Batches with their pictures: the same ones whatever the threads do, from any position on."""

from __future__ import annotations

import json
import threading
import time
from pathlib import Path

import numpy as np
import pytest
from demo_rows import write_rows

from llavacot_mlx import demo
from llavacot_mlx.checkpoint.config_json import load_config
from llavacot_mlx.errors import UserError
from llavacot_mlx.prompt.image_processor import ImageProcessor
from llavacot_mlx.prompt.images import open_image
from llavacot_mlx.prompt.tokenizer import Tokenizer
from llavacot_mlx.train.data.batches import Batch, batch_order
from llavacot_mlx.train.data.dataset import Dataset
from llavacot_mlx.train.data.encoding import encode
from llavacot_mlx.train.data.loader import Loader
from llavacot_mlx.train.data.prefetch import prefetch

CONFIG = load_config(demo.model_path())
TOKENIZER = Tokenizer.load(demo.model_path(), CONFIG)
IMAGE_PROCESSOR = ImageProcessor.load(demo.model_path(), CONFIG.vision)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """13 rows; the last has no picture."""
    folder = tmp_path_factory.mktemp("rows")
    file = write_rows(folder, range(12))
    bare = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "!"}]}
    file.write_text(f"{file.read_text()}{json.dumps(bare)}\n")
    return Dataset.open(file, folder / "images")


def loader(dataset: Dataset, threads: int) -> Loader:
    return Loader(dataset, TOKENIZER, IMAGE_PROCESSOR, threads)


def order_of(dataset: Dataset) -> list[tuple[int, ...]]:
    lengths = [
        len(encode(dataset.conversation(row), TOKENIZER, None).ids) for row in range(len(dataset))
    ]
    return batch_order(lengths, 4, 0, 0)


def check_same(one: Batch, other: Batch) -> None:
    assert one.rows == other.rows
    np.testing.assert_array_equal(one.ids, other.ids)
    np.testing.assert_array_equal(one.token_kinds, other.token_kinds)
    for tiles, others in zip(one.pictures, other.pictures, strict=True):
        if tiles is None or others is None:
            assert tiles is others
        else:
            np.testing.assert_array_equal(tiles.pixels, others.pixels)
            assert (tiles.rows, tiles.columns) == (others.rows, others.columns)


def test_batches_hold_the_rows_they_are_asked_for(dataset: Dataset) -> None:
    order = order_of(dataset)
    batches = list(loader(dataset, 3).batches(order))
    assert [batch.rows for batch in batches] == order
    for batch in batches:
        for place, row in enumerate(batch.rows):
            sample = encode(dataset.conversation(row), TOKENIZER, dataset.images)
            length = len(sample.ids)
            assert batch.ids[place, :length].tolist() == sample.ids.tolist()
            assert batch.token_kinds[place, :length].tolist() == sample.token_kinds.tolist()
            tiles = batch.pictures[place]
            assert (tiles is None) == (row == 12)
            if tiles is not None and sample.image is not None:
                expected = IMAGE_PROCESSOR(open_image(sample.image))
                np.testing.assert_array_equal(tiles.pixels, expected.pixels)


def test_pictures_of_every_tile_count_share_batches(dataset: Dataset) -> None:
    batches = loader(dataset, 2).batches(order_of(dataset))
    counts = [
        {len(tiles.pixels) for tiles in batch.pictures if tiles is not None} for batch in batches
    ]
    assert max(map(len, counts)) > 1


@pytest.mark.parametrize("threads", [1, 2, 8])
def test_going_on_from_a_position_is_the_tail_of_the_whole(dataset: Dataset, threads: int) -> None:
    """What `--resume` depends on."""
    order = order_of(dataset)
    whole = list(loader(dataset, 1).batches(order))
    for start in range(len(order) + 1):
        tail = list(loader(dataset, threads).batches(order[start:]))
        assert len(tail) == len(order) - start
        for batch, expected in zip(tail, whole[start:], strict=True):
            check_same(batch, expected)


def test_a_picture_that_cannot_be_read_names_its_row(dataset: Dataset, tmp_path: Path) -> None:
    file = write_rows(tmp_path, range(3))
    (tmp_path / "images" / "1.png").write_bytes(b"no picture")
    broken = Dataset.open(file, tmp_path / "images")
    batches = loader(broken, 2).batches([(0,), (1,), (2,)])
    assert next(batches).rows == (0,)  # what comes before is not lost
    with pytest.raises(UserError, match=r"train\.jsonl, row 2: .*1\.png is not a picture"):
        next(batches)
    assert not threads_at_work()


def threads_at_work() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("prefetch")]


def test_closing_stops_the_threads(dataset: Dataset) -> None:
    batches = loader(dataset, 4).batches([(0, 1)] * 1000)
    next(batches)
    assert threads_at_work()
    batches.close()
    assert not threads_at_work()


def test_results_come_in_order_and_never_far_ahead() -> None:
    """The first items take longest, and still come first."""
    started: list[int] = []

    def work(item: int) -> int:
        started.append(item)
        time.sleep(0.02 if item % 3 == 0 else 0)
        return item * item

    results = prefetch(work, range(30), threads=3)
    for item in range(30):
        assert next(results) == item * item
        time.sleep(0.002)
        assert max(started) < item + 2 * 3
    assert sorted(started) == list(range(30))
