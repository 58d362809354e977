"""Each position of a prompt sees the images that transformers lets it see."""

from __future__ import annotations

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from llavacot_mlx.prompt.image_spans import VisibleImages, visible_images

IMAGE = 7


def seen(runs: list[VisibleImages], length: int) -> list[set[int]]:
    """Returns the images that each position sees; the runs must cover all positions, in order."""
    rows: list[set[int]] = []
    for run in runs:
        assert run.start == len(rows)
        assert run.stop > run.start
        rows += [set(range(run.first, run.last)) for _ in range(run.start, run.stop)]
    assert len(rows) == length
    return rows


@pytest.mark.parametrize(
    ("ids", "rows"),
    [
        ([1, IMAGE, 2, 3], [set(), {0}, {0}, {0}]),
        ([IMAGE, 2], [{0}, {0}]),
        ([1, IMAGE], [set(), {0}]),
        ([1, IMAGE, 2, IMAGE, 3], [set(), {0}, {0}, {1}, {1}]),
        ([IMAGE, IMAGE, 3], [{0}, {0, 1}, {0, 1}]),
        ([IMAGE, IMAGE, 3, IMAGE, 4], [{0}, {0, 1}, {0, 1}, {2}, {2}]),
        ([IMAGE, 2, IMAGE, IMAGE], [{0}, {0}, {1}, {1, 2}]),
    ],
)
def test_examples(ids: list[int], rows: list[set[int]]) -> None:
    """An image is visible up to the next one; adjacent images are visible together."""
    assert seen(visible_images(ids, IMAGE), len(ids)) == rows


def test_no_image() -> None:
    assert visible_images([1, 2, 3], IMAGE) == []
    assert visible_images([], IMAGE) == []


@settings(deadline=None, max_examples=300)
@given(st.lists(st.sampled_from([IMAGE, 1, 2]), min_size=1, max_size=12))
@example([IMAGE, IMAGE, IMAGE])
@example([1, IMAGE, IMAGE, 2, IMAGE, 1, 1, IMAGE, IMAGE])
def test_the_same_as_transformers(ids: list[int]) -> None:
    from transformers.models.mllama.processing_mllama import get_cross_attention_token_mask

    rows: list[set[int]] = [set() for _ in ids]
    for image, (start, stop) in enumerate(get_cross_attention_token_mask(ids, IMAGE)):
        for row in range(start, len(ids) if stop == -1 else stop):
            rows[row].add(image)
    runs = visible_images(ids, IMAGE)
    if IMAGE not in ids:
        assert runs == []
    else:
        assert seen(runs, len(ids)) == rows
