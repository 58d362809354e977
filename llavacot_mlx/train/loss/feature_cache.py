"""A cache on disk for the image features of the frozen vision tower."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx

from llavacot_mlx.atomic import replace_file
from llavacot_mlx.errors import UserError
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.prompt.image_processor import Tiles

_ENDING = ".features.safetensors"
_PARTIAL = ".partial.safetensors"
_NAME = "features"
_CHECKSUM = "sha256"
_MAX_HEADER = 300  # bytes of a file before its data


@dataclass(frozen=True)
class Features:
    """The features of one image, as the text model reads them."""

    array: mx.array
    """(1, image tokens, hidden): the tokens of the real tiles come first."""
    tiles: int
    """Number of real tiles."""


def compute_features(model: Mllama, tiles: Tiles) -> Features:
    """Runs the vision tower on one image."""
    array = model.image_features(mx.array(tiles.pixels), tiles.aspect_ratio_id)
    mx.eval(array)
    return Features(array, len(tiles.pixels))


class FeatureCache:
    """Image features in the files of a folder, which never exceeds its budget.

    A full cache neither adds nor evicts: every epoch needs every image once, so the least recently
    used entry is the one needed next. A file is named after a hash of the base model and the
    pixels, and holds the features bit for bit. An unreadable file counts as missing and is written
    again.
    """

    def __init__(self, folder: Path, budget: int, base: str) -> None:
        """`budget` is in bytes; `base` identifies the model's weights and their type.

        Files already in the folder count. Raises UserError when the folder is not writable.
        """
        self._folder, self._budget, self._base = folder, budget, base
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for left in folder.glob(f"*{_PARTIAL}"):  # by a run that was killed
                left.unlink(missing_ok=True)
            self._used = sum(file.stat().st_size for file in folder.glob(f"*{_ENDING}"))
            if not os.access(folder, os.W_OK):
                raise PermissionError(0, "it is write-protected")
        except OSError as problem:
            raise UserError(
                f"{folder}: image features cannot be kept there: {problem.strerror or problem}"
            ) from None

    def features(self, model: Mllama, tiles: Tiles) -> Features:
        """The features of one image: read, or computed and stored if there is room."""
        file = self._folder / f"{self._key(tiles)}{_ENDING}"
        kept = _read(file)
        if kept is not None:
            return Features(kept, len(tiles.pixels))
        features = compute_features(model, tiles)
        self._keep(file, features.array)
        return features

    def _key(self, tiles: Tiles) -> str:
        digest = hashlib.sha256(self._base.encode())
        digest.update(f"|{tiles.aspect_ratio_id} {tiles.pixels.shape}|".encode())
        digest.update(tiles.pixels.data)
        return digest.hexdigest()

    def _keep(self, file: Path, array: mx.array) -> None:
        """Stores features. A full disk is not an error: they are computed again next time."""
        try:
            there = file.stat().st_size if file.exists() else 0
            if self._used - there + array.nbytes + _MAX_HEADER > self._budget:
                return
            with replace_file(file) as partial:
                mx.save_safetensors(str(partial), {_NAME: array}, {_CHECKSUM: _checksum(array)})
            self._used += file.stat().st_size - there
        except (OSError, RuntimeError, UserError):
            return


def _read(file: Path) -> mx.array | None:
    """The array in a file; None if the file is missing or damaged, or has no checksum."""
    if not file.exists():
        return None
    try:
        loaded: Any = mx.load(str(file), return_metadata=True)
        arrays, metadata = loaded
        array: mx.array = arrays[_NAME]
        mx.eval(array)
        whole = metadata.get(_CHECKSUM) == _checksum(array)
    except (KeyError, OSError, RuntimeError, ValueError):
        return None
    return array if whole else None


def _checksum(array: mx.array) -> str:
    """SHA-256 of the array's type, shape and bytes, in hexadecimal."""
    digest = hashlib.sha256(f"{array.dtype} {array.shape}|".encode())
    digest.update(memoryview(array.reshape(-1).view(mx.uint8)))  # type: ignore[arg-type]
    return digest.hexdigest()
