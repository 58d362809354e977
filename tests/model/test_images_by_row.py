"""Rows about different images in one batch: each attends to its own, and only to them."""

from __future__ import annotations

import mlx.core as mx
import numpy as np
import pytest

from llavacot_mlx.model import images_by_row
from llavacot_mlx.model.images_by_row import ImagesByRow
from llavacot_mlx.model.kernels import GPU, kernels, use
from llavacot_mlx.model.kv_cache import ImageKV


def noise(*shape: int, seed: int) -> mx.array:
    return mx.random.normal(shape, key=mx.random.key(seed))


def image(tokens: int, seed: int) -> ImageKV:
    """K/V of one image in two layers, with 2 heads of 32."""
    arrays = [noise(1, 2, tokens, 32, seed=10 * seed + number) for number in range(4)]
    return ImageKV((arrays[0], arrays[1]), (arrays[2], arrays[3]), (tokens,))


A, B, C, D = image(7, 1), image(7, 2), image(19, 3), image(7, 4).quantized(8)
ROWS = {
    "all different": [A, B, C],
    "one image": [A, A, A],
    "out of order": [C, A, B, A, C, B],
    "some without": [None, A, None, C, B],
    "one with": [None, None, C],
    "quantized": [A, D, B, D, None],
}


@pytest.mark.parametrize("tokens", [1, 5])
@pytest.mark.parametrize("stacked", [True, False], ids=["stacked", "each image"])
@pytest.mark.parametrize("fused", [False, True], ids=["CPU", "fused"])
@pytest.mark.parametrize("name", ROWS)
def test_each_row_attends_to_its_own_images(
    name: str, fused: bool, stacked: bool, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if not stacked:
        monkeypatch.setattr(images_by_row, "STACKED_BYTES", 0)
    rows = ROWS[name]
    queries = noise(len(rows), 6, tokens, 32, seed=0)
    with use(GPU if fused else kernels()):
        images = ImagesByRow(rows)
        for layer in range(2):
            together = images.attend(layer, queries)
            assert together.shape == queries.shape
            for row, image_kv in enumerate(rows):
                own = np.array(together[row : row + 1])
                if image_kv is None:
                    assert not own.any()
                else:
                    alone = np.array(image_kv.attend(layer, queries[row : row + 1]))
                    np.testing.assert_allclose(own, alone, rtol=1e-4, atol=1e-5)


def test_which_rows_have_an_image() -> None:
    assert ImagesByRow([A, B]).rows_with_image is None
    mask = ImagesByRow([None, A, None]).rows_with_image
    assert mask is not None
    assert mask.shape == (3, 1, 1)
    assert mask.flatten().tolist() == [False, True, False]


def test_large_images_are_not_copied() -> None:
    """Rows about the same image read it from one place, however many they are."""
    tokens = images_by_row.STACKED_BYTES // (2 * 32 * 4) + 1
    large, other = image(tokens, 5), image(tokens, 6)
    mx.eval(large.arrays, other.arrays)
    queries = noise(8, 6, 1, 32, seed=0)
    before = mx.get_active_memory()
    images = ImagesByRow([large, A, large, other, A, large, None, other])
    mx.eval(images.attend(0, queries), images.attend(1, queries))
    assert mx.get_active_memory() - before < large.nbytes / 4
