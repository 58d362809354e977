"""Features of pictures that are kept on disk are those that the tower computes."""

from __future__ import annotations

from pathlib import Path

import mlx.core as mx
import numpy as np
import pytest

from llavacot_mlx.errors import UserError
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_processor import Tiles
from llavacot_mlx.train.loss.feature_cache import FeatureCache, compute_features

PLENTY = 10**9


def tiles(seed: int, count: int = 2) -> Tiles:
    pixels = np.random.default_rng(seed).standard_normal((count, 8, 8, 3)).astype(np.float32)
    return Tiles(pixels, 1, count, count)


def size_of(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())


@pytest.fixture
def counted(model: Mllama, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Grows by an item whenever the tower runs."""
    runs: list[int] = []
    original = Mllama.image_features

    def image_features(self: Mllama, pixels: mx.array, aspect_ratio_id: int) -> mx.array:
        runs.append(aspect_ratio_id)
        return original(self, pixels, aspect_ratio_id)

    monkeypatch.setattr(Mllama, "image_features", image_features)
    return runs


def test_the_same_comes_back_to_the_bit(tmp_path: Path, model: Mllama, counted: list[int]) -> None:
    """In a later run too; the tower runs once for each picture."""
    for _ in range(2):
        cache = FeatureCache(tmp_path / "features", PLENTY, "base")
        for seed, count in ((0, 2), (1, 1)):
            got = cache.features(model, tiles(seed, count))
            assert got.tiles == count
            expected = model.vision_tower(mx.array(tiles(seed, count).pixels), count)
            expected = model.multi_modal_projector(expected)[None]
            assert mx.array_equal(got.array, expected).item()
    assert len(counted) == 2


def test_16_bits_come_back_as_they_are(tmp_path: Path, model: Mllama) -> None:
    pictures = tiles(0)
    half = Mllama(model.config)
    half.update(model.parameters())
    half.set_dtype(mx.bfloat16)
    cache = FeatureCache(tmp_path, PLENTY, "base")
    cache.features(half, pictures)
    got = cache.features(half, pictures).array
    assert got.dtype == mx.bfloat16
    assert mx.array_equal(got, compute_features(half, pictures).array).item()


def test_another_model_or_arrangement_is_another_entry(
    tmp_path: Path, model: Mllama, counted: list[int]
) -> None:
    pixels = tiles(0).pixels
    for base in ("base", "other"):
        for number in (2, 3):
            FeatureCache(tmp_path, PLENTY, base).features(model, Tiles(pixels, 1, 2, number))
    assert len(counted) == 4


@pytest.mark.parametrize("entries", [0, 1.5, 2.5])
def test_the_budget_is_kept_and_what_is_there_stays(
    tmp_path: Path, model: Mllama, counted: list[int], entries: float
) -> None:
    """A second epoch over more pictures than fit still finds those that do."""
    FeatureCache(tmp_path / "one", PLENTY, "base").features(model, tiles(0))
    budget = int(entries * (size_of(tmp_path / "one") + 100))
    folder = tmp_path / "features"
    counted.clear()
    for _ in range(2):
        cache = FeatureCache(folder, budget, "base")
        for seed in range(4):
            cache.features(model, tiles(seed))
            assert size_of(folder) <= budget
    assert len(counted) == 8 - int(entries)


@pytest.mark.parametrize("damage", [b"", b"not a tensor at all", None])
def test_a_damaged_file_is_computed_again(
    tmp_path: Path, model: Mllama, counted: list[int], damage: bytes | None
) -> None:
    """`None` cuts it in the middle, as a full disk would."""
    cache = FeatureCache(tmp_path, PLENTY, "base")
    expected = cache.features(model, tiles(0)).array
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2] if damage is None else damage)
    assert mx.array_equal(cache.features(model, tiles(0)).array, expected).item()
    assert len(counted) == 2
    assert file.read_bytes() == whole


@pytest.mark.parametrize("where", [0.3, 0.6, 0.99])
@pytest.mark.parametrize("change", [b"\xff\xff\xff\x7f", b"\0", b"a"])  # a NaN, and less
def test_a_changed_byte_is_found(
    tmp_path: Path, model: Mllama, counted: list[int], where: float, change: bytes
) -> None:
    """It was taken silently, or its NaN blamed on the learning rate."""
    cache = FeatureCache(tmp_path, PLENTY, "base")
    expected = cache.features(model, tiles(0)).array
    (file,) = tmp_path.iterdir()
    whole = file.read_bytes()
    at = int(where * (len(whole) - len(change)))
    damaged = whole[:at] + change + whole[at + len(change) :]
    assert damaged != whole
    file.write_bytes(damaged)
    assert mx.array_equal(cache.features(model, tiles(0)).array, expected).item()
    assert len(counted) == 2
    assert file.read_bytes() == whole


def test_a_file_without_a_checksum_is_computed_again(
    tmp_path: Path, model: Mllama, counted: list[int]
) -> None:
    """As earlier versions wrote them."""
    cache = FeatureCache(tmp_path, PLENTY, "base")
    cache.features(model, tiles(0))
    (file,) = tmp_path.iterdir()
    mx.save_safetensors(str(file), {"features": mx.zeros((1, 2, 3))})
    cache.features(model, tiles(0))
    assert len(counted) == 2


def test_what_a_killed_run_left_goes(tmp_path: Path, model: Mllama) -> None:
    (tmp_path / "0123.partial.safetensors").write_bytes(b"half")
    FeatureCache(tmp_path, PLENTY, "base")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="file/features: image features cannot be kept there"):
        FeatureCache(tmp_path / "file" / "features", PLENTY, "base")
