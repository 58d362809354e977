"""Identifies the model of a run by its files."""

from __future__ import annotations

import hashlib
from pathlib import Path

from llavacot_mlx.checkpoint.adapter_config import WEIGHTS_NAME
from llavacot_mlx.checkpoint.fingerprints import base_hash
from llavacot_mlx.errors import UserError
from llavacot_mlx.evaluate.run_folder import ModelRecord


def model_record(name: str, folder: Path, adapter: Path | None) -> ModelRecord:
    """Returns the record of a model and its adapter. Raises UserError if they cannot be read."""
    digest = None
    if adapter is not None:
        file = adapter / WEIGHTS_NAME
        try:
            with file.open("rb") as stream:
                digest = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError as problem:
            raise UserError(f"{file}: cannot be read: {problem.strerror}") from None
    return ModelRecord(name, base_hash(folder), None if adapter is None else str(adapter), digest)
