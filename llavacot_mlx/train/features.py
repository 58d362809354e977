"""What the frozen vision tower makes of pictures, kept on disk for the next epochs."""

from __future__ import annotations

import contextlib
import hashlib
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

import mlx.core as mx

from llavacot_mlx.errors import UserError
from llavacot_mlx.model.mllama import Mllama
from llavacot_mlx.pictures import Tiles

_ENDING = ".features.safetensors"
_PARTIAL = ".partial.safetensors"
_NAME = "features"


@dataclass(frozen=True)
class Features:
    """A picture as the text model reads it."""

    array: mx.array
    """(1, all tiles' tokens, hidden): those of the real tiles come first."""
    tiles: int
    """Real ones."""


def compute_features(model: Mllama, tiles: Tiles) -> Features:
    """Runs the vision tower on one picture."""
    array = model.image_features(mx.array(tiles.pixels), tiles.aspect_ratio_id)
    mx.eval(array)
    return Features(array, len(tiles.pixels))


class FeatureCache:
    """Features in the files of a folder that never takes more bytes than its budget.

    Once it is full, nothing more is added and nothing goes: every epoch wants every picture once,
    so that whatever was used least recently is what is wanted next. A file is named after the base
    model and the picture's pixels; what comes back is what was computed, to the bit. A file that
    cannot be read counts as missing and is written anew.
    """

    def __init__(self, folder: Path, budget: int, base: str) -> None:
        """`budget` is in bytes; `base` tells the model's weights and their type apart from others.

        Counts what is in the folder already. Raises UserError when it cannot be written to.
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
        """Of one picture: read, or computed and kept if there is room."""
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
        """A disk that is full ends nothing: the picture will be computed again."""
        partial = self._folder / f"{secrets.token_hex(8)}{_PARTIAL}"
        try:
            there = file.stat().st_size if file.exists() else 0
            # A safetensors file is its data and a header of less than 200 bytes.
            if self._used - there + array.nbytes + 200 > self._budget:
                return
            mx.save_safetensors(str(partial), {_NAME: array})
            size = partial.stat().st_size
            partial.replace(file)
            self._used += size - there
        except (OSError, RuntimeError):
            return
        finally:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)


def _read(file: Path) -> mx.array | None:
    """The array of a file; None where there is no whole one."""
    if not file.exists():
        return None
    try:
        arrays: dict[str, mx.array] = mx.load(str(file))  # type: ignore[assignment]
        array = arrays[_NAME]
        mx.eval(array)
    except (KeyError, OSError, RuntimeError, ValueError):
        return None
    return array
